//! The EROFS disk format, as far as images need it. All integers on disk are little-endian.
//!
//! An inode may lie anywhere: its number is its offset in units of 32 bytes. So an image is written
//! as the source comes, contents and inodes side by side, and only names wait for the end:
//!
//! | blocks   | content                                                                  |
//! |----------|--------------------------------------------------------------------------|
//! | 0        | superblock at byte 1024                                                  |
//! | 1        | inode of the root, whose number must be small                            |
//! | then     | runs of file contents, runs of inodes with their attributes and the last |
//! |          | part of their contents, in the order of the source                       |
//! | then     | inodes of directories, blocks of directories                             |
//!
//! Nothing is compressed. A file with holes has a map of chunks, any other is one run of blocks.

mod directory;
pub(crate) mod finish;
mod inode;
pub(crate) mod superblock;
mod writer;
mod xattr;

pub(crate) use writer::Writer;

/// Bytes of which inode numbers count.
pub(crate) const SLOT: usize = 32;
/// Where no block is.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// Block of the root's inode.
pub(crate) const ROOT_BLOCK: u32 = 1;
/// First block of everything else.
pub(crate) const DATA_START: u32 = 2;
