//! File contents on their way into an image.

use std::io;
use std::ops::Range;

use crate::error::{Error, Problem};
use crate::ext4::extent::{self, Extent};
use crate::ext4::stream::BlockStream;
use crate::ext4::{BLOCK, BLOCK_U64};
use crate::sparse::SparseMap;

/// Largest file: block numbers within a file have 32 bits.
pub(crate) const MAX_FILE: u64 = u32::MAX as u64 * BLOCK_U64;
/// Zeros become a hole only if they fill this many aligned bytes, lest files get too many extents.
pub(crate) const UNIT: u64 = 64 << 10;

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
    let mut extents = Vec::new();
    let mut spans = Spans::new(map, BLOCK_U64)?;
    while spans.more() {
        let (first, room) = stream.room(UNIT as usize)?;
        let Some(span) = spans.next(room.len() as u64) else { break };
        let room = &mut room[..(span.end - span.start) as usize];
        spans.fill(source, span.start, room)?;
        let mut kept = 0;
        for unit in units(&span) {
            let here = (unit.start - span.start) as usize..(unit.end - span.start) as usize;
            if is_zero(&room[here.clone()]) {
                continue;
            }
            let length = here.len();
            extent::push(
                &mut extents,
                Extent {
                    logical: (unit.start / BLOCK_U64) as u32,
                    physical: first + (kept / BLOCK) as u32,
                    length: length.div_ceil(BLOCK) as u32,
                },
            );
            if here.start != kept {
                room.copy_within(here, kept);
            }
            kept += length;
        }
        stream.commit(kept)?;
        tick(span.end - span.start);
    }
    Ok(extents.into())
}

/// The data of a file in pieces that fit a buffer.
pub(crate) struct Spans<'m> {
    parts: &'m [Range<u64>],
    size: u64,
    /// Pieces begin and end at multiples of this, the end of the file apart.
    align: u64,
    offset: u64,
}

impl<'m> Spans<'m> {
    /// `align` divides [`UNIT`].
    pub(crate) fn new(map: &'m SparseMap, align: u64) -> Result<Self, CopyError> {
        let size = map.size;
        if size > MAX_FILE {
            return Err(CopyError::Content(Problem::FileTooLarge { size, limit: MAX_FILE }));
        }
        Ok(Self { parts: &map.data, size, align, offset: 0 })
    }

    /// Whether there is another piece.
    pub(crate) fn more(&mut self) -> bool {
        while self.parts.first().is_some_and(|part| part.end <= self.offset) {
            self.parts = &self.parts[1..];
        }
        !self.parts.is_empty()
    }

    /// The next piece, of at most `most` bytes, which are at least one unit.
    pub(crate) fn next(&mut self, most: u64) -> Option<Range<u64>> {
        if !self.more() {
            return None;
        }
        let part = self.parts.first()?;
        let start = self.offset.max(part.start / self.align * self.align);
        let limit = (start + most) / UNIT * UNIT;
        let end = limit.min(part.end.next_multiple_of(self.align)).min(self.size);
        self.offset = end;
        Some(start..end)
    }

    /// Reads a piece from `offset`: what is a hole in it becomes zeros.
    pub(crate) fn fill(
        &self,
        source: &mut dyn ByteSource,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), CopyError> {
        let end = offset + buffer.len() as u64;
        let mut at = offset;
        for part in self.parts.iter().take_while(|part| part.start < end) {
            let from = part.start.max(offset);
            let to = part.end.min(end);
            buffer[(at - offset) as usize..(from - offset) as usize].fill(0);
            at = from;
            while at < to {
                let target = &mut buffer[(at - offset) as usize..(to - offset) as usize];
                match source.read_at(at, target) {
                    Ok(0) => {
                        let expected = self.parts.last().map_or(0, |part| part.end);
                        return Err(CopyError::Content(Problem::Truncated { expected, got: at }));
                    }
                    Ok(count) => at += count as u64,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(CopyError::Content(Problem::Read(error))),
                }
            }
        }
        buffer[(at - offset) as usize..].fill(0);
        Ok(())
    }
}

/// Divides a piece where zeros may become a hole.
pub(crate) fn units(span: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let (mut start, end) = (span.start, span.end);
    std::iter::from_fn(move || {
        let unit = start..end.min((start / UNIT + 1) * UNIT);
        start = unit.end;
        (!unit.is_empty()).then_some(unit)
    })
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |sum, &byte| sum | byte) == 0)
}
