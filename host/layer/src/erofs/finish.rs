//! The end of an image: links, devices and the like, directories, the superblock.

use std::collections::VecDeque;

use super::directory::{self, Entry};
use super::inode::{Inode, LINKS, Layout};
use super::superblock::{self, Superblock};
use super::writer::position;
use super::{NOWHERE, ROOT_BLOCK, SLOT, Writer, xattr};
use crate::error::{Error, Problem};
use crate::ext4::directory::EntryType;
use crate::ext4::finish::{Failure, Finished, type_bits};
use crate::ext4::stream::BlockStream;
use crate::ext4::{BLOCK, BLOCK_U64};
use crate::options::Options;
use crate::tree::{Content, NodeId, Place, Tree};

/// A directory on its way into the image.
struct Directory {
    node: NodeId,
    parent: usize,
    inode: u64,
    links: u32,
    xattrs: Vec<u8>,
    /// Bytes of its contents.
    length: u64,
    /// Whether the last part of them is behind the inode.
    inline: bool,
    /// First block of the others.
    block: u32,
}

impl Directory {
    fn blocks(&self) -> u32 {
        let whole = self.length / BLOCK_U64;
        (if self.inline { whole } else { self.length.div_ceil(BLOCK_U64) }) as u32
    }

    fn tail(&self) -> usize {
        if self.inline { (self.length % BLOCK_U64) as usize } else { 0 }
    }
}

struct Finish<'t, 's> {
    tree: &'t Tree,
    stream: BlockStream<'s>,
    writer: Writer,
    /// Number of each node's inode, 0 if it has none yet.
    inodes: Vec<u64>,
    links: Vec<u32>,
    directories: Vec<Directory>,
    /// Which of them a node is.
    indices: Vec<usize>,
}

/// Writes the rest of an image.
pub(crate) fn finish(
    stream: BlockStream<'_>,
    writer: Writer,
    tree: &Tree,
    options: &Options,
) -> Result<Finished, Failure> {
    let (inodes, links) = (vec![0; tree.len()], vec![0; tree.len()]);
    let indices = vec![0; tree.len()];
    let directories = Vec::new();
    let mut finish = Finish { tree, stream, writer, inodes, links, directories, indices };
    finish.count_links()?;
    finish.write_others()?;
    let (writer, stream) = (&mut finish.writer, &mut finish.stream);
    stream.flush()?;
    writer.close_last(stream)?;
    finish.mend_links()?;
    let data_end = finish.stream.position();
    finish.place_directories()?;
    finish.write_directories()?;

    let Finish { mut stream, writer, .. } = finish;
    let multiple = (options.size_multiple / BLOCK_U64) as u32;
    let blocks = stream.position().checked_next_multiple_of(multiple);
    let blocks = blocks.filter(|&blocks| u64::from(blocks) * BLOCK_U64 <= options.max_size);
    let blocks = blocks.ok_or_else(|| stream.limit_error())?;
    stream.flush()?;
    let uuid = options.uuid.unwrap_or_else(|| writer.identity.uuid());
    let inodes = u64::from(writer.count());
    let label = options.label;
    let record = Superblock { inodes, blocks, uuid, label, chunked: writer.chunked };
    stream.write_at(&record.encode(), superblock::OFFSET)?;
    let leaves = stream.finish(blocks)?;
    Ok(Finished {
        bytes: u64::from(blocks) * BLOCK_U64,
        inodes,
        data_bytes: u64::from(data_end - super::DATA_START) * BLOCK_U64,
        uuid,
        leaves,
    })
}

impl Finish<'_, '_> {
    /// Walks the tree level by level: how many names has each node, and which directories are there?
    fn count_links(&mut self) -> Result<(), Failure> {
        let mut queue = VecDeque::from([(Tree::ROOT, 0, Vec::new())]);
        while let Some((node, parent, path)) = queue.pop_front() {
            let Content::Directory(entries) = &self.tree.node(node).content else { continue };
            let index = self.directories.len();
            self.indices[node.index()] = index;
            let mut links = 2;
            for (name, &child) in entries {
                self.links[child.index()] += 1;
                if matches!(self.tree.node(child).content, Content::Directory(_)) {
                    links += 1;
                    let path = [&path, &b"/"[..], name].concat();
                    queue.push_back((child, index, path));
                }
            }
            let encoded = xattr::encode(&self.tree.node(node).attributes.xattrs);
            let xattrs = encoded.map_err(|problem| Failure::Node(path.clone(), problem))?;
            let names = merged(entries.keys().map(|name| &**name));
            let length = directory::length(names.iter().copied());
            let head = super::inode::INODE + xattrs.len();
            if node == Tree::ROOT && head > BLOCK {
                return Err(Failure::Node(path, Problem::XattrsTooLarge));
            }
            let inline = head + (length % BLOCK_U64) as usize <= BLOCK;
            let (inode, block) = (0, NOWHERE);
            self.directories.push(Directory {
                node,
                parent,
                inode,
                links,
                xattrs,
                length,
                inline,
                block,
            });
        }
        Ok(())
    }

    /// Symbolic links, devices, pipes and sockets.
    fn write_others(&mut self) -> Result<(), Failure> {
        for id in self.tree.ids() {
            let links = self.links[id.index()];
            let node = self.tree.node(id);
            if links == 0 {
                continue;
            }
            let mut inode = Inode {
                layout: Layout::Plain,
                kind: type_bits(&node.content),
                attributes: &node.attributes,
                xattrs: &[],
                size: 0,
                union: NOWHERE,
                number: 0,
                links,
            };
            let mut tail: &[u8] = &[];
            match &node.content {
                Content::Directory(_) => continue,
                Content::File { place: Place::Inode(number), .. } => {
                    self.inodes[id.index()] = *number;
                    continue;
                }
                Content::File { .. } | Content::Fifo | Content::Socket => {}
                Content::Symlink(target) => {
                    inode.size = target.len() as u64;
                    tail = target;
                }
                Content::CharDevice { major, minor } | Content::BlockDevice { major, minor } => {
                    inode.union = minor & 0xff | major << 8 | (minor & !0xff) << 12;
                }
            }
            inode.number = self.writer.next_number();
            let named = |problem| Failure::Node(first_name(self.tree, id), problem);
            let xattrs = xattr::encode(&node.attributes.xattrs).map_err(named)?;
            inode.xattrs = &xattrs;
            if !tail.is_empty() && super::inode::INODE + xattrs.len() + tail.len() <= BLOCK {
                inode.layout = Layout::Inline;
            } else if !tail.is_empty() {
                inode.union = self.stream.append(tail)?;
                tail = &[];
            }
            let number = self.writer.place(&mut self.stream, &inode.encode(), tail)?;
            self.inodes[id.index()] = number;
        }
        Ok(())
    }

    /// Files were written when they had one name.
    fn mend_links(&mut self) -> Result<(), Error> {
        for (&links, &inode) in self.links.iter().zip(&self.inodes).filter(|(links, _)| **links > 1)
        {
            if inode != 0 {
                self.stream.write_at(&links.to_le_bytes(), inode * SLOT as u64 + LINKS)?;
            }
        }
        Ok(())
    }

    /// Gives directories their places, all of which are known before the first is written.
    fn place_directories(&mut self) -> Result<(), Error> {
        let start = self.stream.position();
        let mut used = 0;
        for (index, directory) in self.directories.iter_mut().enumerate() {
            let head = super::inode::INODE + directory.xattrs.len();
            if index == 0 {
                directory.inode = u64::from(ROOT_BLOCK) * BLOCK_U64 / SLOT as u64;
            } else {
                let here = position(used, head, directory.tail());
                directory.inode = (u64::from(start) * BLOCK_U64 + here as u64) / SLOT as u64;
                used = here + head + directory.tail();
            }
            self.inodes[directory.node.index()] = directory.inode;
        }
        let mut block = u64::from(start) + used.div_ceil(BLOCK) as u64;
        for directory in &mut self.directories {
            if directory.blocks() > 0 {
                directory.block = u32::try_from(block).map_err(|_| self.stream.limit_error())?;
                block += u64::from(directory.blocks());
            }
        }
        Ok(())
    }

    fn write_directories(&mut self) -> Result<(), Error> {
        let mut pending = Vec::new();
        let mut used = 0;
        for index in 0..self.directories.len() {
            let directory = &self.directories[index];
            let number = if index == 0 { 1 } else { self.writer.next_number() };
            let inode = Inode {
                layout: if directory.tail() > 0 { Layout::Inline } else { Layout::Plain },
                kind: 0o040_000,
                attributes: &self.tree.node(directory.node).attributes,
                xattrs: &directory.xattrs,
                size: directory.length,
                union: directory.block,
                number,
                links: directory.links,
            };
            let mut bytes = inode.encode();
            let head = bytes.len();
            let contents = self.contents(directory);
            self.writer.identity.add(&bytes);
            self.writer.identity.add(&contents);
            bytes.extend_from_slice(&contents[contents.len() - directory.tail()..]);
            if index == 0 {
                bytes.resize(BLOCK, 0);
                self.stream.write_skipped(&bytes, ROOT_BLOCK)?;
                continue;
            }
            let start = position(used, head, directory.tail());
            pending.resize(pending.len() + start - used, 0);
            pending.extend_from_slice(&bytes);
            used = start + bytes.len();
            let whole = pending.len() / BLOCK * BLOCK;
            if whole >= 1 << 20 {
                self.stream.append(&pending[..whole])?;
                pending.drain(..whole);
            }
        }
        self.stream.append(&pending)?;
        for directory in self.directories.iter().filter(|directory| directory.blocks() > 0) {
            let contents = self.contents(directory);
            self.stream.append(&contents[..contents.len() - directory.tail()])?;
        }
        Ok(())
    }

    fn contents(&self, directory: &Directory) -> Vec<u8> {
        let Content::Directory(entries) = &self.tree.node(directory.node).content else {
            return Vec::new();
        };
        let names = merged(entries.keys().map(|name| &**name));
        let entry = |name: &'_ [u8]| match (entries.get(name), name) {
            (Some(&child), _) => {
                (self.inodes[child.index()], self.tree.node(child).content.entry_type())
            }
            (None, b".") => (directory.inode, EntryType::Directory),
            (None, _) => (self.directories[directory.parent].inode, EntryType::Directory),
        };
        let entries: Vec<Entry<'_>> = names
            .into_iter()
            .map(|name| {
                let (inode, kind) = entry(name);
                (name, inode, kind)
            })
            .collect();
        directory::encode(&entries)
    }
}

/// Names in order, `.` and `..` among them.
fn merged<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> = names.collect();
    for dots in [&b"."[..], b".."] {
        let at = names.partition_point(|name| *name < dots);
        names.insert(at, dots);
    }
    names
}

/// Some name of a node, for messages.
fn first_name(tree: &Tree, id: NodeId) -> Vec<u8> {
    let named = tree.ids().find_map(|directory| match &tree.node(directory).content {
        Content::Directory(entries) => {
            entries.iter().find(|(_, child)| **child == id).map(|(name, _)| name.to_vec())
        }
        _ => None,
    });
    named.unwrap_or_default()
}
