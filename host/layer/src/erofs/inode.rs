//! The inode record, in its long form of 64 bytes: the short one has no time of its own.

use crate::ext4::{put16, put32};
use crate::tree::Attributes;

/// Bytes of an inode.
pub(super) const INODE: usize = 64;
/// Offset of the number of links, for those that are found out later.
pub(super) const LINKS: u64 = 44;

/// How the contents are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Layout {
    /// All in blocks.
    Plain = 0,
    /// The last part behind the inode.
    Inline = 2,
    /// By a map behind the inode.
    Chunks = 4,
}

/// Everything an inode says.
pub(super) struct Inode<'a> {
    pub(super) layout: Layout,
    /// Type bits; the permissions are in the attributes.
    pub(super) kind: u16,
    pub(super) attributes: &'a Attributes,
    /// Encoded attributes; may be empty.
    pub(super) xattrs: &'a [u8],
    pub(super) size: u64,
    /// First block, device number, or format of the map.
    pub(super) union: u32,
    pub(super) number: u32,
    pub(super) links: u32,
}

impl Inode<'_> {
    /// The record and the attributes behind it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut record = vec![0; INODE];
        put16(&mut record, 0, 1 | (self.layout as u16) << 1);
        put16(&mut record, 2, super::xattr::count(self.xattrs));
        put16(&mut record, 4, self.attributes.mode & 0o7777 | self.kind);
        record[8..16].copy_from_slice(&self.size.to_le_bytes());
        put32(&mut record, 16, self.union);
        put32(&mut record, 20, self.number);
        put32(&mut record, 24, self.attributes.uid);
        put32(&mut record, 28, self.attributes.gid);
        record[32..40].copy_from_slice(&self.attributes.mtime.seconds.to_le_bytes());
        put32(&mut record, 40, self.attributes.mtime.nanoseconds);
        put32(&mut record, LINKS as usize, self.links);
        record.extend_from_slice(self.xattrs);
        record
    }
}
