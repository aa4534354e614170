//! Extended attributes on disk: first in the free end of the inode, then in one block.
//!
//! Entries grow from the front, values from the back:
//!
//! | offset | size | field                                               |
//! |-------:|-----:|-----------------------------------------------------|
//! |      0 |    1 | length of the name without its prefix               |
//! |      1 |    1 | prefix                                              |
//! |      2 |    2 | offset of the value: from the first entry (inode) or |
//! |        |      | from the start of the block                         |
//! |      4 |    4 | inode of the value, unused                          |
//! |      8 |    4 | length of the value                                 |
//! |     12 |    4 | hash                                                |
//! |     16 |      | name, padded to 4 bytes                             |

use super::inode::XATTR_ROOM;
use super::{BLOCK, put16, put32};
use crate::error::Problem;

pub(crate) const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY_HEADER: usize = 16;
/// Whole names that have a number of their own; they come before the prefixes.
const NAMES: [(&str, u8); 2] = [("system.posix_acl_access", 2), ("system.posix_acl_default", 3)];
const PREFIXES: [(&str, u8); 3] = [("user.", 1), ("trusted.", 4), ("security.", 6)];

/// One attribute as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xattr {
    prefix: u8,
    name: Vec<u8>,
    value: Vec<u8>,
    /// The value in the form of the system calls, where ext4 has another.
    raw: Option<Vec<u8>>,
}

impl Xattr {
    /// `overlayfs`: the directory hides what is below it.
    pub(crate) fn overlay_opaque() -> Self {
        Self { prefix: 4, name: b"overlay.opaque".to_vec(), value: b"y".to_vec(), raw: None }
    }

    /// `None` if ext4 has no place for attributes of that name.
    pub(crate) fn new(name: &[u8], value: &[u8]) -> Result<Option<Self>, Problem> {
        for (whole, prefix) in NAMES {
            if name == whole.as_bytes() {
                let bad = || Problem::BadAcl(whole.to_owned());
                let stored = stored_acl(value).ok_or_else(bad)?;
                let raw = Some(value.to_vec());
                return Ok(stored.map(|value| Self { prefix, name: Vec::new(), value, raw }));
            }
        }
        for (start, prefix) in PREFIXES {
            if let Some(rest) = name.strip_prefix(start.as_bytes())
                && (1..=255).contains(&rest.len())
                && !rest.contains(&0)
            {
                return Ok(Some(Self {
                    prefix,
                    name: rest.to_vec(),
                    value: value.to_vec(),
                    raw: None,
                }));
            }
        }
        Ok(None)
    }

    pub(crate) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The name without its prefix.
    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// The whole name.
    pub(crate) fn key(&self) -> Vec<u8> {
        let start = NAMES.iter().chain(&PREFIXES).find(|(_, prefix)| *prefix == self.prefix);
        [start.map_or("", |(name, _)| name).as_bytes(), &self.name].concat()
    }

    /// The value in the form of the system calls.
    pub(crate) fn value(&self) -> &[u8] {
        self.raw.as_deref().unwrap_or(&self.value)
    }

    pub(crate) fn same_name(&self, other: &Self) -> bool {
        (self.prefix, &self.name) == (other.prefix, &other.name)
    }

    fn hash(&self) -> u32 {
        let mut hash = 0_u32;
        for &byte in &self.name {
            hash = (hash << 5) ^ (hash >> 27) ^ u32::from(byte);
        }
        for chunk in self.value.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash << 16) ^ (hash >> 16) ^ u32::from_le_bytes(word);
        }
        hash
    }
}

/// From the form of the system calls (version 2, an id in every entry) to that on disk (version 1,
/// an id only where it means something). `Some(None)` is an empty list, which is no attribute.
fn stored_acl(value: &[u8]) -> Option<Option<Vec<u8>>> {
    let (version, entries) = value.split_at_checked(4)?;
    if version != 2_u32.to_le_bytes() || !entries.len().is_multiple_of(8) {
        return None;
    }
    if entries.is_empty() {
        return Some(None);
    }
    let mut stored = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        match u16::from_le_bytes([entry[0], entry[1]]) {
            0x02 | 0x08 => stored.extend_from_slice(entry),
            0x01 | 0x04 | 0x10 | 0x20 => stored.extend_from_slice(&entry[..4]),
            _ => return None,
        }
    }
    Some(Some(stored))
}

/// The other way round. `None` if it is malformed.
pub(crate) fn raw_acl(stored: &[u8]) -> Option<Vec<u8>> {
    let (version, mut entries) = stored.split_at_checked(4)?;
    if version != 1_u32.to_le_bytes() {
        return None;
    }
    let mut raw = 2_u32.to_le_bytes().to_vec();
    while let Some(tag) = entries.first() {
        let length = if matches!(tag, 0x02 | 0x08) { 8 } else { 4 };
        let (entry, rest) = entries.split_at_checked(length)?;
        raw.extend_from_slice(entry);
        raw.extend_from_slice(&[0xff; 8][length..]);
        entries = rest;
    }
    Some(raw)
}

/// Attributes laid out for an inode.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// For the end of the inode; may be empty.
    pub(crate) inline: Vec<u8>,
    pub(crate) block: Option<Vec<u8>>,
}

/// Divides attributes between the inode and a block.
pub(crate) fn layout(xattrs: &[Xattr]) -> Result<Layout, Problem> {
    if xattrs.is_empty() {
        return Ok(Layout::default());
    }
    let mut sorted: Vec<&Xattr> = xattrs.iter().collect();
    sorted
        .sort_by(|a, b| (a.prefix, a.name.len(), &a.name).cmp(&(b.prefix, b.name.len(), &b.name)));
    let mut inline = Area::new(XATTR_ROOM, 4, 4);
    sorted.retain(|xattr| !inline.add(xattr));
    let mut layout = Layout::default();
    if !inline.is_empty() {
        put32(&mut inline.bytes, 0, MAGIC);
        layout.inline = inline.bytes;
    }
    if !sorted.is_empty() {
        let mut block = Area::new(BLOCK, BLOCK_HEADER, 0);
        if !sorted.iter().all(|xattr| block.add(xattr)) {
            return Err(Problem::XattrsTooLarge);
        }
        put32(&mut block.bytes, 0, MAGIC);
        put32(&mut block.bytes, 4, 1); // in use by one inode
        put32(&mut block.bytes, 8, 1); // blocks
        let hash = sorted.iter().fold(0_u32, |sum, xattr| (sum << 16) ^ (sum >> 16) ^ xattr.hash());
        put32(&mut block.bytes, 12, hash);
        layout.block = Some(block.bytes);
    }
    Ok(layout)
}

struct Area {
    bytes: Vec<u8>,
    /// Where the next entry goes.
    front: usize,
    /// Where the last value starts.
    back: usize,
    first: usize,
    /// Value offsets count from here.
    base: usize,
}

impl Area {
    fn new(size: usize, first: usize, base: usize) -> Self {
        Self { bytes: vec![0; size], front: first, back: size, first, base }
    }

    fn is_empty(&self) -> bool {
        self.front == self.first
    }

    fn add(&mut self, xattr: &Xattr) -> bool {
        let entry = (ENTRY_HEADER + xattr.name.len()).next_multiple_of(4);
        let room = xattr.value.len().next_multiple_of(4);
        // Four zero bytes end the entries.
        if self.front + entry + 4 + room > self.back {
            return false;
        }
        self.back -= room;
        self.bytes[self.back..self.back + xattr.value.len()].copy_from_slice(&xattr.value);
        let record = &mut self.bytes[self.front..self.front + entry];
        record[0] = xattr.name.len() as u8;
        record[1] = xattr.prefix;
        if room > 0 {
            put16(record, 2, (self.back - self.base) as u16);
        }
        put32(record, 8, xattr.value.len() as u32);
        put32(record, 12, xattr.hash());
        record[ENTRY_HEADER..ENTRY_HEADER + xattr.name.len()].copy_from_slice(&xattr.name);
        self.front += entry;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acl_entries_keep_an_id_only_for_named_users_and_groups() {
        let mut value = vec![2, 0, 0, 0];
        value.extend([1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        value.extend([2, 0, 4, 0, 0xe8, 3, 0, 0]);
        let stored = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0];
        assert_eq!(stored_acl(&value), Some(Some(stored.to_vec())));
        assert_eq!(raw_acl(&stored), Some(value.clone()));
        assert_eq!(raw_acl(&stored[..10]), None);
        assert_eq!(stored_acl(&value[..11]), None);
        assert_eq!(stored_acl(&[]), None);
    }

    #[test]
    fn attributes_spill_into_a_block_and_then_fail() {
        let make = |name: &str, size| Xattr::new(name.as_bytes(), &vec![7; size]).unwrap().unwrap();
        let small = layout(&[make("user.a", 20)]).unwrap();
        assert!(small.block.is_none() && !small.inline.is_empty());
        let both = layout(&[make("user.a", 20), make("user.b", 3000)]).unwrap();
        assert!(both.block.is_some() && !both.inline.is_empty());
        assert!(matches!(layout(&[make("user.b", 4080)]), Err(Problem::XattrsTooLarge)));
    }
}
