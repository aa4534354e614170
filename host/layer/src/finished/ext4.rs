//! ext4 as others write it too: with 64-bit block numbers, any size of a block, contents in the
//! inode, indexed directories. Not with a journal to be replayed.

use super::disk::{Disk, le16, le32};
use super::{Contents, Inode, Kind, Part, Read, device_number, push_part, xattr};
use crate::ext4::inode::EXTENTS;
use crate::ext4::superblock;
use crate::ext4::xattr::MAGIC as XATTR_MAGIC;
use crate::ext4::{extent, xattr as stored};
use crate::tree::{Attributes, Timestamp};

const INLINE: u32 = 0x1000_0000;
const ENCRYPTED: u32 = 0x800;

const RECOVER: u32 = 0x4;
const WIDE: u32 = 0x80;
/// Incompatible features that change nothing here, or are known: file types in directories,
/// extents, wide numbers, protection against two mounts, flexible groups, values in inodes, seeds
/// of checksums, large directories, contents in inodes, names without case.
const KNOWN: u32 = 0x2 | 0x40 | WIDE | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x2_0000;

/// Levels of a tree of extents at most.
const MAX_DEPTH: u16 = 5;

/// What the superblock says.
pub(super) struct Ext4 {
    block: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: u64,
    descriptors: u64,
    descriptor_size: u64,
}

impl Ext4 {
    pub(super) fn open(disk: &Disk) -> Read<Self> {
        let record: [u8; superblock::SIZE] = disk.bytes(superblock::OFFSET)?;
        let features = le32(&record, 0x60);
        if features & RECOVER != 0 {
            return Err("its journal has to be replayed first: mount it once, or run e2fsck on it"
                .to_owned());
        }
        if features & !KNOWN != 0 {
            return Err(format!("it has the unknown features {:#x}", features & !KNOWN));
        }
        let shift = le32(&record, 0x18);
        if le16(&record, 0x38) != superblock::MAGIC || shift > 6 {
            return Err("it has no ext4 superblock".to_owned());
        }
        let block = 1024 << shift;
        let wide = features & WIDE != 0;
        let high = if wide { le32(&record, 0x150) } else { 0 };
        let size = |value: u16, least: u16| match value.is_power_of_two() && value >= least {
            true => Ok(u64::from(value)),
            false => Err(format!("its superblock says {value} bytes where {least} is the least")),
        };
        // The first revision had no such field.
        let old = le32(&record, 0x4c) == 0;
        let found = Self {
            block,
            blocks: u64::from(high) << 32 | u64::from(le32(&record, 4)),
            inodes: le32(&record, 0),
            inodes_per_group: le32(&record, 0x28),
            inode_size: if old { 128 } else { size(le16(&record, 0x58), 128)? },
            descriptors: (u64::from(le32(&record, 0x14)) + 1) * block,
            descriptor_size: if wide { size(le16(&record, 0xfe), 64)? } else { 32 },
        };
        if found.inodes_per_group == 0 || found.inode_size > block {
            return Err("its superblock makes no sense".to_owned());
        }
        Ok(found)
    }

    pub(super) fn block_size(&self) -> usize {
        self.block as usize
    }

    /// Byte of a block, which is one of this file system.
    fn place(&self, block: u64, blocks: u64) -> Read<u64> {
        match block.checked_add(blocks).is_some_and(|end| end <= self.blocks) {
            true => Ok(block * self.block),
            false => Err(format!("block {block} is beyond the {} there are", self.blocks)),
        }
    }

    pub(super) fn inode(&self, disk: &Disk, number: u64) -> Read<Inode> {
        let index = number.checked_sub(1).filter(|&index| index < self.inodes.into());
        let index = index.ok_or_else(|| format!("there are only {}", self.inodes))?;
        let per_group = u64::from(self.inodes_per_group);
        let descriptor = self.descriptors + index / per_group * self.descriptor_size;
        let mut table = u64::from(le32(&disk.bytes::<4>(descriptor + 8)?, 0));
        if self.descriptor_size >= 64 {
            table |= u64::from(le32(&disk.bytes::<4>(descriptor + 0x28)?, 0)) << 32;
        }
        let offset = self.place(table, 0)? + index % per_group * self.inode_size;
        let record = disk.vec(offset, self.inode_size as usize)?;
        let flags = le32(&record, 0x20);
        if flags & ENCRYPTED != 0 {
            return Err("it is encrypted".to_owned());
        }
        let area = &record[0x28..0x64];
        let mode = le16(&record, 0);
        let kind = Kind::new(mode, || match le32(area, 0) {
            0 => device_number(le32(area, 4)),
            old => (old >> 8 & 0xff, old & 0xff),
        })?;
        let extra = if record.len() > 128 { usize::from(le16(&record, 0x80)) } else { 0 };
        let mut foreign_xattrs = 0;
        let (mut xattrs, mut inlined) = (Vec::new(), Vec::new());
        let mut take = |prefix: u8, name: &[u8], value: &[u8]| -> Read<()> {
            disk.charge((name.len() + value.len()) as u64)?;
            if (prefix, name) == (7, b"data") {
                inlined = value.to_vec();
                return Ok(());
            }
            let raw = match prefix {
                2 | 3 => stored::raw_acl(value).ok_or("an access control list is malformed")?,
                _ => value.to_vec(),
            };
            match xattr(prefix, name, &raw)? {
                Some(xattr) => xattrs.push(xattr),
                None => foreign_xattrs += 1,
            }
            Ok(())
        };
        let inside = record.get(128 + extra..).unwrap_or_default();
        if inside.len() > 4 && le32(inside, 0) == XATTR_MAGIC {
            read_xattrs(&inside[4..], 0, &mut take)?;
        }
        let block = u64::from(le32(&record, 0x68)) | u64::from(le16(&record, 0x76)) << 32;
        if block != 0 {
            let bytes = disk.vec(self.place(block, 1)?, self.block as usize)?;
            if le32(&bytes, 0) != XATTR_MAGIC {
                return Err(format!("block {block} holds no attributes"));
            }
            read_xattrs(&bytes, 32, &mut take)?;
        }
        let mut size = u64::from(le32(&record, 4)) | u64::from(le32(&record, 0x6c)) << 32;
        if !kind.has_contents() {
            size = 0;
        }
        let contents = match (kind, flags) {
            _ if size == 0 => Contents::Parts(Vec::new()),
            (_, flags) if flags & INLINE != 0 => {
                Contents::Inline(inline(kind, area, &inlined, size)?)
            }
            (_, flags) if flags & EXTENTS != 0 => {
                let mut parts = Vec::new();
                self.extents(disk, area, None, &mut parts)?;
                clip(&mut parts, size);
                Contents::Parts(parts)
            }
            (Kind::Symlink, _) if size < 60 => Contents::Inline(area[..size as usize].to_vec()),
            _ => return Err("its blocks are not told by extents: it is of an ext2 or ext3".into()),
        };
        let extra_time = if extra >= 12 { le32(&record, 0x88) } else { 0 };
        let seconds = i64::from(le32(&record, 0x10).cast_signed());
        Ok(Inode {
            number,
            kind,
            attributes: Attributes {
                mode: mode & 0o7777,
                uid: u32::from(le16(&record, 2)) | u32::from(le16(&record, 0x78)) << 16,
                gid: u32::from(le16(&record, 0x18)) | u32::from(le16(&record, 0x7a)) << 16,
                mtime: Timestamp {
                    seconds: seconds + (i64::from(extra_time & 3) << 32),
                    nanoseconds: (extra_time >> 2).min(999_999_999),
                },
                xattrs,
            },
            size,
            foreign_xattrs,
            contents,
        })
    }

    /// Reads a node of the tree and all below it. `depth` is what the one above says.
    fn extents(
        &self,
        disk: &Disk,
        node: &[u8],
        depth: Option<u16>,
        parts: &mut Vec<Part>,
    ) -> Read<()> {
        let entries = usize::from(le16(node, 2));
        let found = le16(node, 6);
        if le16(node, 0) != extent::MAGIC
            || found > MAX_DEPTH
            || depth.is_some_and(|depth| depth != found)
            || 12 * (entries + 1) > node.len()
        {
            return Err("a node of its extents is damaged".to_owned());
        }
        for entry in node[12..].chunks_exact(12).take(entries) {
            let offset = u64::from(le32(entry, 0)) * self.block;
            if found > 0 {
                if parts.last().is_some_and(|last| last.offset >= offset) {
                    return Err("its extents are out of order".to_owned());
                }
                let block = u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32;
                disk.charge(self.block)?;
                let child = disk.vec(self.place(block, 1)?, self.block as usize)?;
                self.extents(disk, &child, Some(found - 1), parts)?;
                continue;
            }
            let (length, place) = (le16(entry, 4), le32(entry, 8));
            let place = u64::from(place) | u64::from(le16(entry, 6)) << 32;
            // Beyond that it is set aside, and not written yet: it reads as zeros.
            if length <= 0x8000 && length > 0 {
                let place = self.place(place, length.into())?;
                let length = u64::from(length) * self.block;
                push_part(parts, Part { offset, place, length })?;
            }
        }
        Ok(())
    }

    /// Names in one block of a directory.
    pub(super) fn directory(
        &self,
        inode: &Inode,
        block: &[u8],
        push: &mut dyn FnMut(&[u8], u64) -> Read<()>,
    ) -> Read<()> {
        if matches!(inode.contents, Contents::Inline(_)) {
            // The parent's number comes first; the rest is in two parts.
            let (first, rest) = block.split_at_checked(60).unwrap_or((block, &[]));
            records(first.get(4..).unwrap_or_default(), push)?;
            return records(rest, push);
        }
        records(block, push)
    }
}

fn records(bytes: &[u8], push: &mut dyn FnMut(&[u8], u64) -> Read<()>) -> Read<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let record = rest.get(..8).ok_or("a record is cut off")?;
        let number = le32(record, 0);
        let length = match usize::from(le16(record, 4)) {
            // What 16 bits have no room for.
            0 | 0xffff if bytes.len() == 1 << 16 => 1 << 16,
            length => length,
        };
        if length < 8 || !length.is_multiple_of(4) || length > rest.len() {
            return Err(format!("a record has {length} bytes"));
        }
        let (record, behind) = rest.split_at(length);
        rest = behind;
        if number != 0 {
            let name = record.get(8..8 + usize::from(record[6]));
            push(name.ok_or("a name is longer than its record")?, number.into())?;
        }
    }
    Ok(())
}

/// Contents that are in the inode: first where the extents would be, then as an attribute.
fn inline(kind: Kind, area: &[u8], rest: &[u8], size: u64) -> Read<Vec<u8>> {
    let mut bytes = [area, rest].concat();
    if kind != Kind::Directory {
        // A file that was only made longer has zeros behind them.
        bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    } else if size != bytes.len() as u64 {
        return Err(format!("a directory of {size} bytes is not in the inode"));
    }
    Ok(bytes)
}

/// Cuts off what is behind the end of the file.
fn clip(parts: &mut Vec<Part>, size: u64) {
    parts.retain(|part| part.offset < size);
    if let Some(last) = parts.last_mut() {
        last.length = last.length.min(size - last.offset);
    }
}

/// Attributes in an area whose entries begin at `first`. Values are found from the area's start.
fn read_xattrs(
    area: &[u8],
    first: usize,
    take: &mut impl FnMut(u8, &[u8], &[u8]) -> Read<()>,
) -> Read<()> {
    let mut at = first;
    loop {
        match area.get(at..at + 4) {
            Some([0, 0, 0, 0]) | None => return Ok(()),
            Some(_) => {}
        }
        let entry = area.get(at..at + 16).ok_or("an attribute is cut off")?;
        let length = usize::from(entry[0]);
        if le32(entry, 4) != 0 {
            return Err("the value of an attribute is in another inode".to_owned());
        }
        let (value, bytes) = (usize::from(le16(entry, 2)), le32(entry, 8) as usize);
        let name = area.get(at + 16..at + 16 + length).ok_or("an attribute's name is cut off")?;
        let end = value.checked_add(bytes).ok_or("an attribute's value is too long")?;
        let value = if bytes == 0 { Some(&[][..]) } else { area.get(value..end) };
        take(entry[1], name, value.ok_or("an attribute's value is cut off")?)?;
        at += (16 + length).next_multiple_of(4);
    }
}
