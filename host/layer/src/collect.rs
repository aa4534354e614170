//! Puts the entries of a source into a tree, whatever the source is and whatever the tree is for.

use std::collections::{BTreeMap, HashSet};
use std::io;

use crate::copy::{ByteSource, CopyError};
use crate::error::{Error, Problem};
use crate::ext4::xattr::Xattr;
use crate::options::Progress;
use crate::sparse::SparseMap;
use crate::tree::{Attributes, Content, Node, NodeId, Place, Tree};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const BOOKKEEPING: &[u8] = b".wh..wh.";
/// Bytes between two reports of progress within a file.
const REPORT_EVERY: u64 = 1 << 20;

/// What becomes of the contents of files.
pub(crate) trait Contents {
    /// Takes those of one file. `tick` is told how many bytes were read.
    fn take(
        &mut self,
        source: &mut dyn ByteSource,
        map: &SparseMap,
        attributes: &Attributes,
        tick: &mut dyn FnMut(u64),
    ) -> Result<Place, CopyError>;
}

/// A tree that grows by one source after the other.
pub(crate) struct Collector<'a, C> {
    pub(crate) contents: C,
    tree: Tree,
    /// Whether the whiteouts of OCI layers are such, and no names.
    whiteouts: bool,
    origin: String,
    opaque: HashSet<NodeId>,
    hidden: HashSet<NodeId>,
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

/// A tree that is complete.
pub(crate) struct Collected<C> {
    pub(crate) contents: C,
    pub(crate) tree: Tree,
    /// The source that was added last.
    pub(crate) origin: String,
    pub(crate) skipped_xattrs: u64,
}

impl<'a, C> Collector<'a, C> {
    pub(crate) fn new(contents: C, whiteouts: bool) -> Self {
        let progress = Progress { bytes: 0, total: None, entries: 0 };
        Self {
            contents,
            tree: Tree::new(),
            whiteouts,
            origin: String::new(),
            opaque: HashSet::new(),
            hidden: HashSet::new(),
            skipped_xattrs: 0,
            meter: Meter { report: Box::new(|_| {}), progress, unreported: 0 },
        }
    }

    pub(crate) fn on_progress(&mut self, report: impl FnMut(Progress) + 'a) {
        self.meter.report = Box::new(report);
    }

    /// How many bytes there will be.
    pub(crate) fn expect(&mut self, total: u64) {
        self.meter.progress.total = Some(total);
    }

    /// Begins with a source of that name.
    pub(crate) fn begin(&mut self, origin: String) {
        self.origin = origin;
    }

    /// Tells how far it has come.
    pub(crate) fn report(&mut self) {
        (self.meter.report)(self.meter.progress);
    }

    /// Ends it: directories that hide what is below them are marked.
    pub(crate) fn finish(mut self) -> Collected<C> {
        for id in self.opaque.drain() {
            let mark = Xattr::overlay_opaque();
            let xattrs = &mut self.tree.node_mut(id).attributes.xattrs;
            xattrs.retain(|xattr| !xattr.same_name(&mark));
            xattrs.push(mark);
        }
        let Self { contents, tree, origin, skipped_xattrs, .. } = self;
        Collected { contents, tree, origin, skipped_xattrs }
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
        Error::entry(&self.origin, path, problem)
    }

    pub(crate) fn archive_error(&self, offset: u64, cause: io::Error) -> Error {
        Error::Archive { archive: self.origin.clone(), offset, cause }
    }

    /// Puts a new node into a directory. `None` if it was a mark and not an entry.
    pub(crate) fn insert(
        &mut self,
        directory: NodeId,
        name: &[u8],
        node: Node,
    ) -> Result<Option<NodeId>, Problem> {
        if self.whiteouts && name.starts_with(WHITEOUT) {
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
        if is_directory && old.is_some_and(|old| self.hidden.contains(&old)) {
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
        if self.whiteouts && name.starts_with(WHITEOUT) {
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
                self.hidden.insert(child);
            }
        }
        Ok(())
    }
}

impl<C: Contents> Collector<'_, C> {
    /// Takes in the contents of a file. `count` makes of the bytes copied those to be reported.
    pub(crate) fn copy(
        &mut self,
        source: &mut dyn ByteSource,
        map: &SparseMap,
        attributes: &Attributes,
        count: &mut dyn FnMut(u64) -> u64,
    ) -> Result<Content, CopyError> {
        let meter = &mut self.meter;
        let mut tick = |bytes| meter.read(count(bytes));
        let place = self.contents.take(source, map, attributes, &mut tick)?;
        Ok(Content::File { size: map.size, place })
    }
}

/// The name that says in an OCI layer that one below is hidden.
pub(crate) fn whiteout_of(name: &[u8]) -> Vec<u8> {
    [WHITEOUT, name].concat()
}

/// The name that says in an OCI layer that its directory hides all below.
pub(crate) fn opaque_name() -> &'static [u8] {
    OPAQUE
}

/// An empty directory.
pub(crate) fn no_entries() -> Content {
    Content::Directory(BTreeMap::new())
}
