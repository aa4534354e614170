//! Directory blocks: records in a row, the last one of each block reaching its end.
//!
//! A record is inode (4), its own length (2), length of the name (1), type (1), name.

use super::{BLOCK, put16, put32};

/// Type of an entry, as directories note it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryType {
    File = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

/// Collects the blocks of one directory.
pub(crate) struct Records {
    bytes: Vec<u8>,
    /// Where the last record of the open block starts.
    last: usize,
    /// End of the last record.
    end: usize,
}

impl Records {
    /// Begins with the entries `.` and `..`.
    pub(crate) fn new(inode: u32, parent: u32) -> Self {
        let mut records = Self { bytes: vec![0; BLOCK], last: 0, end: 0 };
        records.push(b".", inode, EntryType::Directory);
        records.push(b"..", parent, EntryType::Directory);
        records
    }

    /// Adds an entry with a name of at most 255 bytes.
    pub(crate) fn push(&mut self, name: &[u8], inode: u32, kind: EntryType) {
        let length = (8 + name.len()).next_multiple_of(4);
        if self.end + length > self.bytes.len() {
            self.close_block();
            self.end = self.bytes.len();
            self.bytes.resize(self.end + BLOCK, 0);
        }
        let record = &mut self.bytes[self.end..self.end + length];
        put32(record, 0, inode);
        put16(record, 4, length as u16);
        record[6] = name.len() as u8;
        record[7] = kind as u8;
        record[8..8 + name.len()].copy_from_slice(name);
        self.last = self.end;
        self.end += length;
    }

    fn close_block(&mut self) {
        let rest = self.bytes.len() - self.last;
        put16(&mut self.bytes[self.last..], 4, rest as u16);
    }

    /// The finished blocks.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.close_block();
        self.bytes
    }
}
