//! Inodes of files, written as soon as their contents are.

use super::inode::{INODE, Inode, Layout};
use super::{NOWHERE, SLOT, xattr};
use crate::copy::CopyError;
use crate::error::{Error, Problem};
use crate::ext4::extent::Extent;
use crate::ext4::stream::BlockStream;
use crate::ext4::{BLOCK, BLOCK_U64};
use crate::fingerprint::Fingerprint;
use crate::tree::Attributes;

/// Bytes of a run of inodes: the first is short, lest small images grow.
const FIRST_RUN: usize = 4 * BLOCK;
const LONGEST_RUN: usize = 256 * BLOCK;
/// Entries of one map of chunks at most.
const MAX_CHUNKS: u64 = 1 << 24;

/// Blocks set aside for inodes, and what is in them so far.
struct Run {
    block: u32,
    bytes: Vec<u8>,
    capacity: usize,
}

/// Writes inodes that are not directories.
pub(crate) struct Writer {
    run: Run,
    /// Inodes so far.
    count: u32,
    /// Some file has a map of chunks.
    pub(super) chunked: bool,
    pub(super) identity: Fingerprint,
}

impl Writer {
    pub(crate) fn new() -> Self {
        let run = Run { block: 0, bytes: Vec::new(), capacity: 0 };
        // The root is the first.
        Self { run, count: 1, chunked: false, identity: Fingerprint::new() }
    }

    pub(super) fn next_number(&mut self) -> u32 {
        self.count += 1;
        self.count
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Writes the inode of a file whose contents were appended just now, and returns its number.
    pub(crate) fn file(
        &mut self,
        stream: &mut BlockStream<'_>,
        size: u64,
        extents: &[Extent],
        attributes: &Attributes,
    ) -> Result<u64, CopyError> {
        let xattrs = xattr::encode(&attributes.xattrs).map_err(CopyError::Content)?;
        let blocks = size.div_ceil(BLOCK_U64) as u32;
        let runs = joined(extents);
        let number = self.next_number();
        let mut inode = Inode {
            layout: Layout::Plain,
            kind: 0o100_000,
            attributes,
            xattrs: &xattrs,
            size,
            union: NOWHERE,
            number,
            links: 1,
        };
        match runs.as_slice() {
            [] if size == 0 => Ok(self.place(stream, &inode.encode(), &[])?),
            [Extent { logical: 0, physical, length }] if *length == blocks => {
                let tail = (size % BLOCK_U64) as usize;
                if tail > 0 && INODE + xattrs.len() + tail <= BLOCK {
                    let block = stream.take_last();
                    inode.layout = Layout::Inline;
                    inode.union = if blocks > 1 { *physical } else { NOWHERE };
                    return Ok(self.place(stream, &inode.encode(), &block[..tail])?);
                }
                inode.union = *physical;
                Ok(self.place(stream, &inode.encode(), &[])?)
            }
            runs => {
                let bits = chunk_bits(runs, blocks);
                if u64::from(blocks) >> bits >= MAX_CHUNKS {
                    let problem = Problem::SparseMap("EROFS needs more than 16777216 chunks");
                    return Err(CopyError::Content(problem));
                }
                self.chunked = true;
                inode.layout = Layout::Chunks;
                inode.union = bits;
                let mut head = inode.encode();
                head.extend(chunk_map(runs, blocks, bits).into_iter().flat_map(u32::to_le_bytes));
                Ok(self.place(stream, &head, &[])?)
            }
        }
    }

    /// Writes an inode that has its contents, if any, behind it or in `head`.
    pub(super) fn place(
        &mut self,
        stream: &mut BlockStream<'_>,
        head: &[u8],
        tail: &[u8],
    ) -> Result<u64, Error> {
        self.identity.add(head);
        let mut start = position(self.run.bytes.len(), head.len(), tail.len());
        let needed = head.len() + tail.len();
        if start + needed > self.run.capacity {
            self.close(stream)?;
            let next = (2 * self.run.capacity).clamp(FIRST_RUN, LONGEST_RUN);
            self.run.capacity = next.max(needed.next_multiple_of(BLOCK));
            self.run.block = stream.position();
            stream.skip((self.run.capacity / BLOCK) as u32)?;
            start = 0;
        }
        self.run.bytes.resize(start, 0);
        self.run.bytes.extend_from_slice(head);
        self.run.bytes.extend_from_slice(tail);
        Ok((u64::from(self.run.block) * BLOCK_U64 + start as u64) / SLOT as u64)
    }

    /// Writes the run at hand; what is left of it stays a hole.
    pub(super) fn close(&mut self, stream: &mut BlockStream<'_>) -> Result<(), Error> {
        let bytes = &mut self.run.bytes;
        if !bytes.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            stream.write_skipped(bytes, self.run.block)?;
            bytes.clear();
        }
        Ok(())
    }

    /// The same with the last run, whose rest is given back if nothing comes after it.
    pub(super) fn close_last(&mut self, stream: &mut BlockStream<'_>) -> Result<(), Error> {
        let used = self.run.bytes.len().div_ceil(BLOCK);
        stream.unskip(self.run.block + used as u32, (self.run.capacity / BLOCK - used) as u32);
        self.close(stream)
    }
}

/// Where an inode goes that comes after `used` bytes: neither it nor its tail may cross a block,
/// unless it is too long for one.
pub(super) fn position(used: usize, head: usize, tail: usize) -> usize {
    let start = used.next_multiple_of(SLOT);
    if start % BLOCK + head + tail > BLOCK { start.next_multiple_of(BLOCK) } else { start }
}

/// Extents without a limit to their length.
fn joined(extents: &[Extent]) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for extent in extents {
        match runs.last_mut() {
            Some(last)
                if last.logical + last.length == extent.logical
                    && last.physical + last.length == extent.physical =>
            {
                last.length += extent.length;
            }
            _ => runs.push(*extent),
        }
    }
    runs
}

/// The largest chunk, as a power of two of blocks, that no run begins or ends within.
fn chunk_bits(runs: &[Extent], blocks: u32) -> u32 {
    let most = blocks.max(1).next_power_of_two().ilog2().min(31);
    let edges = runs.iter().flat_map(|run| {
        let end = run.logical + run.length;
        [run.logical, if end == blocks { 0 } else { end }]
    });
    edges.map(u32::trailing_zeros).fold(most, u32::min)
}

/// The first block of each chunk.
fn chunk_map(runs: &[Extent], blocks: u32, bits: u32) -> Vec<u32> {
    let mut map = vec![NOWHERE; (u64::from(blocks).div_ceil(1 << bits)) as usize];
    for run in runs {
        for offset in (0..run.length).step_by(1 << bits) {
            map[((run.logical + offset) >> bits) as usize] = run.physical + offset;
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_as_large_as_the_edges_of_the_data_allow() {
        let run = |logical, physical, length| Extent { logical, physical, length };
        let runs = [run(16, 100, 16), run(64, 500, 3)];
        assert_eq!(chunk_bits(&runs, 67), 4);
        assert_eq!(chunk_map(&runs, 67, 4), [NOWHERE, 100, NOWHERE, NOWHERE, 500]);
        assert_eq!(chunk_bits(&runs, 68), 0);
        assert_eq!(chunk_bits(&[], 1000), 10);
    }

    #[test]
    fn an_inode_with_its_tail_never_crosses_a_block() {
        assert_eq!(position(4032, 64, 0), 4032);
        assert_eq!(position(4001, 64, 100), 4096);
        assert_eq!(position(10, 64, 4032), 4096);
        assert_eq!(position(10, 5000, 0), 4096);
    }
}
