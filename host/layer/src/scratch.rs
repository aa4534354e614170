//! Empty writable file systems, made in milliseconds: only what is not zero is written.
//!
//! There is no journal, for a scratch disk does not outlive its machine. Groups are marked as not
//! yet in use, so that the kernel reads no bitmap before it needs it; the bitmaps and inode tables
//! of sixteen groups lie together in the first of them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::Error;
use crate::ext4::bitmap::Bitmap;
use crate::ext4::directory::{EntryType, Records};
use crate::ext4::extent::{self, Extent};
use crate::ext4::geometry::Geometry;
use crate::ext4::inode::{EXTENTS, Inode};
use crate::ext4::stream::BlockStream;
use crate::ext4::superblock::{self, BLOCK_UNINIT, Descriptor, INODE_UNINIT, INODE_ZEROED, Use};
use crate::ext4::{
    BITS_PER_BLOCK, BLOCK_U64, FIRST_INODE, INODE_SIZE, INODES_PER_BLOCK, ROOT_INODE,
};
use crate::options::Summary;
use crate::tree::Timestamp;

const LOG_FLEX: u8 = 4;
const FLEX: u32 = 1 << LOG_FLEX;
/// A last group needs room beyond its own tables to be worth having.
const LEAST_DATA: u32 = 50;
const SMALL: u64 = 512 << 20;

/// How a scratch file system is made.
#[derive(Debug, Clone)]
pub struct ScratchOptions {
    /// UUID of the file system; a fixed one by default.
    pub uuid: [u8; 16],
    /// Volume label, 16 bytes, padded with zeros.
    pub label: [u8; 16],
    /// One inode for so many bytes. By default 16384, and 4096 below 512 MiB.
    pub bytes_per_inode: Option<u64>,
    /// Permission bits of the root directory.
    pub root_mode: u16,
    /// Whether the disk reads as zeros wherever nothing was written, as a new file does. If not, the
    /// kernel clears inode tables in the background once the disk is mounted.
    pub zeroed: bool,
}

impl Default for ScratchOptions {
    fn default() -> Self {
        Self {
            uuid: *b"\x6c\x69\x6e\x6b\x73\x70\x81\x6e\x80\x73\x63\x72\x61\x74\x63\x68",
            label: [0; 16],
            bytes_per_inode: None,
            root_mode: 0o755,
            zeroed: true,
        }
    }
}

/// Makes an empty file system of `size` bytes in `file`, which is emptied and becomes that long.
///
/// # Errors
///
/// The size is below 256 KiB or above 16 TiB, or the file cannot be written.
pub fn format(file: &File, size: u64, options: &ScratchOptions) -> Result<Summary, Error> {
    if !(256 << 10..=u64::from(u32::MAX) * BLOCK_U64).contains(&size) {
        let text = format!("a scratch disk has 256 KiB to 16 TiB, not {size} bytes");
        return Err(Error::Invalid(text));
    }
    let geometry = divide(size, options);
    let first_free = 1 + superblock::descriptor_blocks(geometry.groups);
    file.set_len(0).map_err(Error::Write)?;
    file.set_len(size).map_err(Error::Write)?;

    let zeroed = if options.zeroed { INODE_ZEROED } else { 0 };
    let mut descriptors = Vec::with_capacity(geometry.groups as usize);
    let mut free_blocks = 0_u64;
    for flex_start in (0..geometry.groups).step_by(FLEX as usize) {
        let members = FLEX.min(geometry.groups - flex_start);
        let bitmaps = geometry.start(flex_start) + if flex_start == 0 { first_free } else { 0 };
        let tables = bitmaps + 2 * members;
        let mut used_end = tables + members * geometry.table_blocks();
        if flex_start == 0 {
            used_end = write_directories(file, geometry, tables, used_end, options)?;
        }
        for group in flex_start..flex_start + members {
            let used = if group == flex_start { used_end - geometry.start(group) } else { 0 };
            let member = group - flex_start;
            let mut descriptor = Descriptor {
                block_bitmap: bitmaps + member,
                inode_bitmap: bitmaps + members + member,
                inode_table: tables + member * geometry.table_blocks(),
                free_blocks: (geometry.length(group) - used) as u16,
                free_inodes: geometry.inodes_per_group as u16,
                flags: zeroed | INODE_UNINIT,
                unused_inodes: geometry.inodes_per_group as u16,
                ..Descriptor::default()
            };
            if group == 0 {
                descriptor.free_inodes -= FIRST_INODE as u16;
                descriptor.unused_inodes -= FIRST_INODE as u16;
                descriptor.directories = 2;
                descriptor.flags = zeroed;
                let mut bitmap = Bitmap::new();
                bitmap.set(0, FIRST_INODE);
                bitmap.set(geometry.inodes_per_group, BITS_PER_BLOCK);
                write_block(file, &bitmap, descriptor.inode_bitmap)?;
            }
            // The last group may be short, which the kernel wants to see written.
            if used > 0 || group + 1 == geometry.groups {
                let mut bitmap = Bitmap::new();
                bitmap.set(0, used);
                bitmap.set(geometry.length(group), BITS_PER_BLOCK);
                write_block(file, &bitmap, descriptor.block_bitmap)?;
            } else {
                descriptor.flags |= BLOCK_UNINIT;
            }
            free_blocks += u64::from(descriptor.free_blocks);
            descriptors.push(descriptor);
        }
    }
    let records = (0..).zip(&descriptors);
    let records = records.flat_map(|(group, record)| record.encode_checked(group, &options.uuid));
    let records: Vec<u8> = records.collect();
    file.write_all_at(&records, BLOCK_U64).map_err(Error::Write)?;
    let superblock = superblock::Superblock {
        geometry,
        usage: Use::Scratch,
        free_blocks: free_blocks as u32,
        free_inodes: geometry.inodes() - FIRST_INODE,
        log_groups_per_flex: LOG_FLEX,
        uuid: options.uuid,
        label: options.label,
    };
    file.write_all_at(&superblock.encode(), superblock::OFFSET).map_err(Error::Write)?;
    Ok(Summary::of_scratch(size, options.uuid))
}

fn divide(size: u64, options: &ScratchOptions) -> Geometry {
    let blocks = (size / BLOCK_U64) as u32;
    let ratio = options.bytes_per_inode.unwrap_or(if size < SMALL { 4096 } else { 16_384 });
    let groups = blocks.div_ceil(BITS_PER_BLOCK);
    let group_bytes = u64::from(blocks.min(BITS_PER_BLOCK)) * BLOCK_U64;
    // Sixteen tables must fit into one group, with room to spare.
    let most = if groups == 1 { group_bytes / 8192 } else { 16_384 };
    let inodes = (group_bytes / ratio.max(1024)).min(most).max(32) as u32;
    let inodes_per_group = inodes.next_multiple_of(INODES_PER_BLOCK).min(BITS_PER_BLOCK);
    let blocks_per_group = BITS_PER_BLOCK;
    let mut geometry = Geometry { blocks, blocks_per_group, inodes_per_group, groups };
    let last = geometry.groups - 1;
    let own = if last.is_multiple_of(FLEX) { 2 + geometry.table_blocks() } else { 0 };
    if last > 0 && geometry.length(last) < own + LEAST_DATA {
        geometry.blocks = geometry.start(last);
        geometry.groups = last;
    }
    geometry
}

/// Writes the root directory and `lost+found`, and returns the end of their blocks.
fn write_directories(
    file: &File,
    geometry: Geometry,
    table: u32,
    start: u32,
    options: &ScratchOptions,
) -> Result<u32, Error> {
    let mut stream = BlockStream::new(file, start, geometry.blocks);
    let mut root = Records::new(ROOT_INODE, ROOT_INODE);
    root.push(b"lost+found", FIRST_INODE, EntryType::Directory);
    let found = Records::new(FIRST_INODE, ROOT_INODE);
    let directories = [(ROOT_INODE, options.root_mode, 3, root), (FIRST_INODE, 0o700, 2, found)];
    for (number, mode, links, records) in directories {
        let bytes = records.finish();
        let physical = stream.append(&bytes)?;
        let mut extents = Vec::new();
        extent::push(&mut extents, Extent { logical: 0, physical, length: 1 });
        let (block, _) = extent::write_tree(&extents, &mut stream)?;
        let inode = Inode {
            mode: 0o040_000 | mode & 0o7777,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size: bytes.len() as u64,
            links,
            sectors: 8,
            flags: EXTENTS,
            block: &block,
            xattr_block: 0,
            xattrs: &[],
        };
        let offset = u64::from(table) * BLOCK_U64 + u64::from(number - 1) * INODE_SIZE as u64;
        stream.write_at(&inode.encode(), offset)?;
    }
    stream.flush()?;
    Ok(stream.position())
}

fn write_block(file: &File, bitmap: &Bitmap, block: u32) -> Result<(), Error> {
    file.write_all_at(bitmap.as_bytes(), u64::from(block) * BLOCK_U64).map_err(Error::Write)
}
