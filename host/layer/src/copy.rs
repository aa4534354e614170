//! File contents on their way into an image.

use std::io;

use crate::error::{Error, Problem};
use crate::ext4::extent::{self, Extent};
use crate::ext4::stream::BlockStream;
use crate::ext4::{BLOCK, BLOCK_U64};
use crate::sparse::SparseMap;

/// Largest file: block numbers within a file have 32 bits.
pub(crate) const MAX_FILE: u64 = u32::MAX as u64 * BLOCK_U64;
/// Zeros become a hole only if they fill this many aligned bytes, lest files get too many extents.
const UNIT: u64 = 64 << 10;

/// Where contents come from.
pub(crate) trait ByteSource {
    /// Reads some bytes at `offset`. Offsets only grow, and every data byte is read once.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

/// Why contents could not be copied.
pub(crate) enum CopyError {
    Image(Error),
    Content(Problem),
}

impl From<Error> for CopyError {
    fn from(error: Error) -> Self {
        Self::Image(error)
    }
}

/// Appends the contents of a file to the image. `tick` is told how many bytes were read.
pub(crate) fn copy(
    source: &mut dyn ByteSource,
    map: &SparseMap,
    stream: &mut BlockStream<'_>,
    tick: &mut dyn FnMut(u64),
) -> Result<Box<[Extent]>, CopyError> {
    let size = map.size;
    if size > MAX_FILE {
        return Err(CopyError::Content(Problem::FileTooLarge { size, limit: MAX_FILE }));
    }
    let mut extents = Vec::new();
    let mut parts = map.data.as_slice();
    let mut offset = 0; // on a block boundary
    loop {
        while parts.first().is_some_and(|part| part.end <= offset) {
            parts = &parts[1..];
        }
        let Some(part) = parts.first() else { break };
        if part.start > offset {
            offset = part.start / BLOCK_U64 * BLOCK_U64;
        }
        let unit_end = (offset / UNIT + 1) * UNIT;
        let end = unit_end.min(part.end.next_multiple_of(BLOCK_U64)).min(size);
        let length = (end - offset) as usize;
        let physical = stream.append_with(length, |buffer| {
            fill(source, parts, offset, buffer)?;
            Ok::<_, CopyError>(!is_zero(buffer))
        })?;
        if let Some(physical) = physical {
            let logical = (offset / BLOCK_U64) as u32;
            let length = length.div_ceil(BLOCK) as u32;
            extent::push(&mut extents, Extent { logical, physical, length });
        }
        tick(length as u64);
        offset = end;
        if end == size {
            break;
        }
    }
    Ok(extents.into())
}

/// Reads the parts that lie within `buffer`, which starts at `offset` and is zero before.
fn fill(
    source: &mut dyn ByteSource,
    parts: &[std::ops::Range<u64>],
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), CopyError> {
    let end = offset + buffer.len() as u64;
    for part in parts.iter().take_while(|part| part.start < end) {
        let from = part.start.max(offset);
        let to = part.end.min(end);
        let mut at = from;
        while at < to {
            let target = &mut buffer[(at - offset) as usize..(to - offset) as usize];
            match source.read_at(at, target) {
                Ok(0) => {
                    let expected = parts.last().map_or(0, |part| part.end);
                    return Err(CopyError::Content(Problem::Truncated { expected, got: at }));
                }
                Ok(count) => at += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CopyError::Content(Problem::Read(error))),
            }
        }
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |sum, &byte| sum | byte) == 0)
}
