//! EROFS as others write it too: with short inodes, shared attributes, chunks. Not compressed.

use super::disk::{Disk, le16, le32, le64};
use super::{Contents, Inode, Kind, Part, Read, device_number, push_part, xattr};
use crate::erofs::{NOWHERE, SLOT, superblock};
use crate::tree::{Attributes, Timestamp};

/// Incompatible features that change nothing as long as an inode does not use them: those of
/// compression, chunks, several devices, long prefixes of attributes.
const KNOWN: u32 = 0x7f;

const SHORT: usize = 32;
const LONG: usize = 64;
/// Bytes before the attributes of an inode.
const XATTR_HEADER: usize = 12;

const PLAIN: u16 = 0;
const INLINE: u16 = 2;
const CHUNKS: u16 = 4;
/// The map has records of eight bytes, not of four.
const INDEXES: u32 = 0x20;

/// What the superblock says.
pub(super) struct Erofs {
    block: u64,
    directory_block: usize,
    root: u64,
    /// Byte from which inodes are counted.
    inodes: u64,
    /// Byte from which shared attributes are counted.
    shared: u64,
    /// Time of all inodes that have none.
    built: Timestamp,
}

impl Erofs {
    pub(super) fn open(disk: &Disk) -> Read<Self> {
        let record: [u8; 128] = disk.bytes(superblock::OFFSET)?;
        let features = le32(&record, 80);
        if features & !KNOWN != 0 {
            return Err(format!("it has the unknown features {:#x}", features & !KNOWN));
        }
        if le16(&record, 86) != 0 {
            return Err("it is spread over several devices".to_owned());
        }
        let (bits, more) = (record[12], record[90]);
        if !(9..=16).contains(&bits) || more > 16 - bits {
            return Err("the size of its blocks makes no sense".to_owned());
        }
        let block = 1 << bits;
        Ok(Self {
            block,
            directory_block: 1 << (bits + more),
            root: le16(&record, 14).into(),
            inodes: u64::from(le32(&record, 40)) * block,
            shared: u64::from(le32(&record, 44)) * block,
            built: Timestamp {
                seconds: le64(&record, 24).cast_signed(),
                nanoseconds: le32(&record, 32).min(999_999_999),
            },
        })
    }

    pub(super) fn root(&self) -> u64 {
        self.root
    }

    pub(super) fn block_size(&self) -> usize {
        self.directory_block
    }

    pub(super) fn inode(&self, disk: &Disk, number: u64) -> Read<Inode> {
        let offset = number.checked_mul(SLOT as u64).and_then(|at| at.checked_add(self.inodes));
        let offset = offset.ok_or("its number is too large")?;
        let short: [u8; SHORT] = disk.bytes(offset)?;
        let format = le16(&short, 0);
        let long = if format & 1 == 1 { Some(disk.bytes::<LONG>(offset)?) } else { None };
        let (mode, union) = (le16(&short, 4), le32(&short, 16));
        let kind = Kind::new(mode, || device_number(union))?;
        let (mut size, uid, gid, mtime) = match &long {
            None => (
                le32(&short, 8).into(),
                le16(&short, 24).into(),
                le16(&short, 26).into(),
                self.built,
            ),
            Some(long) => {
                let nanoseconds = le32(long, 40).min(999_999_999);
                let mtime = Timestamp { seconds: le64(long, 32).cast_signed(), nanoseconds };
                (le64(long, 8), le32(long, 24), le32(long, 28), mtime)
            }
        };
        if !kind.has_contents() {
            size = 0;
        }
        let head = offset + if long.is_some() { LONG } else { SHORT } as u64;
        let room = match usize::from(le16(&short, 2)) {
            0 => 0,
            count => XATTR_HEADER + 4 * (count - 1),
        };
        let mut foreign_xattrs = 0;
        let xattrs = self.xattrs(disk, head, room, &mut foreign_xattrs)?;
        let behind = head + room as u64;
        let contents = match format >> 1 & 7 {
            _ if size == 0 => Vec::new(),
            PLAIN => self.run(disk, union, 0, size)?.into_iter().collect(),
            INLINE => {
                let tail = (size - 1) / self.block * self.block;
                let mut parts: Vec<Part> = self.run(disk, union, 0, tail)?.into_iter().collect();
                let last = Part { offset: tail, place: behind, length: size - tail };
                if !disk.has(last.place, last.length) {
                    return Err("the end of its contents is beyond the image".to_owned());
                }
                push_part(&mut parts, last)?;
                parts
            }
            CHUNKS => self.chunks(disk, union, behind, size)?,
            _ => return Err("it is compressed: mount the image to read it".to_owned()),
        };
        let mode = mode & 0o7777;
        Ok(Inode {
            number,
            kind,
            attributes: Attributes { mode, uid, gid, mtime, xattrs },
            size,
            foreign_xattrs,
            contents: Contents::Parts(contents),
        })
    }

    /// Contents that lie together from a block on.
    fn run(&self, disk: &Disk, block: u32, offset: u64, length: u64) -> Read<Option<Part>> {
        if length == 0 {
            return Ok(None);
        }
        let place = u64::from(block) * self.block;
        match disk.has(place, length) {
            true => Ok(Some(Part { offset, place, length })),
            false => Err(format!("{length} bytes from block {block} are beyond the image")),
        }
    }

    fn chunks(&self, disk: &Disk, format: u32, map: u64, size: u64) -> Read<Vec<Part>> {
        let chunk = self.block << (format & 0x1f);
        let record = if format & INDEXES != 0 { 8 } else { 4 };
        let map = map.next_multiple_of(record);
        let mut parts = Vec::new();
        disk.charge(size.div_ceil(chunk) * record)?;
        for number in 0..size.div_ceil(chunk) {
            let entry: [u8; 4] = match record {
                8 => {
                    let entry: [u8; 8] = disk.bytes(map + number * record)?;
                    if le16(&entry, 2) != 0 {
                        return Err("a chunk is on another device".to_owned());
                    }
                    [entry[4], entry[5], entry[6], entry[7]]
                }
                _ => disk.bytes(map + number * record)?,
            };
            let block = le32(&entry, 0);
            if block == NOWHERE {
                continue;
            }
            let offset = number * chunk;
            if let Some(part) = self.run(disk, block, offset, chunk.min(size - offset))? {
                push_part(&mut parts, part)?;
            }
        }
        Ok(parts)
    }

    fn xattrs(
        &self,
        disk: &Disk,
        place: u64,
        room: usize,
        foreign: &mut u64,
    ) -> Read<Vec<crate::ext4::xattr::Xattr>> {
        let mut xattrs = Vec::new();
        if room == 0 {
            return Ok(xattrs);
        }
        let bytes = disk.vec(place, room)?;
        let mut take = |prefix: u8, name: &[u8], value: &[u8]| -> Read<()> {
            disk.charge((name.len() + value.len()) as u64)?;
            match xattr(prefix, name, value)? {
                Some(xattr) => xattrs.push(xattr),
                None => *foreign += 1,
            }
            Ok(())
        };
        let shared = usize::from(bytes[4]);
        let inline = XATTR_HEADER + 4 * shared;
        for id in bytes.get(XATTR_HEADER..inline).ok_or("its attributes are cut off")?.chunks(4) {
            let at = self.shared + 4 * u64::from(le32(id, 0));
            let head: [u8; 4] = disk.bytes(at)?;
            let (name, value) = (usize::from(head[0]), usize::from(le16(&head, 2)));
            let entry = disk.vec(at + 4, name + value)?;
            take(head[1], &entry[..name], &entry[name..])?;
        }
        let mut rest = &bytes[inline..];
        while rest.len() >= 4 && rest[..4] != [0; 4] {
            let (name, value) = (usize::from(rest[0]), usize::from(le16(rest, 2)));
            let entry = rest.get(4..4 + name + value).ok_or("an attribute is cut off")?;
            take(rest[1], &entry[..name], &entry[name..])?;
            rest = rest.get((4 + name + value).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(xattrs)
    }
}

/// Names in one block of a directory.
pub(super) fn directory(block: &[u8], push: &mut dyn FnMut(&[u8], u64) -> Read<()>) -> Read<()> {
    const RECORD: usize = 12;
    let first = block.get(..RECORD).ok_or("a block of it is cut off")?;
    let names = usize::from(le16(first, 8));
    if names < RECORD || !names.is_multiple_of(RECORD) || names > block.len() {
        return Err("the places of its names make no sense".to_owned());
    }
    let records = block[..names].chunks_exact(RECORD);
    let ends = records.clone().skip(1).map(|record| usize::from(le16(record, 8)));
    for (record, end) in records.zip(ends.chain([block.len()])) {
        let name = block.get(usize::from(le16(record, 8))..end);
        let mut name = name.ok_or("a name is beyond its block")?;
        if end == block.len() {
            let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
            name = &name[..length];
        }
        push(name, le64(record, 0))?;
    }
    Ok(())
}
