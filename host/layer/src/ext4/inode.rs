//! The inode record.

use super::superblock::EXTRA_INODE_SIZE;
use super::{INODE_SIZE, put16, put32};
use crate::tree::Timestamp;

/// The file's blocks are given by extents.
pub(crate) const EXTENTS: u32 = 0x8_0000;

/// Bytes for attributes inside the inode.
pub(crate) const XATTR_ROOM: usize = INODE_SIZE - XATTR_OFFSET;
const XATTR_OFFSET: usize = 128 + EXTRA_INODE_SIZE as usize;

/// Everything an inode says.
#[derive(Debug)]
pub(crate) struct Inode<'a> {
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) size: u64,
    pub(crate) links: u16,
    /// Blocks of 512 bytes, those of trees and attributes included.
    pub(crate) sectors: u64,
    pub(crate) flags: u32,
    /// Root of the extents, target of a short link, or device number.
    pub(crate) block: &'a [u8; 60],
    pub(crate) xattr_block: u32,
    /// At most [`XATTR_ROOM`] bytes.
    pub(crate) xattrs: &'a [u8],
}

impl Inode<'_> {
    pub(crate) fn encode(&self) -> [u8; INODE_SIZE] {
        let mut record = [0; INODE_SIZE];
        let (seconds, extra) = self.mtime.encode();
        put16(&mut record, 0x00, self.mode);
        put16(&mut record, 0x02, self.uid as u16);
        put32(&mut record, 0x04, self.size as u32);
        for offset in [0x08, 0x0c, 0x10, 0x90] {
            put32(&mut record, offset, seconds);
        }
        put16(&mut record, 0x18, self.gid as u16);
        put16(&mut record, 0x1a, self.links);
        put32(&mut record, 0x1c, self.sectors as u32);
        put32(&mut record, 0x20, self.flags);
        record[0x28..0x64].copy_from_slice(self.block);
        put32(&mut record, 0x68, self.xattr_block);
        put32(&mut record, 0x6c, (self.size >> 32) as u32);
        put16(&mut record, 0x74, (self.sectors >> 32) as u16);
        put16(&mut record, 0x78, (self.uid >> 16) as u16);
        put16(&mut record, 0x7a, (self.gid >> 16) as u16);
        put16(&mut record, 0x80, EXTRA_INODE_SIZE);
        for offset in [0x84, 0x88, 0x8c, 0x94] {
            put32(&mut record, offset, extra);
        }
        record[XATTR_OFFSET..XATTR_OFFSET + self.xattrs.len()].copy_from_slice(self.xattrs);
        record
    }
}

impl Timestamp {
    /// The low 32 bits of the seconds; two more bits of them below the nanoseconds.
    fn encode(self) -> (u32, u32) {
        const LAST: i64 = 0x3_7fff_ffff;
        let seconds = self.seconds.clamp(i32::MIN.into(), LAST);
        let low = seconds as i32;
        let epoch = ((seconds - i64::from(low)) >> 32) as u32 & 3;
        (low as u32, epoch | self.nanoseconds << 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038_keep_their_34_bits() {
        let encode = |seconds| Timestamp { seconds, nanoseconds: 5 }.encode();
        assert_eq!(encode(-1), (0xffff_ffff, 5 << 2));
        assert_eq!(encode(0x8000_0000), (0x8000_0000, 1 | 5 << 2));
        assert_eq!(encode(0x1_0000_0000), (0, 1 | 5 << 2));
        assert_eq!(encode(i64::MAX), (0x7fff_ffff, 3 | 5 << 2));
        assert_eq!(encode(i64::MIN), (0x8000_0000, 5 << 2));
    }
}
