//! Compares two layers, whatever they are: directories, archives, finished images.
//!
//! Each is read once, from its beginning to its end; of contents a hash is kept. Two names are the
//! same if they look the same when mounted: how a file lies in its image does not count, and a hole
//! is zeros.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};

use crate::archive;
use crate::collect::{Collected, Collector, Contents};
use crate::copy::{ByteSource, CopyError, Spans, UNIT, is_zero, units};
use crate::detect::{Kind, detect};
use crate::error::Error;
use crate::finished::{self, Image};
use crate::options::Progress;
use crate::sparse::SparseMap;
use crate::tree::{Attributes, Content, Node, NodeId, Place, Tree};
use crate::walk;

/// How layers are compared.
#[derive(Debug, Clone, Default)]
pub struct DiffOptions {
    /// Take the whiteouts of OCI layers for those of overlayfs, as
    /// [`Options::whiteouts`](crate::Options::whiteouts) does.
    pub whiteouts: bool,
    /// What does not count.
    pub ignored: Vec<Aspect>,
}

/// What two things of the same name can differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Aspect {
    /// Whether it is a file, a directory and so on.
    Type,
    /// The permission bits.
    Mode,
    /// User and group.
    Owner,
    /// When it was modified.
    Time,
    /// Extended attributes.
    Xattrs,
    /// Which other names are the same file.
    Links,
    /// Bytes of a file, target of a link, number of a device.
    Content,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type => "type",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
            Self::Xattrs => "xattrs",
            Self::Links => "links",
            Self::Content => "content",
        })
    }
}

/// One name that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The name, without a slash at the front; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is about.
    pub change: Change,
}

/// In what way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Only the first has it, with so many names, all below it counted.
    Removed(u64),
    /// Only the second has it.
    Added(u64),
    /// Both have it.
    Changed(Vec<Field>),
}

/// One aspect, on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// Which.
    pub aspect: Aspect,
    /// In the first, for people.
    pub before: String,
    /// In the second.
    pub after: String,
}

/// Says what is not the same in two layers, in the order of names. `progress` is told how many
/// bytes of both together were read.
///
/// # Errors
///
/// Either cannot be read to its end.
pub fn diff(
    first: &Path,
    second: &Path,
    options: &DiffOptions,
    progress: impl FnMut(Progress) + Send,
) -> Result<Vec<Difference>, Error> {
    let report = Mutex::new((progress, [(0, 0); 2]));
    let read = |path: &Path, side: usize| {
        read(path, options.whiteouts, &mut |at: Progress| {
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.1[side] = (at.bytes, at.entries);
            let [(bytes, entries), more] = report.1;
            let (bytes, entries) = (bytes + more.0, entries + more.1);
            (report.0)(Progress { bytes, total: None, entries });
        })
    };
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| read(second, 1));
        let first = read(first, 0);
        let second = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, Error>((first?, second?))
    })?;
    Ok(Comparison { trees: [&first, &second], names: [names(&first), names(&second)] }
        .run(&options.ignored))
}

fn read(path: &Path, whiteouts: bool, report: &mut dyn FnMut(Progress)) -> Result<Tree, Error> {
    let mut collector = Collector::new(Digests { buffer: Vec::new() }, whiteouts);
    collector.on_progress(report);
    collector.begin(path.display().to_string());
    let image = |size| Image::open(path, size);
    match detect(path)? {
        Kind::Directory => walk::add(&mut collector, path)?,
        Kind::Tar(_) => {
            let file = File::open(path);
            let file = file.map_err(|cause| Error::Read { path: path.to_owned(), cause })?;
            // Advice that is not taken costs time, and nothing else.
            let _ = fadvise(&file, 0, None, Advice::Sequential);
            archive::add(&mut collector, file)?;
        }
        Kind::Ext4 { size } | Kind::Erofs { size } | Kind::Vhd { payload_size: size } => {
            let image = image(size)?;
            finished::add(&mut collector, &image, |collector, inode| {
                let map = inode.map().map_err(CopyError::Content)?;
                let mut contents = image.contents(inode);
                collector.copy(&mut contents, &map, &inode.attributes, &mut |bytes| bytes)
            })?;
        }
    }
    collector.report();
    let Collected { tree, .. } = collector.finish();
    Ok(tree)
}

/// Keeps a hash of contents, whatever holes they have.
struct Digests {
    buffer: Vec<u8>,
}

impl Contents for Digests {
    fn take(
        &mut self,
        source: &mut dyn ByteSource,
        map: &SparseMap,
        _attributes: &Attributes,
        tick: &mut dyn FnMut(u64),
    ) -> Result<Place, CopyError> {
        let mut digest = Sha256::new();
        let mut spans = Spans::new(map, UNIT)?;
        self.buffer.resize(1 << 20, 0);
        while let Some(span) = spans.next(self.buffer.len() as u64) {
            let bytes = &mut self.buffer[..(span.end - span.start) as usize];
            spans.fill(source, span.start, bytes)?;
            for unit in units(&span) {
                let unit_bytes =
                    &bytes[(unit.start - span.start) as usize..(unit.end - span.start) as usize];
                if !is_zero(unit_bytes) {
                    digest.update(unit.start.to_le_bytes());
                    digest.update(unit_bytes);
                }
            }
            tick(span.end - span.start);
        }
        Ok(Place::Digest(digest.finalize().into()))
    }
}

/// The first name of each node that has several.
fn names(tree: &Tree) -> HashMap<NodeId, Vec<u8>> {
    let counts = tree.link_counts();
    let mut names = HashMap::new();
    let mut pending = vec![(Tree::ROOT, Vec::new())];
    while let Some((directory, path)) = pending.pop() {
        for (name, child) in tree.entries_backwards(directory) {
            let path = joined(&path, name);
            if matches!(tree.node(child).content, Content::Directory(_)) {
                pending.push((child, path));
            } else if counts[child.index()] > 1 {
                let first = names.entry(child).or_insert_with(|| path.clone());
                if path < *first {
                    *first = path;
                }
            }
        }
    }
    names
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

struct Comparison<'t> {
    trees: [&'t Tree; 2],
    names: [HashMap<NodeId, Vec<u8>>; 2],
}

impl Comparison<'_> {
    fn run(&self, ignored: &[Aspect]) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut pending = vec![(Vec::new(), [Some(Tree::ROOT), Some(Tree::ROOT)])];
        while let Some((path, sides)) = pending.pop() {
            let [Some(first), Some(second)] = sides else {
                let change = match sides {
                    [Some(first), _] => Change::Removed(size(self.trees[0], first)),
                    [_, Some(second)] => Change::Added(size(self.trees[1], second)),
                    [None, None] => continue,
                };
                differences.push(Difference { path, change });
                continue;
            };
            let mut fields = self.fields(first, second);
            fields.retain(|field| !ignored.contains(&field.aspect));
            let mut below: BTreeMap<&[u8], [Option<NodeId>; 2]> = BTreeMap::new();
            for (side, id) in [first, second].into_iter().enumerate() {
                for (name, child) in self.trees[side].entries_backwards(id) {
                    below.entry(name).or_default()[side] = Some(child);
                }
            }
            for (name, sides) in below.into_iter().rev() {
                pending.push((joined(&path, name), sides));
            }
            if !fields.is_empty() {
                differences.push(Difference { path, change: Change::Changed(fields) });
            }
        }
        differences
    }

    fn fields(&self, first: NodeId, second: NodeId) -> Vec<Field> {
        let nodes = [self.trees[0].node(first), self.trees[1].node(second)];
        let mut fields = Vec::new();
        let mut compare = |aspect, [before, after]: [String; 2]| {
            if before != after {
                fields.push(Field { aspect, before, after });
            }
        };
        compare(Aspect::Type, nodes.map(|node| kind(&node.content).to_owned()));
        // The mode of a link means nothing.
        if !nodes.iter().any(|node| matches!(node.content, Content::Symlink(_))) {
            compare(Aspect::Mode, nodes.map(|node| format!("{:04o}", node.attributes.mode)));
        }
        let owner = |node: &Node| format!("{}:{}", node.attributes.uid, node.attributes.gid);
        compare(Aspect::Owner, nodes.map(owner));
        compare(Aspect::Time, nodes.map(|node| node.attributes.mtime.decimal()));
        for key in keys(nodes) {
            compare(Aspect::Xattrs, nodes.map(|node| xattr(node, &key)));
        }
        let links = [(0, first), (1, second)].map(|(side, id)| match self.names[side].get(&id) {
            Some(name) => format!("the same as {}", shown(name)),
            None => "one name".to_owned(),
        });
        compare(Aspect::Links, links);
        let same = match (&nodes[0].content, &nodes[1].content) {
            (
                Content::File { place: Place::Digest(first), .. },
                Content::File { place: Place::Digest(second), .. },
            ) => first == second,
            (Content::Symlink(first), Content::Symlink(second)) => first == second,
            _ => true,
        };
        let mut contents = nodes.map(|node| content(&node.content));
        if !same && contents[0] == contents[1] {
            contents[1] += ", others";
        }
        if kind(&nodes[0].content) == kind(&nodes[1].content) {
            compare(Aspect::Content, contents);
        }
        fields
    }
}

/// Names below a node, itself counted.
fn size(tree: &Tree, id: NodeId) -> u64 {
    let mut pending = vec![id];
    let mut count = 0;
    while let Some(id) = pending.pop() {
        count += 1;
        pending.extend(tree.entries_backwards(id).into_iter().map(|(_, child)| child));
    }
    count
}

fn kind(content: &Content) -> &'static str {
    match content {
        Content::Directory(_) => "directory",
        Content::File { .. } => "file",
        Content::Symlink(_) => "symbolic link",
        Content::CharDevice { .. } => "character device",
        Content::BlockDevice { .. } => "block device",
        Content::Fifo => "fifo",
        Content::Socket => "socket",
    }
}

fn content(content: &Content) -> String {
    match content {
        Content::File { size, .. } => format!("{size} bytes"),
        Content::Symlink(target) => shown(target),
        Content::CharDevice { major, minor } | Content::BlockDevice { major, minor } => {
            format!("{major}:{minor}")
        }
        Content::Directory(_) | Content::Fifo | Content::Socket => String::new(),
    }
}

/// A name that is not text is told by its bytes: two of them look alike only if they are.
fn shown(name: &[u8]) -> String {
    str::from_utf8(name).map_or_else(|_| name.escape_ascii().to_string(), str::to_owned)
}

/// Names of attributes that either has, in order.
fn keys(nodes: [&Node; 2]) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = nodes
        .iter()
        .flat_map(|node| node.attributes.xattrs.iter().map(|xattr| xattr.key()))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn xattr(node: &Node, key: &[u8]) -> String {
    let found = node.attributes.xattrs.iter().find(|xattr| xattr.key() == key);
    let name = String::from_utf8_lossy(key);
    match found.map(|xattr| xattr.value()) {
        None => format!("no {name}"),
        Some(value) if value.iter().all(|byte| matches!(byte, b' '..=b'~')) => {
            format!("{name}={:?}", String::from_utf8_lossy(value))
        }
        Some(value) => {
            let digits: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{name}=0x{digits}")
        }
    }
}
