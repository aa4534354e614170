//! Directory blocks: records of inode (8), offset of the name (2), type (1), 0 (1), then the names
//! without any end marks. All names of a directory are in the order of their bytes, `.` and `..`
//! among them.

use crate::ext4::BLOCK;
use crate::ext4::directory::EntryType;

const RECORD: usize = 12;

/// One entry: name, inode number, type.
pub(super) type Entry<'a> = (&'a [u8], u64, EntryType);

/// The length that [`encode`] will have.
pub(super) fn length<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    // The order of names decides how they fall into blocks.
    for name in names {
        let room = RECORD + name.len();
        if used + room > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += room;
    }
    blocks * BLOCK as u64 + used as u64
}

/// The contents of a directory; only the last block may be short.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fitting = rest.iter().take_while(|(name, ..)| {
            used += RECORD + name.len();
            used <= BLOCK
        });
        let (block, more) = rest.split_at(fitting.count());
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut name_offset = block.len() * RECORD;
        for (name, inode, kind) in block {
            bytes.extend_from_slice(&inode.to_le_bytes());
            bytes.extend_from_slice(&(name_offset as u16).to_le_bytes());
            bytes.extend_from_slice(&[*kind as u8, 0]);
            name_offset += name.len();
        }
        for (name, ..) in block {
            bytes.extend_from_slice(name);
        }
        rest = more;
    }
    bytes
}
