//! How blocks and inodes divide into groups.

use super::{BITS_PER_BLOCK, BLOCK_U64, INODES_PER_BLOCK};

/// The division of a file system into groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) blocks: u32,
    pub(crate) blocks_per_group: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) groups: u32,
}

impl Geometry {
    /// The smallest file system with `content` blocks in use, room behind them for its tables and
    /// bitmaps, and `inodes` inodes. `None` if it would have more than `limit` blocks.
    ///
    /// Many small files need more groups than their blocks do, for a group has 32768 inodes at
    /// most. The groups then get fewer blocks each, so that the image does not grow.
    pub(crate) fn around(content: u32, inodes: u32, multiple: u32, limit: u32) -> Option<Self> {
        let mut groups = inodes.div_ceil(BITS_PER_BLOCK).max(1);
        loop {
            let per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            let tables = u64::from(groups) * u64::from(per_group / INODES_PER_BLOCK + 2);
            let mut blocks = (u64::from(content) + tables).next_multiple_of(multiple.into());
            if blocks > u64::from(limit) {
                return None;
            }
            let needed = blocks.div_ceil(BITS_PER_BLOCK.into()) as u32;
            if needed > groups {
                groups = needed;
                continue;
            }
            let mut blocks_per_group = BITS_PER_BLOCK;
            if needed < groups {
                blocks_per_group = (blocks.div_ceil(groups.into()) as u32).next_multiple_of(8);
                blocks_per_group = blocks_per_group.clamp(256, BITS_PER_BLOCK);
                let least = u64::from(blocks_per_group) * u64::from(groups - 1) + 1;
                blocks = blocks.max(least.next_multiple_of(multiple.into()));
                if blocks > u64::from(limit)
                    || blocks.div_ceil(blocks_per_group.into()) != u64::from(groups)
                {
                    groups += 1;
                    continue;
                }
            }
            let blocks = blocks as u32;
            return Some(Self { blocks, blocks_per_group, inodes_per_group: per_group, groups });
        }
    }

    pub(crate) fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    /// Blocks of one group's inode table.
    pub(crate) fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// First block of a group.
    pub(crate) fn start(&self, group: u32) -> u32 {
        group * self.blocks_per_group
    }

    /// Blocks of a group; the last one may be short.
    pub(crate) fn length(&self, group: u32) -> u32 {
        self.blocks_per_group.min(self.blocks - self.start(group))
    }

    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_U64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn many_inodes_shrink_the_groups_instead_of_growing_the_image() {
        let geometry = Geometry::around(10_000, 1_000_000, 1, u32::MAX).unwrap();
        assert!(geometry.groups >= 31);
        assert!(geometry.blocks < 10_000 + 1_000_000 / 16 + 1_000, "{geometry:?}");
    }

    proptest! {
        #[test]
        fn everything_fits_and_the_groups_cover_the_blocks(
            content in 64u32..1 << 28, inodes in 11u32..1 << 24, multiple in 1u32..512,
        ) {
            let found = Geometry::around(content, inodes, multiple, u32::MAX);
            let geometry = found.expect("far below the limit");
            let tables = geometry.groups * (geometry.table_blocks() + 2);
            prop_assert!(geometry.blocks >= content + tables);
            prop_assert!(geometry.inodes() >= inodes);
            prop_assert!(geometry.inodes_per_group <= BITS_PER_BLOCK);
            prop_assert!(geometry.blocks_per_group <= BITS_PER_BLOCK);
            prop_assert_eq!(geometry.blocks.div_ceil(geometry.blocks_per_group), geometry.groups);
            prop_assert_eq!(geometry.blocks % multiple, 0);
        }
    }
}
