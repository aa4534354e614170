//! The superblock and the group descriptors.

use super::geometry::Geometry;
use super::{BITS_PER_BLOCK, DESCRIPTOR_SIZE, FIRST_INODE, INODE_SIZE, put16, put32};

/// Byte of the image at which the superblock starts.
pub(crate) const OFFSET: u64 = 1024;
/// Its length in bytes.
pub(crate) const SIZE: usize = 1024;
/// `s_magic`, at byte 56 of the superblock.
pub(crate) const MAGIC: u16 = 0xef53;
/// Inode bytes in use beyond the first 128: everything up to the project id.
pub(crate) const EXTRA_INODE_SIZE: u16 = 32;

const COMPAT_EXT_ATTR: u32 = 0x8;
const COMPAT_DIR_INDEX: u32 = 0x20;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const RO_COMPAT_LARGE_FILE: u32 = 0x2;
const RO_COMPAT_HUGE_FILE: u32 = 0x8;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_DIR_NLINK: u32 = 0x20;
const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;
const RO_COMPAT_READONLY: u32 = 0x1000;

/// The tables of the group are not written yet; the kernel makes them up when it needs them.
pub(crate) const INODE_UNINIT: u16 = 1;
/// The same for the block bitmap.
pub(crate) const BLOCK_UNINIT: u16 = 2;
/// The inode table reads as zeros where unused.
pub(crate) const INODE_ZEROED: u16 = 4;

/// What a file system is for; its features follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Filled once. The kernel refuses to write if `read_only`.
    Image { read_only: bool },
    /// Starts empty and is written to.
    Scratch,
}

/// The parts of a superblock that differ between file systems.
#[derive(Debug)]
pub(crate) struct Superblock {
    pub(crate) geometry: Geometry,
    pub(crate) usage: Use,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) log_groups_per_flex: u8,
    pub(crate) uuid: [u8; 16],
    pub(crate) label: [u8; 16],
}

impl Superblock {
    pub(crate) fn encode(&self) -> [u8; SIZE] {
        let mut record = [0; SIZE];
        put32(&mut record, 0x00, self.geometry.inodes());
        put32(&mut record, 0x04, self.geometry.blocks);
        put32(&mut record, 0x0c, self.free_blocks);
        put32(&mut record, 0x10, self.free_inodes);
        put32(&mut record, 0x18, 2); // blocks of 1024 << 2 bytes
        put32(&mut record, 0x1c, 2);
        put32(&mut record, 0x20, self.geometry.blocks_per_group);
        put32(&mut record, 0x24, self.geometry.blocks_per_group);
        put32(&mut record, 0x28, self.geometry.inodes_per_group);
        put16(&mut record, 0x36, u16::MAX); // no check after a number of mounts
        put16(&mut record, 0x38, MAGIC);
        put16(&mut record, 0x3a, 1); // clean
        put16(&mut record, 0x3c, 1); // carry on after errors
        put32(&mut record, 0x4c, 1); // dynamic revision
        put32(&mut record, 0x54, FIRST_INODE);
        put16(&mut record, 0x58, INODE_SIZE as u16);
        let (compat, incompat, ro_compat) = self.features();
        put32(&mut record, 0x5c, compat);
        put32(&mut record, 0x60, incompat);
        put32(&mut record, 0x64, ro_compat);
        record[0x68..0x78].copy_from_slice(&self.uuid);
        record[0x78..0x88].copy_from_slice(&self.label);
        record[0xec..0xfc].copy_from_slice(&self.uuid); // seed of directory hashes
        record[0xfc] = 1; // half MD4
        put32(&mut record, 0x100, 0xc); // mount with user attributes and ACLs
        put16(&mut record, 0x15c, EXTRA_INODE_SIZE);
        put16(&mut record, 0x15e, EXTRA_INODE_SIZE);
        put32(&mut record, 0x160, 2); // directory hashes take characters as unsigned
        record[0x174] = self.log_groups_per_flex;
        record
    }

    fn features(&self) -> (u32, u32, u32) {
        let compat = COMPAT_EXT_ATTR | COMPAT_SPARSE_SUPER2;
        let incompat = INCOMPAT_FILETYPE | INCOMPAT_EXTENTS | INCOMPAT_FLEX_BG;
        let ro_compat = RO_COMPAT_LARGE_FILE
            | RO_COMPAT_HUGE_FILE
            | RO_COMPAT_DIR_NLINK
            | RO_COMPAT_EXTRA_ISIZE;
        match self.usage {
            Use::Image { read_only: false } => (compat, incompat, ro_compat),
            Use::Image { read_only: true } => (compat, incompat, ro_compat | RO_COMPAT_READONLY),
            Use::Scratch => (compat | COMPAT_DIR_INDEX, incompat, ro_compat | RO_COMPAT_GDT_CSUM),
        }
    }
}

/// Where a group keeps its tables, and what is free in it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Descriptor {
    pub(crate) block_bitmap: u32,
    pub(crate) inode_bitmap: u32,
    pub(crate) inode_table: u32,
    pub(crate) free_blocks: u16,
    pub(crate) free_inodes: u16,
    pub(crate) directories: u16,
    pub(crate) flags: u16,
    pub(crate) unused_inodes: u16,
}

impl Descriptor {
    pub(crate) fn encode(&self) -> [u8; DESCRIPTOR_SIZE] {
        let mut record = [0; DESCRIPTOR_SIZE];
        put32(&mut record, 0x00, self.block_bitmap);
        put32(&mut record, 0x04, self.inode_bitmap);
        put32(&mut record, 0x08, self.inode_table);
        put16(&mut record, 0x0c, self.free_blocks);
        put16(&mut record, 0x0e, self.free_inodes);
        put16(&mut record, 0x10, self.directories);
        put16(&mut record, 0x12, self.flags);
        put16(&mut record, 0x1c, self.unused_inodes);
        record
    }

    /// The same with its checksum, which makes the `UNINIT` flags valid.
    pub(crate) fn encode_checked(&self, group: u32, uuid: &[u8; 16]) -> [u8; DESCRIPTOR_SIZE] {
        let mut record = self.encode();
        let sum = crc16(u16::MAX, uuid);
        let sum = crc16(sum, &group.to_le_bytes());
        let sum = crc16(sum, &record[..0x1e]);
        put16(&mut record, 0x1e, sum);
        record
    }
}

fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |mut sum, &byte| {
        sum ^= u16::from(byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xa001 } else { sum >> 1 };
        }
        sum
    })
}

/// Blocks that the descriptors of `groups` groups take.
pub(crate) fn descriptor_blocks(groups: u32) -> u32 {
    const PER_BLOCK: u32 = (super::BLOCK / DESCRIPTOR_SIZE) as u32;
    groups.div_ceil(PER_BLOCK)
}

/// Groups that an image of up to `blocks` blocks can have, all of full size.
pub(crate) fn full_groups(blocks: u32) -> u32 {
    blocks.div_ceil(BITS_PER_BLOCK).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc16_follows_its_check_value() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
