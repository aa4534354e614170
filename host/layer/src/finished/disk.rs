//! The bytes of an image.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Read;

/// A file, of which so many bytes count.
pub(super) struct Disk {
    file: File,
    size: u64,
    /// Bytes of directories and maps that were read.
    spent: Cell<u64>,
}

/// What is read of directories and maps at least, however small the image.
const LEAST_BUDGET: u64 = 1 << 20;

impl Disk {
    pub(super) fn new(file: File, size: u64) -> Self {
        Self { file, size, spent: Cell::new(0) }
    }

    /// Takes account of what is nobody else's. An image that has the same block in many directories
    /// or maps would otherwise grow without end.
    pub(super) fn charge(&self, bytes: u64) -> Read<()> {
        self.spent.set(self.spent.get().saturating_add(bytes));
        // Maps are read again when contents are.
        match self.spent.get() > self.size.saturating_mul(4).max(LEAST_BUDGET) {
            true => Err("its directories, maps and attributes share blocks".to_owned()),
            false => Ok(()),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The first bytes, as many as say what the disk holds; fewer of a short one.
    pub(super) fn start(&self) -> Vec<u8> {
        let mut start = vec![0; self.size.min(4096) as usize];
        if self.read_at(0, &mut start).is_err() {
            start.clear();
        }
        start
    }

    /// Fills the buffer.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if !self.has(offset, buffer.len() as u64) {
            let text = format!("byte {offset} is beyond the image's {} bytes", self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.file.read_exact_at(buffer, offset)
    }

    /// So many bytes.
    pub(super) fn bytes<const N: usize>(&self, offset: u64) -> Read<[u8; N]> {
        let mut bytes = [0; N];
        self.read_at(offset, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// So many bytes, which are few.
    pub(super) fn vec(&self, offset: u64, length: usize) -> Read<Vec<u8>> {
        if !self.has(offset, length as u64) {
            return Err(format!("{length} bytes from byte {offset} are beyond the image"));
        }
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Whether these bytes are within it.
    pub(super) fn has(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size)
    }
}

/// Little-endian numbers in a record, whose length the caller knows.
pub(super) fn le16(record: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([record[offset], record[offset + 1]])
}

pub(super) fn le32(record: &[u8], offset: usize) -> u32 {
    u32::from(le16(record, offset)) | u32::from(le16(record, offset + 2)) << 16
}

pub(super) fn le64(record: &[u8], offset: usize) -> u64 {
    u64::from(le32(record, offset)) | u64::from(le32(record, offset + 4)) << 32
}
