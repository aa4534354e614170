//! The second half of an image: everything after the file contents.

use std::collections::VecDeque;

use super::bitmap::Bitmap;
use super::directory::Records;
use super::extent::{self, Extent};
use super::geometry::Geometry;
use super::inode::{EXTENTS, Inode};
use super::stream::BlockStream;
use super::superblock::{self, Descriptor, Superblock, Use};
use super::{BITS_PER_BLOCK, BLOCK, BLOCK_U64, FIRST_INODE, LINK_MAX, ROOT_INODE, put32, xattr};
use crate::error::{Error, Problem};
use crate::fingerprint::Fingerprint;
use crate::options::Options;
use crate::tree::{Content, NodeId, Place, Tree};
use crate::verity::Leaves;

/// An error, and the node it is about if there is one.
pub(crate) enum Failure {
    Image(Error),
    Node(Vec<u8>, Problem),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Image(error)
    }
}

/// A file system that is complete.
pub(crate) struct Finished {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) data_bytes: u64,
    pub(crate) uuid: [u8; 16],
    /// Hashes of its blocks, if they were asked for.
    pub(crate) leaves: Option<Leaves>,
}

/// A node that has a number: inode `FIRST_INODE + index`, the root apart.
struct Placed {
    node: NodeId,
    parent: u32,
    links: u32,
    block: [u8; 60],
    /// Blocks of any kind.
    blocks: u64,
    size: u64,
    flags: u32,
    xattr_block: u32,
    xattrs: Box<[u8]>,
}

/// Inodes by number, in the order in which a walk level by level meets them.
struct Numbered {
    placed: Vec<Placed>,
    /// Inode number by node, 0 if it cannot be reached.
    numbers: Vec<u32>,
}

impl Numbered {
    fn inode_of(index: usize) -> u32 {
        if index == 0 { ROOT_INODE } else { FIRST_INODE + index as u32 - 1 }
    }

    fn new(tree: &Tree) -> Self {
        let mut numbered = Self { placed: Vec::new(), numbers: vec![0; tree.len()] };
        numbered.place(Tree::ROOT, ROOT_INODE);
        let mut queue = VecDeque::from([0_usize]);
        while let Some(index) = queue.pop_front() {
            let Content::Directory(entries) = &tree.node(numbered.placed[index].node).content
            else {
                continue;
            };
            let inode = Self::inode_of(index);
            for &child in entries.values() {
                let known = numbered.numbers[child.index()];
                let at = match known {
                    0 => numbered.place(child, inode),
                    _ => (known - FIRST_INODE + 1) as usize,
                };
                numbered.placed[at].links += 1;
                if matches!(tree.node(child).content, Content::Directory(_)) {
                    numbered.placed[index].links += 1;
                    queue.push_back(at);
                }
            }
        }
        for placed in &mut numbered.placed {
            if matches!(tree.node(placed.node).content, Content::Directory(_)) {
                placed.links += 1; // its own "."
            }
        }
        numbered.placed[0].links += 1; // its "..", too
        numbered
    }

    fn place(&mut self, node: NodeId, parent: u32) -> usize {
        let index = self.placed.len();
        self.numbers[node.index()] = Self::inode_of(index);
        self.placed.push(Placed {
            node,
            parent,
            links: 0,
            block: [0; 60],
            blocks: 0,
            size: 0,
            flags: 0,
            xattr_block: 0,
            xattrs: Box::default(),
        });
        index
    }
}

/// Writes the rest of an image whose file contents start at block `data_start`.
pub(crate) fn finish(
    mut stream: BlockStream<'_>,
    tree: &Tree,
    data_start: u32,
    options: &Options,
) -> Result<Finished, Failure> {
    let data_end = stream.position();
    let mut numbered = Numbered::new(tree);
    let mut identity = Fingerprint::new();
    for index in 0..numbered.placed.len() {
        place_blocks(index, &mut numbered, tree, &mut stream, &mut identity)?;
    }
    let limit = (options.max_size / BLOCK_U64).min(u32::MAX.into()) as u32;
    let multiple = (options.size_multiple / BLOCK_U64) as u32;
    let inodes_used = FIRST_INODE - 1 + numbered.placed.len() as u32 - 1;
    let content_end = stream.position();
    let geometry = Geometry::around(content_end, inodes_used, multiple, limit)
        .filter(|geometry| superblock::descriptor_blocks(geometry.groups) < data_start)
        .ok_or_else(|| stream.limit_error())?;

    write_inodes(&numbered, tree, geometry, &mut stream, &mut identity)?;
    let table = content_end;
    let bitmaps = stream.position();
    let unreachable = tree.ids().filter(|id| numbered.numbers[id.index()] == 0);
    let mut freed: Vec<(u32, u32)> = unreachable
        .filter_map(|id| match &tree.node(id).content {
            Content::File { place: Place::Extents(extents), .. } => Some(extents),
            _ => None,
        })
        .flat_map(|extents| extents.iter())
        .map(|extent| (extent.physical, extent.physical + extent.length))
        .collect();
    freed.push((1 + superblock::descriptor_blocks(geometry.groups), data_start));
    freed.push((bitmaps + 2 * geometry.groups, geometry.blocks));

    let mut descriptors = Vec::new();
    let mut free_blocks = 0;
    for group in 0..geometry.groups {
        let bitmap = block_bitmap(geometry, group, &freed);
        stream.append(bitmap.as_bytes())?;
        free_blocks += bitmap.free();
        descriptors.push(Descriptor {
            block_bitmap: bitmaps + group,
            inode_bitmap: bitmaps + geometry.groups + group,
            inode_table: table + group * geometry.table_blocks(),
            free_blocks: bitmap.free() as u16,
            ..Descriptor::default()
        });
    }
    for (group, descriptor) in (0..).zip(&mut descriptors) {
        let first = group * geometry.inodes_per_group;
        let used = inodes_used.saturating_sub(first).min(geometry.inodes_per_group);
        let mut bitmap = Bitmap::new();
        bitmap.set(0, used);
        bitmap.set(geometry.inodes_per_group, BITS_PER_BLOCK);
        descriptor.free_inodes = bitmap.free() as u16;
        stream.append(bitmap.as_bytes())?;
    }
    for (index, placed) in numbered.placed.iter().enumerate() {
        if matches!(tree.node(placed.node).content, Content::Directory(_)) {
            let group = (Numbered::inode_of(index) - 1) / geometry.inodes_per_group;
            descriptors[group as usize].directories += 1;
        }
    }
    stream.flush()?;

    let records: Vec<u8> = descriptors.iter().flat_map(Descriptor::encode).collect();
    stream.write_at(&records, BLOCK_U64)?;
    let uuid = options.uuid.unwrap_or_else(|| identity.uuid());
    let record = Superblock {
        geometry,
        usage: Use::Image { read_only: !options.writable },
        free_blocks,
        free_inodes: geometry.inodes() - inodes_used,
        log_groups_per_flex: geometry.groups.next_power_of_two().ilog2().max(1) as u8,
        uuid,
        label: options.label,
    };
    stream.write_at(&record.encode(), superblock::OFFSET)?;
    let leaves = stream.finish(geometry.blocks)?;
    Ok(Finished {
        bytes: geometry.bytes(),
        inodes: numbered.placed.len() as u64,
        data_bytes: u64::from(data_end - data_start) * BLOCK_U64,
        uuid,
        leaves,
    })
}

/// Writes what one node needs besides its inode and file contents.
fn place_blocks(
    index: usize,
    numbered: &mut Numbered,
    tree: &Tree,
    stream: &mut BlockStream<'_>,
    identity: &mut Fingerprint,
) -> Result<(), Failure> {
    let node = tree.node(numbered.placed[index].node);
    let laid_out = xattr::layout(&node.attributes.xattrs)
        .map_err(|problem| Failure::Node(path_of(index, numbered, tree), problem))?;
    let mut xattr_block = 0;
    if let Some(block) = &laid_out.block {
        identity.add(block);
        xattr_block = stream.append(block)?;
    }
    let mut whole = |bytes: &[u8]| -> Result<(u64, [u8; 60], u64, u32), Error> {
        identity.add(bytes);
        let physical = stream.append(bytes)?;
        let length = bytes.len().div_ceil(BLOCK) as u32;
        let mut extents = Vec::new();
        extent::push(&mut extents, Extent { logical: 0, physical, length });
        let (root, blocks) = extent::write_tree(&extents, stream)?;
        Ok((bytes.len() as u64, root, blocks + u64::from(length), EXTENTS))
    };
    let (size, block, blocks, flags) = match &node.content {
        Content::Directory(entries) => {
            let placed = &numbered.placed[index];
            let mut records = Records::new(Numbered::inode_of(index), placed.parent);
            for (name, &child) in entries {
                let kind = tree.node(child).content.entry_type();
                records.push(name, numbered.numbers[child.index()], kind);
            }
            whole(&records.finish())?
        }
        Content::File { size, place } => {
            let extents = match place {
                Place::Extents(extents) => &extents[..],
                _ => &[],
            };
            let (root, blocks) = extent::write_tree(extents, stream)?;
            let data: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
            (*size, root, blocks + data, EXTENTS)
        }
        Content::Symlink(target) if target.len() < 60 => {
            let mut block = [0; 60];
            block[..target.len()].copy_from_slice(target);
            (target.len() as u64, block, 0, 0)
        }
        Content::Symlink(target) => whole(target)?,
        Content::CharDevice { major, minor } | Content::BlockDevice { major, minor } => {
            (0, device_number(*major, *minor), 0, 0)
        }
        Content::Fifo | Content::Socket => (0, [0; 60], 0, 0),
    };
    let links = numbered.placed[index].links;
    if links > LINK_MAX && !matches!(node.content, Content::Directory(_)) {
        return Err(Failure::Node(path_of(index, numbered, tree), Problem::TooManyLinks));
    }
    let placed = &mut numbered.placed[index];
    (placed.size, placed.block, placed.flags) = (size, block, flags);
    placed.blocks = blocks + u64::from(xattr_block != 0);
    placed.xattr_block = xattr_block;
    placed.xattrs = laid_out.inline.into();
    Ok(())
}

fn write_inodes(
    numbered: &Numbered,
    tree: &Tree,
    geometry: Geometry,
    stream: &mut BlockStream<'_>,
    identity: &mut Fingerprint,
) -> Result<(), Error> {
    let start = stream.position();
    let mut table = Vec::with_capacity(BLOCK);
    for (index, placed) in numbered.placed.iter().enumerate() {
        let node = tree.node(placed.node);
        let inode = Inode {
            mode: node.attributes.mode & 0o7777 | type_bits(&node.content),
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime: node.attributes.mtime,
            size: placed.size,
            // A directory with more subdirectories than can be counted says 1.
            links: if placed.links > LINK_MAX { 1 } else { placed.links as u16 },
            sectors: placed.blocks * 8,
            flags: placed.flags,
            block: &placed.block,
            xattr_block: placed.xattr_block,
            xattrs: &placed.xattrs,
        };
        // Moves on over the reserved inodes only: all others follow one another.
        let slot = (Numbered::inode_of(index) - 1) % super::INODES_PER_BLOCK;
        table.resize(slot as usize * super::INODE_SIZE, 0);
        table.extend_from_slice(&inode.encode());
        if table.len() == BLOCK || index + 1 == numbered.placed.len() {
            identity.add(&table);
            stream.append(&table)?;
            table.clear();
        }
    }
    let end = start + geometry.groups * geometry.table_blocks();
    stream.skip(end - stream.position())
}

fn block_bitmap(geometry: Geometry, group: u32, freed: &[(u32, u32)]) -> Bitmap {
    let mut bitmap = Bitmap::new();
    bitmap.set(0, BITS_PER_BLOCK);
    let start = geometry.start(group);
    let end = start + geometry.length(group);
    for &(from, to) in freed {
        let (from, to) = (from.max(start), to.min(end));
        if from < to {
            bitmap.clear(from - start, to - start);
        }
    }
    bitmap
}

pub(crate) fn type_bits(content: &Content) -> u16 {
    match content {
        Content::Fifo => 0o010_000,
        Content::CharDevice { .. } => 0o020_000,
        Content::Directory(_) => 0o040_000,
        Content::BlockDevice { .. } => 0o060_000,
        Content::File { .. } => 0o100_000,
        Content::Symlink(_) => 0o120_000,
        Content::Socket => 0o140_000,
    }
}

/// Small numbers as ever, larger ones in the second word.
fn device_number(major: u32, minor: u32) -> [u8; 60] {
    let mut block = [0; 60];
    if major < 256 && minor < 256 {
        put32(&mut block, 0, major << 8 | minor);
    } else {
        put32(&mut block, 4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
    }
    block
}

/// The first name of a node, for messages.
fn path_of(index: usize, numbered: &Numbered, tree: &Tree) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let mut index = index;
    while index != 0 {
        let placed = &numbered.placed[index];
        let parent = match placed.parent {
            ROOT_INODE => 0,
            inode => (inode - FIRST_INODE + 1) as usize,
        };
        if let Content::Directory(entries) = &tree.node(numbered.placed[parent].node).content
            && let Some((name, _)) = entries.iter().find(|(_, child)| **child == placed.node)
        {
            parts.push(name);
        }
        index = parent;
    }
    parts.reverse();
    parts.join(&b'/')
}
