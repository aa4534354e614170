//! Names and attributes of an image to be, in memory.

use std::collections::BTreeMap;

use crate::error::Problem;
use crate::ext4::directory::EntryType;
use crate::ext4::extent::Extent;
use crate::ext4::xattr::Xattr;

/// A moment: seconds since 1970 and the nanoseconds after them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    /// Below 1 000 000 000.
    pub(crate) nanoseconds: u32,
}

impl Timestamp {
    /// As a decimal number of seconds.
    pub(crate) fn decimal(self) -> String {
        let Self { seconds, nanoseconds } = self;
        let text = match seconds < 0 && nanoseconds > 0 {
            // The fraction counts away from zero.
            true => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
            false => format!("{seconds}.{nanoseconds:09}"),
        };
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// What any kind of node has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    /// The twelve permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Vec<Xattr>,
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Content {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    File { size: u64, place: Place },
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// Where the contents of a file are.
#[derive(Debug)]
pub(crate) enum Place {
    /// In these blocks.
    Extents(Box<[Extent]>),
    /// Where an inode of this number says.
    Inode(u64),
    /// Nowhere any more; this is what they were.
    Digest([u8; 32]),
}

impl Content {
    pub(crate) fn entry_type(&self) -> EntryType {
        match self {
            Self::Directory(_) => EntryType::Directory,
            Self::File { .. } => EntryType::File,
            Self::Symlink(_) => EntryType::Symlink,
            Self::CharDevice { .. } => EntryType::CharDevice,
            Self::BlockDevice { .. } => EntryType::BlockDevice,
            Self::Fifo => EntryType::Fifo,
            Self::Socket => EntryType::Socket,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) content: Content,
}

/// Index of a node in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u32);

/// All nodes. A node that is replaced stays, unreachable, until the end.
#[derive(Debug)]
pub(crate) struct Tree(Vec<Node>);

impl Tree {
    pub(crate) const ROOT: NodeId = NodeId(0);

    pub(crate) fn new() -> Self {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        Self(vec![Node { attributes, content: Content::Directory(BTreeMap::new()) }])
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.0.len() as u32).map(NodeId)
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.0[id.index()]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.0[id.index()]
    }

    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        self.0.push(node);
        NodeId(self.0.len() as u32 - 1)
    }

    /// The entry of a directory.
    pub(crate) fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(directory).content {
            Content::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Names in a directory, the last one first.
    pub(crate) fn entries_backwards(&self, directory: NodeId) -> Vec<(&[u8], NodeId)> {
        match &self.node(directory).content {
            Content::Directory(entries) => {
                entries.iter().rev().map(|(name, &id)| (&**name, id)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// How many names each node has, by its index.
    pub(crate) fn link_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.len()];
        let mut pending = vec![Self::ROOT];
        while let Some(directory) = pending.pop() {
            if let Content::Directory(entries) = &self.node(directory).content {
                for &child in entries.values() {
                    counts[child.index()] += 1;
                    pending.push(child);
                }
            }
        }
        counts
    }

    /// Takes a name away.
    pub(crate) fn unlink(&mut self, directory: NodeId, name: &[u8]) {
        if let Content::Directory(entries) = &mut self.node_mut(directory).content {
            entries.remove(name);
        }
    }

    /// Names `child` in a directory, in place of what had that name.
    pub(crate) fn link(&mut self, directory: NodeId, name: &[u8], child: NodeId) {
        if let Content::Directory(entries) = &mut self.node_mut(directory).content {
            entries.insert(name.into(), child);
        }
    }

    /// The directory at `path`. What is missing of it is made in the likeness of its parent.
    pub(crate) fn directory(&mut self, path: &[&[u8]]) -> Result<NodeId, Problem> {
        let mut directory = Self::ROOT;
        for (depth, name) in path.iter().enumerate() {
            let shown = || String::from_utf8_lossy(&path[..=depth].join(&b'/')).into_owned();
            directory = match self.child(directory, name) {
                Some(child) => match self.node(child).content {
                    Content::Directory(_) => child,
                    Content::Symlink(_) => return Err(Problem::ThroughSymlink(shown())),
                    _ => return Err(Problem::ParentNotDirectory(shown())),
                },
                None => {
                    let parent = &self.node(directory).attributes;
                    let attributes = Attributes { xattrs: Vec::new(), ..parent.clone() };
                    let content = Content::Directory(BTreeMap::new());
                    let child = self.add(Node { attributes, content });
                    self.link(directory, name, child);
                    child
                }
            };
        }
        Ok(directory)
    }

    /// The node at `path`, if there is one.
    pub(crate) fn find(&self, path: &[&[u8]]) -> Option<NodeId> {
        path.iter().try_fold(Self::ROOT, |directory, name| self.child(directory, name))
    }
}

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Longest name of an entry in bytes. No system call takes more, and a name makes a directory of
/// each of its parts.
pub(crate) const MAX_PATH: usize = 4096;

/// Splits the name of an entry. `/` at the front, `.` and empty parts mean nothing.
pub(crate) fn split_path(name: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    if name.len() > MAX_PATH {
        return Err(Problem::BadName);
    }
    let mut path = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Problem::ParentEscape),
            _ if part.len() > 255 || part.contains(&0) => return Err(Problem::BadName),
            _ => path.push(part),
        }
    }
    Ok(path)
}
