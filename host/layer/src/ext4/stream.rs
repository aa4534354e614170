//! Blocks in a row: the growing end of an image file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{BLOCK, BLOCK_U64};
use crate::error::Error;

/// Enough for the write calls to be few, little enough to stay in the cache.
const BUFFER: usize = 1 << 20;

/// Appends whole blocks to a file that reads as zeros where nothing was written.
pub(crate) struct BlockStream<'f> {
    file: &'f File,
    /// Block number of the first byte of the buffer.
    start: u32,
    buffer: Vec<u8>,
    /// Blocks the image may have.
    limit: u32,
}

impl<'f> BlockStream<'f> {
    pub(crate) fn new(file: &'f File, start: u32, limit: u32) -> Self {
        Self { file, start, buffer: Vec::with_capacity(BUFFER + (64 << 10)), limit }
    }

    /// The block that is written next.
    pub(crate) fn position(&self) -> u32 {
        self.start + (self.buffer.len() / BLOCK) as u32
    }

    pub(crate) fn limit_error(&self) -> Error {
        Error::TooLarge { limit: u64::from(self.limit) * BLOCK_U64 }
    }

    fn check_room(&self, blocks: u64) -> Result<(), Error> {
        match u64::from(self.position()) + blocks <= u64::from(self.limit) {
            true => Ok(()),
            false => Err(self.limit_error()),
        }
    }

    /// Appends `bytes`, zero-padded to whole blocks, and returns the first block.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<u32, Error> {
        let first = self.position();
        self.check_room(bytes.len().div_ceil(BLOCK) as u64)?;
        self.buffer.extend_from_slice(bytes);
        self.pad_and_flush()?;
        Ok(first)
    }

    /// Lets `fill` write `length` bytes. If it answers `Ok(true)`, they become blocks and the
    /// first block is returned; on `Ok(false)` they are forgotten.
    pub(crate) fn append_with<E: From<Error>>(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<bool, E>,
    ) -> Result<Option<u32>, E> {
        let first = self.position();
        self.check_room(length.div_ceil(BLOCK) as u64)?;
        let begin = self.buffer.len();
        self.buffer.resize(begin + length, 0);
        if !fill(&mut self.buffer[begin..])? {
            self.buffer.truncate(begin);
            return Ok(None);
        }
        self.pad_and_flush()?;
        Ok(Some(first))
    }

    /// Leaves out `blocks`, which read as zeros.
    pub(crate) fn skip(&mut self, blocks: u32) -> Result<(), Error> {
        self.check_room(u64::from(blocks))?;
        self.flush()?;
        self.start += blocks;
        Ok(())
    }

    /// Writes what is still in memory.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.file
            .write_all_at(&self.buffer, u64::from(self.start) * BLOCK_U64)
            .map_err(Error::Write)?;
        self.start += (self.buffer.len() / BLOCK) as u32;
        self.buffer.clear();
        Ok(())
    }

    fn pad_and_flush(&mut self) -> Result<(), Error> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// The file below, for records at fixed places.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(Error::Write)
    }

    /// Sets the final size of the file in blocks.
    pub(crate) fn finish(mut self, blocks: u32) -> Result<(), Error> {
        self.flush()?;
        self.file.set_len(u64::from(blocks) * BLOCK_U64).map_err(Error::Write)
    }
}
