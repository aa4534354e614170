//! Blocks in a row: the growing end of an image file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::ahead::Ahead;
use super::{BLOCK, BLOCK_U64};
use crate::error::Error;
use crate::verity::{Hasher, Leaves};

/// Enough for the write calls to be few, little enough to stay in the cache.
pub(super) const BUFFER: usize = 1 << 20;

/// Appends whole blocks to a file that reads as zeros where nothing was written.
pub(crate) struct BlockStream<'f> {
    file: &'f File,
    /// Block number of the first byte of the buffer.
    start: u32,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are to be written, in whole blocks.
    filled: usize,
    /// Blocks the image may have.
    limit: u32,
    /// Writes while the next buffer is filled.
    ahead: Option<Ahead>,
    hasher: Option<Arc<Hasher>>,
    /// Blocks that were written out of their turn, to be hashed when all others are.
    late: Vec<(u32, u32)>,
}

impl<'f> BlockStream<'f> {
    /// One that writes when its buffer is full.
    pub(crate) fn new(file: &'f File, start: u32, limit: u32) -> Self {
        let buffer = vec![0; BUFFER];
        let (filled, late) = (0, Vec::new());
        Self { file, start, buffer, filled, limit, ahead: None, hasher: None, late }
    }

    /// One that writes in a thread of its own, and has what is written hashed.
    pub(crate) fn ahead(
        file: &'f File,
        start: u32,
        limit: u32,
        hasher: Option<Hasher>,
    ) -> io::Result<Self> {
        let hasher = hasher.map(Arc::new);
        let ahead = Some(Ahead::new(file, hasher.clone())?);
        Ok(Self { ahead, hasher, ..Self::new(file, start, limit) })
    }

    /// The block that is written next.
    pub(crate) fn position(&self) -> u32 {
        self.start + (self.filled / BLOCK) as u32
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
        self.check_room(bytes.len().div_ceil(BLOCK) as u64)?;
        let first = self.position();
        for chunk in bytes.chunks(BUFFER) {
            let (_, room) = self.room(chunk.len().next_multiple_of(BLOCK))?;
            room[..chunk.len()].copy_from_slice(chunk);
            self.commit(chunk.len())?;
        }
        Ok(first)
    }

    /// The block that is written next, and room from there on to be filled and committed: at least
    /// `least` bytes and at most [`BUFFER`], with anything in them.
    // Makes room before a block is appended and not after, so that the last one can be taken back.
    pub(crate) fn room(&mut self, least: usize) -> Result<(u32, &mut [u8]), Error> {
        if self.buffer.len() - self.filled < least {
            self.flush()?;
        }
        Ok((self.position(), &mut self.buffer[self.filled..]))
    }

    /// Appends `length` bytes of the room, zero-padded to whole blocks.
    pub(crate) fn commit(&mut self, length: usize) -> Result<(), Error> {
        self.check_room(length.div_ceil(BLOCK) as u64)?;
        let end = (self.filled + length).next_multiple_of(BLOCK);
        self.buffer[self.filled + length..end].fill(0);
        self.filled = end;
        Ok(())
    }

    /// Takes back the block that was appended last.
    pub(crate) fn take_last(&mut self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        if let Some(start) = self.filled.checked_sub(BLOCK) {
            block.copy_from_slice(&self.buffer[start..self.filled]);
            self.filled = start;
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
        if self.filled == 0 && self.start == start + blocks {
            self.start = start;
        }
    }

    /// Hands on what is still in the buffer.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        if self.filled == 0 {
            return Ok(());
        }
        let (start, filled) = (self.start, self.filled);
        self.start += (filled / BLOCK) as u32;
        self.filled = 0;
        match &mut self.ahead {
            Some(ahead) => {
                if ahead.write(start, &mut self.buffer, filled) {
                    return Ok(());
                }
                // It has ended, and says why.
                self.settle()
            }
            None => self.write_blocks(start, filled),
        }
    }

    fn write_blocks(&self, start: u32, length: usize) -> Result<(), Error> {
        write_blocks(self.file, start, &self.buffer[..length], self.hasher.as_deref())
            .map_err(Error::Write)
    }

    /// Waits until all that was handed on is written; from here on it is written at once.
    fn settle(&mut self) -> Result<(), Error> {
        self.ahead.take().map_or(Ok(()), Ahead::finish).map_err(Error::Write)
    }

    /// Writes at a fixed place, which was skipped or is written already.
    pub(crate) fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.flush()?;
        self.settle()?;
        let end = (offset + bytes.len() as u64).div_ceil(BLOCK_U64) as u32;
        let start = (offset / BLOCK_U64) as u32;
        self.late.push((start, end - start));
        self.file.write_all_at(bytes, offset).map_err(Error::Write)
    }

    /// Writes whole blocks that were skipped, and now are final.
    pub(crate) fn write_skipped(&mut self, bytes: &[u8], block: u32) -> Result<(), Error> {
        write_blocks(self.file, block, bytes, self.hasher.as_deref()).map_err(Error::Write)
    }

    /// Sets the final size of the file in blocks. The hashes are there if they were asked for.
    pub(crate) fn finish(mut self, blocks: u32) -> Result<Option<Leaves>, Error> {
        self.flush()?;
        self.settle()?;
        self.file.set_len(u64::from(blocks) * BLOCK_U64).map_err(Error::Write)?;
        // The thread that had the other one has ended.
        let Some(hasher) = self.hasher.and_then(Arc::into_inner) else { return Ok(None) };
        hasher.settle();
        for (start, blocks) in self.late {
            hasher.written(start.into(), blocks.into());
        }
        hasher.finish().map(Some).map_err(Error::Write)
    }
}

/// Writes whole blocks, and has them hashed.
pub(super) fn write_blocks(
    file: &File,
    start: u32,
    bytes: &[u8],
    hasher: Option<&Hasher>,
) -> io::Result<()> {
    file.write_all_at(bytes, u64::from(start) * BLOCK_U64)?;
    if let Some(hasher) = hasher {
        hasher.written(start.into(), (bytes.len() / BLOCK) as u64);
    }
    Ok(())
}
