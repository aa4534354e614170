//! Puts the entries of a source into an image, whatever the source is.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::archive;
use crate::copy::{self, ByteSource, CopyError};
use crate::detect::{Kind, detect};
use crate::erofs;
use crate::error::{Error, Problem};
use crate::ext4::finish::{self, Failure, Finished};
use crate::ext4::stream::BlockStream;
use crate::ext4::xattr::Xattr;
use crate::ext4::{BLOCK_U64, superblock};
use crate::options::{Format, Options, Progress, Summary};
use crate::sparse::SparseMap;
use crate::tree::{Attributes, Content, Node, NodeId, Place, Tree};
use crate::verity::{self, Hasher, Verity};
use crate::walk;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const BOOKKEEPING: &[u8] = b".wh..wh.";
/// Bytes between two reports of progress within a file.
const REPORT_EVERY: u64 = 1 << 20;
const MAX_SIZE: u64 = u32::MAX as u64 * BLOCK_U64;

/// Makes one image. Sources are added one over the other: in a later one, an entry replaces an
/// earlier one of the same name.
pub struct LayerBuilder<'a> {
    stream: BlockStream<'a>,
    out: &'a File,
    tree: Tree,
    data_start: u32,
    /// Unless it is to be ext4.
    erofs: Option<erofs::Writer>,
    options: Options,
    origin: String,
    opaque: HashSet<NodeId>,
    whiteouts: HashSet<NodeId>,
    skipped_xattrs: u64,
    meter: Meter<'a>,
}

struct Meter<'a> {
    report: Box<dyn FnMut(Progress) + 'a>,
    progress: Progress,
    unreported: u64,
}

impl Meter<'_> {
    fn read(&mut self, bytes: u64) {
        self.progress.bytes += bytes;
        self.unreported += bytes;
        if self.unreported >= REPORT_EVERY {
            self.unreported = 0;
            (self.report)(self.progress);
        }
    }
}

impl<'a> LayerBuilder<'a> {
    /// Begins an image in `out`, which is emptied. It may be a file without a name.
    ///
    /// # Errors
    ///
    /// The file cannot be written, or an option is out of range.
    pub fn new(out: &'a File, options: Options) -> Result<Self, Error> {
        let invalid = |text: &str| Err(Error::Invalid(text.to_owned()));
        if options.max_size > MAX_SIZE {
            return invalid("the largest size is 16 TiB");
        }
        let multiple = options.size_multiple;
        if multiple == 0 || !multiple.is_multiple_of(BLOCK_U64) || multiple > 1 << 30 {
            return invalid("the size must be a multiple of 4096 bytes up to 1 GiB");
        }
        if let Some(verity) = &options.verity {
            verity::check_options(verity)?;
        }
        out.set_len(0).map_err(Error::Write)?;
        let hasher = options.verity.as_ref().map(|verity| Hasher::new(out, &verity.salt));
        let hasher = hasher.transpose().map_err(Error::Write)?;
        let limit = (options.max_size / BLOCK_U64) as u32;
        let descriptors = superblock::descriptor_blocks(superblock::full_groups(limit));
        let (data_start, erofs) = match options.format {
            Format::Ext4 => (1 + descriptors, None),
            Format::Erofs => (erofs::DATA_START, Some(erofs::Writer::new())),
        };
        let progress = Progress { bytes: 0, total: None, entries: 0 };
        Ok(Self {
            stream: BlockStream::new(out, data_start, limit, hasher),
            out,
            tree: Tree::new(),
            data_start,
            erofs,
            options,
            origin: String::new(),
            opaque: HashSet::new(),
            whiteouts: HashSet::new(),
            skipped_xattrs: 0,
            meter: Meter { report: Box::new(|_| {}), progress, unreported: 0 },
        })
    }

    /// Calls `report` now and then, and after every source.
    #[must_use]
    pub fn on_progress(mut self, report: impl FnMut(Progress) + 'a) -> Self {
        self.meter.report = Box::new(report);
        self
    }

    /// Adds the entries of a tar stream, plain or compressed. `name` is for error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Archive`] if the stream breaks off or is damaged, [`Error::Entry`] if an entry
    /// would lead out of the tree or cannot be kept, and errors of the image.
    pub fn add_tar(&mut self, name: &str, reader: impl Read) -> Result<(), Error> {
        self.origin = name.to_owned();
        archive::add(self, reader)?;
        (self.meter.report)(self.meter.progress);
        Ok(())
    }

    /// Adds what a directory holds, other file systems mounted below it included. Symbolic links
    /// are taken as such and never followed, `path` itself apart.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] for a file that cannot be read, [`Error::Entry`] for one that changes its
    /// size meanwhile or cannot be kept, and errors of the image.
    pub fn add_directory(&mut self, path: &Path) -> Result<(), Error> {
        self.origin = path.display().to_string();
        walk::add(self, path)?;
        (self.meter.report)(self.meter.progress);
        Ok(())
    }

    /// Writes everything but the file contents, which are written already.
    ///
    /// # Errors
    ///
    /// The image cannot be written or would be too large; attributes do not fit.
    pub fn finish(mut self) -> Result<Summary, Error> {
        for id in self.opaque.drain() {
            let mark = Xattr::overlay_opaque();
            let xattrs = &mut self.tree.node_mut(id).attributes.xattrs;
            xattrs.retain(|xattr| !xattr.same_name(&mark));
            xattrs.push(mark);
        }
        let finished = match self.erofs {
            None => finish::finish(self.stream, &self.tree, self.data_start, &self.options),
            Some(writer) => erofs::finish::finish(self.stream, writer, &self.tree, &self.options),
        };
        let Finished { bytes, inodes, data_bytes, uuid, leaves } =
            finished.map_err(|failure| match failure {
                Failure::Image(error) => error,
                Failure::Node(path, problem) => entry_error(&self.origin, &path, problem),
            })?;
        let verity = match (leaves, &self.options.verity) {
            (Some(leaves), Some(options)) => Some(leaves.append_to(self.out, bytes, options)?),
            _ => None,
        };
        Ok(Summary {
            bytes: verity.as_ref().map_or(bytes, Verity::total_bytes),
            file_system_bytes: bytes,
            inodes,
            data_bytes,
            skipped_xattrs: self.skipped_xattrs,
            uuid,
            verity,
        })
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(crate) fn tree_mut(&mut self) -> &mut Tree {
        &mut self.tree
    }

    pub(crate) fn count_entry(&mut self) {
        self.meter.progress.entries += 1;
    }

    pub(crate) fn count_skipped_xattr(&mut self) {
        self.skipped_xattrs += 1;
    }

    pub(crate) fn count_bytes(&mut self, bytes: u64) {
        self.meter.read(bytes);
    }

    pub(crate) fn entry_error(&self, path: &[u8], problem: Problem) -> Error {
        entry_error(&self.origin, path, problem)
    }

    pub(crate) fn archive_error(&self, offset: u64, cause: io::Error) -> Error {
        Error::Archive { archive: self.origin.clone(), offset, cause }
    }

    /// Takes in the contents of a file. `count` makes of the bytes copied those to be reported.
    pub(crate) fn copy(
        &mut self,
        source: &mut dyn ByteSource,
        map: &SparseMap,
        attributes: &Attributes,
        count: &mut dyn FnMut(u64) -> u64,
    ) -> Result<Content, CopyError> {
        let meter = &mut self.meter;
        let extents =
            copy::copy(source, map, &mut self.stream, &mut |bytes| meter.read(count(bytes)))?;
        let place = match &mut self.erofs {
            None => Place::Extents(extents),
            Some(writer) => {
                Place::Inode(writer.file(&mut self.stream, map.size, &extents, attributes)?)
            }
        };
        Ok(Content::File { size: map.size, place })
    }

    /// Puts a new node into a directory. `None` if it was a mark and not an entry.
    pub(crate) fn insert(
        &mut self,
        directory: NodeId,
        name: &[u8],
        node: Node,
    ) -> Result<Option<NodeId>, Problem> {
        if self.options.whiteouts && name.starts_with(WHITEOUT) {
            self.hide(directory, name)?;
            return Ok(None);
        }
        if let Content::Symlink(target) = &node.content
            && !(1..=4095).contains(&target.len())
        {
            return Err(Problem::SymlinkLength(target.len()));
        }
        if let Content::CharDevice { major, minor } | Content::BlockDevice { major, minor } =
            node.content
            && (major >= 1 << 12 || minor >= 1 << 20)
        {
            return Err(Problem::BadDevice { major, minor });
        }
        let is_directory = matches!(node.content, Content::Directory(_));
        let old = self.tree.child(directory, name);
        if let Some(old) = old
            && is_directory
            && matches!(self.tree.node(old).content, Content::Directory(_))
        {
            self.tree.node_mut(old).attributes = node.attributes;
            return Ok(Some(old));
        }
        let new = self.tree.add(node);
        self.tree.link(directory, name, new);
        if is_directory && old.is_some_and(|old| self.whiteouts.contains(&old)) {
            self.opaque.insert(new);
        }
        Ok(Some(new))
    }

    /// Gives an existing file one more name.
    pub(crate) fn insert_link(
        &mut self,
        directory: NodeId,
        name: &[u8],
        target: NodeId,
    ) -> Result<(), Problem> {
        if self.options.whiteouts && name.starts_with(WHITEOUT) {
            return self.hide(directory, name);
        }
        self.tree.link(directory, name, target);
        Ok(())
    }

    /// Takes the mark of an OCI layer. It speaks of the layers below only: what this layer has
    /// under the hidden name stays, and hides by itself; a directory must become opaque for that.
    fn hide(&mut self, directory: NodeId, mark: &[u8]) -> Result<(), Problem> {
        if mark == OPAQUE {
            self.opaque.insert(directory);
            return Ok(());
        }
        let name = &mark[WHITEOUT.len()..];
        if mark.starts_with(BOOKKEEPING) {
            return Ok(());
        }
        if matches!(name, b"" | b"." | b"..") {
            return Err(Problem::BadName);
        }
        match self.tree.child(directory, name) {
            Some(child) => {
                if matches!(self.tree.node(child).content, Content::Directory(_)) {
                    self.opaque.insert(child);
                }
            }
            None => {
                let content = Content::CharDevice { major: 0, minor: 0 };
                let child = self.tree.add(Node { attributes: Attributes::default(), content });
                self.tree.link(directory, name, child);
                self.whiteouts.insert(child);
            }
        }
        Ok(())
    }
}

fn entry_error(origin: &str, path: &[u8], problem: Problem) -> Error {
    let entry = String::from_utf8_lossy(path).into_owned();
    Error::Entry { origin: origin.to_owned(), entry, problem }
}

/// An empty directory.
pub(crate) fn no_entries() -> Content {
    Content::Directory(BTreeMap::new())
}

/// Makes an image of the directory or archive at `source` in `out`, telling `progress` how far it
/// has come.
///
/// # Errors
///
/// As [`detect`], [`LayerBuilder::add_tar`], [`LayerBuilder::add_directory`] and
/// [`LayerBuilder::finish`]; [`Error::Unsupported`] if `source` is an image already.
pub fn build_image(
    source: &Path,
    out: &File,
    options: Options,
    progress: impl FnMut(Progress),
) -> Result<Summary, Error> {
    let kind = detect(source)?;
    let mut builder = LayerBuilder::new(out, options)?.on_progress(progress);
    match kind {
        Kind::Directory => builder.add_directory(source)?,
        Kind::Tar(_) => {
            let read = |cause| Error::Read { path: source.to_owned(), cause };
            let file = File::open(source).map_err(read)?;
            builder.meter.progress.total = Some(file.metadata().map_err(read)?.len());
            builder.add_tar(&source.display().to_string(), file)?;
        }
        Kind::Ext4 { .. } | Kind::Erofs { .. } | Kind::Vhd { .. } => {
            return Err(Error::Unsupported {
                path: source.to_owned(),
                found: "an image already",
                advice: "attach it as it is".to_owned(),
            });
        }
    }
    builder.finish()
}
