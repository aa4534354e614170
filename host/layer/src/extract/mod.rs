//! Takes apart finished images: all that is in one goes to a directory or to a tar archive.
//!
//! The image is read without mounting it, so that it takes neither rights nor this machine's kernel
//! to know it. Names and attributes are read first, contents as they are written.

mod archive;
mod directory;
mod whiteouts;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use self::archive::Archive;
use self::directory::Directory;
use crate::collect::{Collected, Collector};
use crate::copy::CopyError;
use crate::detect::{Kind, detect};
use crate::error::{Error, Problem};
use crate::finished::{self, Image};
use crate::options::Progress;
use crate::tree::{Content, Node, NodeId, Place, Tree};

/// How an image is taken apart.
#[derive(Debug, Clone)]
pub struct ExtractOptions {
    /// The form that whiteouts get.
    pub whiteouts: Whiteouts,
    /// Leave out what takes root: owners, devices, attributes that are trusted. Off by default.
    pub rootless: bool,
    /// All files together may not have more than this many bytes of data. 1 TiB by default.
    pub max_bytes: u64,
}

impl Default for ExtractOptions {
    fn default() -> Self {
        Self { whiteouts: Whiteouts::Keep, rootless: false, max_bytes: 1 << 40 }
    }
}

/// How a layer says that something of the layers below is not to be seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Whiteouts {
    /// As they are in the image.
    #[default]
    Keep,
    /// As overlayfs has them: a character device 0:0, an attribute of a directory.
    Overlay,
    /// As OCI layers have them: `.wh.name`, `.wh..wh..opq`.
    Oci,
}

/// What was taken out of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Extracted {
    /// Names, that of the root among them.
    pub entries: u64,
    /// Bytes of file contents, holes not counted.
    pub bytes: u64,
    /// Attributes that have no place outside the image.
    pub skipped_xattrs: u64,
    /// What was left out for want of rights, or because a tar archive cannot have it: sockets.
    pub left_out: u64,
}

/// Puts all that an image holds into a directory, which is made, or is there and empty. Nothing is
/// written anywhere else, whatever the image holds. If it fails, what was made is taken away again.
///
/// # Errors
///
/// As [`detect`]; [`Error::Image`] if the image does not add up or holds too much,
/// [`Error::Extract`] names the entry that cannot be put there, [`Error::Target`] is about the
/// directory.
pub fn extract_to_directory(
    image: &Path,
    target: &Path,
    options: &ExtractOptions,
    progress: impl FnMut(Progress),
) -> Result<Extracted, Error> {
    let plan = Plan::new(image, options)?;
    let mut directory = Directory::open(target, options.rootless)?;
    let outcome = plan.run(&mut directory, progress);
    if outcome.is_err() {
        directory.clear();
    }
    outcome
}

/// Writes all that an image holds as a tar archive (POSIX, with sparse files in GNU's form).
///
/// # Errors
///
/// As [`extract_to_directory`]; `name` is what errors call the archive.
pub fn extract_to_tar(
    image: &Path,
    out: impl Write,
    name: &str,
    options: &ExtractOptions,
    progress: impl FnMut(Progress),
) -> Result<Extracted, Error> {
    let plan = Plan::new(image, options)?;
    plan.run(&mut Archive::new(out, name), progress)
}

/// Where entries go. They come with their directory before and after them.
trait Target {
    /// What errors call it.
    fn name(&self) -> String;
    fn enter(&mut self, entry: &Entry<'_>) -> Result<(), Problem>;
    fn leave(&mut self, entry: &Entry<'_>) -> Result<(), Problem>;
    /// Anything but a directory. `tick` is told how many bytes of contents were copied.
    fn put(
        &mut self,
        entry: &Entry<'_>,
        image: &Image,
        tick: &mut dyn FnMut(u64),
    ) -> Result<(), CopyError>;
    /// A further name of what was put before.
    fn link(&mut self, entry: &Entry<'_>, first: &[u8]) -> Result<(), Problem>;
    fn finish(&mut self) -> Result<(), Problem>;
    fn left_out(&self) -> u64;
}

/// One name of a node.
struct Entry<'p> {
    /// All of the path below the root; empty for that.
    path: &'p [u8],
    name: &'p [u8],
    node: &'p Node,
}

/// A directory on the way down: the length of its path, and what is left of it.
type Level<'t> = (NodeId, usize, Vec<(&'t [u8], NodeId)>);

/// All that is to be extracted, apart from contents.
struct Plan {
    image: Image,
    tree: Tree,
    bytes: u64,
    skipped_xattrs: u64,
}

impl Plan {
    fn new(path: &Path, options: &ExtractOptions) -> Result<Self, Error> {
        let image = open_image(path)?;
        let mut collector = Collector::new((), options.whiteouts == Whiteouts::Overlay);
        collector.begin(image.name().to_owned());
        let mut bytes = 0_u64;
        finished::add(&mut collector, &image, |_, inode| {
            let map = inode.map().map_err(CopyError::Content)?;
            bytes = bytes.saturating_add(map.data_bytes());
            if bytes > options.max_bytes {
                let limit = options.max_bytes;
                let problem = format!("its files have more than the limit of {limit} bytes");
                let image = image.name().to_owned();
                return Err(CopyError::Image(Error::Image { image, problem }));
            }
            Ok(Content::File { size: map.size, place: Place::Inode(inode.number) })
        })?;
        let Collected { mut tree, origin, skipped_xattrs, .. } = collector.finish();
        if options.whiteouts == Whiteouts::Oci {
            whiteouts::to_oci(&mut tree)
                .map_err(|(path, problem)| Error::entry(&origin, &path, problem))?;
        }
        Ok(Self { image, tree, bytes, skipped_xattrs })
    }

    fn run(
        &self,
        target: &mut dyn Target,
        mut report: impl FnMut(Progress),
    ) -> Result<Extracted, Error> {
        let total = Some(self.bytes);
        let mut progress = Progress { bytes: 0, total, entries: 0 };
        let mut first_names: HashMap<NodeId, Vec<u8>> = HashMap::new();
        let links = self.tree.link_counts();
        // What is left of each directory on the way down, the next entry last.
        let mut levels: Vec<Level<'_>> = Vec::new();
        let mut path: Vec<u8> = Vec::new();
        let root = Entry { path: b"", name: b"", node: self.tree.node(Tree::ROOT) };
        let named = |target: &dyn Target, path: &[u8], problem: Problem| Error::Extract {
            target: target.name(),
            entry: String::from_utf8_lossy(path).into_owned(),
            problem,
        };
        target.enter(&root).map_err(|problem| named(target, b"", problem))?;
        levels.push((Tree::ROOT, 0, self.tree.entries_backwards(Tree::ROOT)));
        progress.entries = 1;
        while let Some((directory, length, rest)) = levels.last_mut() {
            path.truncate(*length);
            let Some((name, id)) = rest.pop() else {
                let name_at = path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
                let node = self.tree.node(*directory);
                let entry = Entry { path: &path, name: &path[name_at..], node };
                target.leave(&entry).map_err(|problem| named(target, &path, problem))?;
                levels.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let node = self.tree.node(id);
            let entry = Entry { path: &path, name, node };
            progress.entries += 1;
            let outcome = if let Some(first) = first_names.get(&id) {
                target.link(&entry, first).map_err(CopyError::Content)
            } else if matches!(node.content, Content::Directory(_)) {
                let entered = target.enter(&entry).map_err(CopyError::Content);
                levels.push((id, path.len(), self.tree.entries_backwards(id)));
                entered
            } else {
                if links[id.index()] > 1 {
                    first_names.insert(id, path.clone());
                }
                target.put(&entry, &self.image, &mut |bytes| {
                    progress.bytes += bytes;
                    report(progress);
                })
            };
            outcome.map_err(|error| match error {
                CopyError::Image(error) => error,
                CopyError::Content(problem) => named(target, &path, problem),
            })?;
        }
        target.finish().map_err(|problem| named(target, b"", problem))?;
        report(progress);
        Ok(Extracted {
            entries: progress.entries,
            bytes: progress.bytes,
            skipped_xattrs: self.skipped_xattrs,
            left_out: target.left_out(),
        })
    }
}

/// Opens what has to be a finished image.
pub(crate) fn open_image(path: &Path) -> Result<Image, Error> {
    let size = match detect(path)? {
        Kind::Ext4 { size } | Kind::Erofs { size } | Kind::Vhd { payload_size: size } => size,
        Kind::Directory | Kind::Tar(_) => {
            return Err(Error::Image {
                image: path.display().to_string(),
                problem: "it is none: only ext4 and EROFS, raw or in a fixed VHD, are".to_owned(),
            });
        }
    };
    Image::open(path, size)
}
