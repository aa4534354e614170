//! The levels of a tree, from the blocks' own hashes up to the root.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::hasher::DIGEST;
use super::{Leaves, digest, salted};
use crate::error::Error;
use crate::ext4::{BLOCK, BLOCK_U64};

/// Hashes in one block.
pub(super) const PER_BLOCK: u64 = (BLOCK / DIGEST) as u64;
/// Blocks of the lowest level that are written at a time.
const AT_ONCE: u64 = 64;

/// Blocks of each level, the lowest first.
pub(super) fn levels(data_blocks: u64) -> Vec<u64> {
    let mut levels = vec![data_blocks.div_ceil(PER_BLOCK).max(1)];
    while let Some(&last) = levels.last()
        && last > 1
    {
        levels.push(last.div_ceil(PER_BLOCK));
    }
    levels
}

/// Byte offset of each level, the lowest first, in a tree whose root is at `start`.
pub(super) fn offsets(levels: &[u64], start: u64) -> Vec<u64> {
    let mut next = start;
    let mut offsets: Vec<u64> = levels
        .iter()
        .rev()
        .map(|blocks| {
            let here = next;
            next += blocks * BLOCK_U64;
            here
        })
        .collect();
    offsets.reverse();
    offsets
}

/// Writes the tree at `start` and returns the root hash.
pub(super) fn write(
    leaves: &Leaves,
    data_blocks: u64,
    out: &File,
    start: u64,
) -> Result<[u8; 32], Error> {
    let salted = salted(&leaves.salt);
    let levels = levels(data_blocks);
    let offsets = offsets(&levels, start);
    let mut above = Vec::new();
    let mut first = 0;
    while first < levels[0] {
        let blocks = AT_ONCE.min(levels[0] - first);
        let hashes = (data_blocks - first * PER_BLOCK).min(blocks * PER_BLOCK);
        let mut buffer = vec![0; blocks as usize * BLOCK];
        let (filled, _) = buffer.split_at_mut(hashes as usize * DIGEST);
        leaves.read(first * PER_BLOCK, filled).map_err(Error::Write)?;
        out.write_all_at(&buffer, offsets[0] + first * BLOCK_U64).map_err(Error::Write)?;
        for block in buffer.chunks_exact(BLOCK) {
            above.extend_from_slice(&digest(&salted, block));
        }
        first += blocks;
    }
    // What is left is a 128th of a 128th of the data.
    for (&blocks, &offset) in levels.iter().zip(&offsets).skip(1) {
        above.resize(blocks as usize * BLOCK, 0);
        out.write_all_at(&above, offset).map_err(Error::Write)?;
        above = above.chunks_exact(BLOCK).flat_map(|block| digest(&salted, block)).collect();
    }
    let mut root = [0; DIGEST];
    root.copy_from_slice(&above[..DIGEST]);
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_end_with_a_single_block_and_the_root_comes_first() {
        assert_eq!(levels(2), [1]);
        assert_eq!(levels(128), [1]);
        assert_eq!(levels(129), [2, 1]);
        assert_eq!(levels(128 * 128), [128, 1]);
        assert_eq!(levels(128 * 128 + 1), [129, 2, 1]);
        assert_eq!(offsets(&[129, 2, 1], 4096), [4096 * 4, 4096 * 2, 4096]);
    }
}
