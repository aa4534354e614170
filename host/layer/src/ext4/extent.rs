//! Which blocks hold a file: extents, and the tree over them when they are many.
//!
//! A node is a 12-byte header (magic, entries, capacity, depth, generation) and 12-byte entries.
//! The root lives in the inode and has 4 entries; any other node is a block with 340.

use super::stream::BlockStream;
use super::{BLOCK, put16, put32};
use crate::error::Error;

pub(crate) const MAGIC: u16 = 0xf30a;
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK - 12) / 12;
/// Blocks of one extent at most.
const MAX_BLOCKS: u32 = 32_768;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block within the file.
    pub(crate) logical: u32,
    /// First block within the image.
    pub(crate) physical: u32,
    /// Number of blocks.
    pub(crate) length: u32,
}

/// Adds a run at the end, joined to the last one where possible.
pub(crate) fn push(extents: &mut Vec<Extent>, run: Extent) {
    let Extent { mut logical, mut physical, mut length } = run;
    if let Some(last) = extents.last_mut()
        && last.logical + last.length == logical
        && last.physical + last.length == physical
    {
        let joined = length.min(MAX_BLOCKS - last.length);
        last.length += joined;
        (logical, physical, length) = (logical + joined, physical + joined, length - joined);
    }
    while length > 0 {
        let part = length.min(MAX_BLOCKS);
        extents.push(Extent { logical, physical, length: part });
        (logical, physical, length) = (logical + part, physical + part, length - part);
    }
}

/// Writes the tree over `extents`. Returns its root for the inode, and the blocks it took.
pub(crate) fn write_tree(
    extents: &[Extent],
    stream: &mut BlockStream<'_>,
) -> Result<([u8; 60], u64), Error> {
    let mut depth = 0;
    let mut blocks = 0;
    let mut entries: Vec<(u32, [u8; 12])> = extents.iter().map(leaf_entry).collect();
    while entries.len() > IN_INODE {
        let mut above = Vec::with_capacity(entries.len().div_ceil(IN_BLOCK));
        for chunk in entries.chunks(IN_BLOCK) {
            let block = stream.append(&node::<BLOCK>(chunk, IN_BLOCK, depth))?;
            above.push(index_entry(chunk[0].0, block));
            blocks += 1;
        }
        entries = above;
        depth += 1;
    }
    Ok((node::<60>(&entries, IN_INODE, depth), blocks))
}

fn leaf_entry(extent: &Extent) -> (u32, [u8; 12]) {
    let mut entry = [0; 12];
    put32(&mut entry, 0, extent.logical);
    put16(&mut entry, 4, extent.length as u16);
    put32(&mut entry, 8, extent.physical);
    (extent.logical, entry)
}

fn index_entry(logical: u32, block: u32) -> (u32, [u8; 12]) {
    let mut entry = [0; 12];
    put32(&mut entry, 0, logical);
    put32(&mut entry, 4, block);
    (logical, entry)
}

fn node<const SIZE: usize>(entries: &[(u32, [u8; 12])], capacity: usize, depth: u16) -> [u8; SIZE] {
    let mut node = [0; SIZE];
    put16(&mut node, 0, MAGIC);
    put16(&mut node, 2, entries.len() as u16);
    put16(&mut node, 4, capacity as u16);
    put16(&mut node, 6, depth);
    for (slot, (_, entry)) in node[12..].chunks_exact_mut(12).zip(entries) {
        slot.copy_from_slice(entry);
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_runs_become_one_extent_up_to_its_largest_length() {
        let mut extents = Vec::new();
        push(&mut extents, Extent { logical: 0, physical: 100, length: 32_000 });
        push(&mut extents, Extent { logical: 32_000, physical: 32_100, length: 1_000 });
        push(&mut extents, Extent { logical: 40_000, physical: 33_100, length: 1 });
        let expected = [
            Extent { logical: 0, physical: 100, length: 32_768 },
            Extent { logical: 32_768, physical: 32_868, length: 232 },
            Extent { logical: 40_000, physical: 33_100, length: 1 },
        ];
        assert_eq!(extents, expected);
    }
}
