//! The ext4 disk format, as far as images need it. All integers on disk are little-endian.
//!
//! A streamed image is laid out so that nothing has to be known before the last byte of data:
//!
//! | blocks                  | content                                                         |
//! |-------------------------|-----------------------------------------------------------------|
//! | 0                       | superblock at byte 1024; no copies elsewhere (`sparse_super2`)  |
//! | 1 ..                    | group descriptors; what the limit allows is set aside, rest free|
//! | then                    | file contents, in the order of the source                       |
//! | then                    | attribute blocks, long links, extent trees, directories         |
//! | then                    | inode tables of all groups, one after the other                 |
//! | then                    | block bitmaps, inode bitmaps (anywhere, thanks to `flex_bg`)    |

mod ahead;
pub(crate) mod bitmap;
pub(crate) mod directory;
pub(crate) mod extent;
pub(crate) mod finish;
pub(crate) mod geometry;
pub(crate) mod inode;
pub(crate) mod stream;
pub(crate) mod superblock;
pub(crate) mod xattr;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// The same for sums with file sizes.
pub(crate) const BLOCK_U64: u64 = BLOCK as u64;
/// Bits in one bitmap block: the most blocks, and the most inodes, of a group.
pub(crate) const BITS_PER_BLOCK: u32 = 8 * BLOCK as u32;
/// Bytes of an inode.
pub(crate) const INODE_SIZE: usize = 256;
/// Inodes in one block of the inode table.
pub(crate) const INODES_PER_BLOCK: u32 = (BLOCK / INODE_SIZE) as u32;
/// Bytes of a group descriptor.
pub(crate) const DESCRIPTOR_SIZE: usize = 32;
/// Inode of the root directory.
pub(crate) const ROOT_INODE: u32 = 2;
/// First inode that is not reserved.
pub(crate) const FIRST_INODE: u32 = 11;
/// Most names an inode can have.
pub(crate) const LINK_MAX: u32 = 65_000;

/// Writes a `u16` into a record.
pub(crate) fn put16(record: &mut [u8], offset: usize, value: u16) {
    record[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

/// Writes a `u32` into a record.
pub(crate) fn put32(record: &mut [u8], offset: usize, value: u32) {
    record[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}
