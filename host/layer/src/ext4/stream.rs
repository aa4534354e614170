//! Blocks in a row: the growing end of an image file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{BLOCK, BLOCK_U64};
use crate::error::Error;
use crate::verity::{Hasher, Leaves};

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
    hasher: Option<Hasher>,
    /// Blocks that were written out of their turn, to be hashed when all others are.
    late: Vec<(u32, u32)>,
}

impl<'f> BlockStream<'f> {
    pub(crate) fn new(file: &'f File, start: u32, limit: u32, hasher: Option<Hasher>) -> Self {
        let buffer = Vec::with_capacity(BUFFER + (64 << 10));
        Self { file, start, buffer, limit, hasher, late: Vec::new() }
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
        self.make_room(bytes.len().div_ceil(BLOCK) as u64)?;
        let first = self.position();
        self.buffer.extend_from_slice(bytes);
        self.pad();
        Ok(first)
    }

    /// Lets `fill` write `length` bytes. If it answers `Ok(true)`, they become blocks and the
    /// first block is returned; on `Ok(false)` they are forgotten.
    pub(crate) fn append_with<E: From<Error>>(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<bool, E>,
    ) -> Result<Option<u32>, E> {
        self.make_room(length.div_ceil(BLOCK) as u64)?;
        let first = self.position();
        let begin = self.buffer.len();
        self.buffer.resize(begin + length, 0);
        if !fill(&mut self.buffer[begin..])? {
            self.buffer.truncate(begin);
            return Ok(None);
        }
        self.pad();
        Ok(Some(first))
    }

    /// Takes back the block that was appended last.
    pub(crate) fn take_last(&mut self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        if let Some(start) = self.buffer.len().checked_sub(BLOCK) {
            block.copy_from_slice(&self.buffer[start..]);
            self.buffer.truncate(start);
        }
        block
    }

    /// Leaves out `blocks`, which read as zeros.
    pub(crate) fn skip(&mut self, blocks: u32) -> Result<(), Error> {
        self.check_room(u64::from(blocks))?;
        self.flush()?;
        self.start += blocks;
        Ok(())
    }

    /// Takes back `blocks` from `start` that were left out, if they are the last.
    pub(crate) fn unskip(&mut self, start: u32, blocks: u32) {
        if self.buffer.is_empty() && self.start == start + blocks {
            self.start = start;
        }
    }

    /// Writes what is still in memory.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.file
            .write_all_at(&self.buffer, u64::from(self.start) * BLOCK_U64)
            .map_err(Error::Write)?;
        let blocks = (self.buffer.len() / BLOCK) as u32;
        if let Some(hasher) = &self.hasher {
            hasher.written(self.start.into(), blocks.into());
        }
        self.start += blocks;
        self.buffer.clear();
        Ok(())
    }

    fn pad(&mut self) {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
    }

    /// Before a block is appended and not after, so that the last one can be taken back.
    fn make_room(&mut self, blocks: u64) -> Result<(), Error> {
        self.check_room(blocks)?;
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes at a fixed place, which was skipped or is written already.
    pub(crate) fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let end = (offset + bytes.len() as u64).div_ceil(BLOCK_U64) as u32;
        let start = (offset / BLOCK_U64) as u32;
        self.late.push((start, end - start));
        self.file.write_all_at(bytes, offset).map_err(Error::Write)
    }

    /// Writes whole blocks that were skipped, and now are final.
    pub(crate) fn write_skipped(&mut self, bytes: &[u8], block: u32) -> Result<(), Error> {
        let offset = u64::from(block) * BLOCK_U64;
        self.file.write_all_at(bytes, offset).map_err(Error::Write)?;
        if let Some(hasher) = &self.hasher {
            hasher.written(block.into(), (bytes.len() / BLOCK) as u64);
        }
        Ok(())
    }

    /// Sets the final size of the file in blocks. The hashes are there if they were asked for.
    pub(crate) fn finish(mut self, blocks: u32) -> Result<Option<Leaves>, Error> {
        self.flush()?;
        self.file.set_len(u64::from(blocks) * BLOCK_U64).map_err(Error::Write)?;
        let Some(hasher) = self.hasher else { return Ok(None) };
        hasher.settle();
        for (start, blocks) in self.late {
            hasher.written(start.into(), blocks.into());
        }
        hasher.finish().map(Some).map_err(Error::Write)
    }
}
