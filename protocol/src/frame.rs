//! One bridge frame: a 16-byte header, then a JSON document. Integers are little-endian.
//!
//! | offset | size | field  |                                                              |
//! |-------:|-----:|--------|--------------------------------------------------------------|
//! |      0 |    4 | `type` | kind, category, procedure, version: [`MessageType`]          |
//! |      4 |    4 | `size` | bytes of the whole frame, these 16 included                  |
//! |      8 |    8 | `id`   | the response repeats the request's; 0 in a notification      |

use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::MessageType;

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;

/// The largest frame, header included, that a host accepts: a larger one ends its bridge.
pub const HOST_LIMIT: usize = 0x1_0000;

/// The largest frame that our guest accepts. The reference has no limit; the largest real
/// requests are policy fragments of about a mebibyte.
pub const GUEST_LIMIT: usize = 4 << 20;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    message_type: U32,
    size: U32,
    id: U64,
}

/// A whole frame as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub message_type: MessageType,
    /// Which exchange it belongs to.
    pub id: u64,
    /// The JSON document, not looked at yet.
    pub payload: Vec<u8>,
}

/// A header that no peer in its right mind sends. The stream cannot be followed any further.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "frame {message_type} (id {id}) claims a size of {size} bytes, outside {HEADER_LEN} to {limit}"
)]
pub struct FrameError {
    /// The frame's type.
    pub message_type: MessageType,
    /// The frame's id.
    pub id: u64,
    /// The claimed size, header included.
    pub size: u32,
    /// The largest size that was allowed.
    pub limit: usize,
}

/// Writes a frame whose payload `payload` appends to the buffer it is given.
///
/// # Errors
/// What `payload` returns; nothing is left in `out` then.
pub fn encode<E>(
    out: &mut Vec<u8>,
    message_type: MessageType,
    id: u64,
    payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    if let Err(error) = payload(out) {
        out.truncate(start);
        return Err(error);
    }
    let size = u32::try_from(out.len() - start).expect("a document of 4 GiB");
    let header =
        Header { message_type: message_type.0.into(), size: size.into(), id: U64::new(id) };
    out[start..start + HEADER_LEN].copy_from_slice(header.as_bytes());
    Ok(())
}

/// Cuts a byte stream into frames. It holds no more than what has arrived of one frame and
/// whatever was handed over with it: a claimed size alone allocates nothing.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// A decoder that refuses frames of more than `limit` bytes, header included.
    pub fn new(limit: usize) -> Self {
        Self { limit, buffer: Vec::new(), start: 0 }
    }

    /// Takes bytes as they came from the peer, cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` while there is none.
    ///
    /// # Errors
    /// [`FrameError`] when the size in a header is out of range. It stays that way: the
    /// connection has to be given up.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Ok((header, body)) = Header::read_from_prefix(rest) else { return Ok(None) };
        let (message_type, id) = (MessageType(header.message_type.get()), header.id.get());
        let size = header.size.get();
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        if !(HEADER_LEN..=self.limit).contains(&length) {
            return Err(FrameError { message_type, id, size, limit: self.limit });
        }
        let Some(payload) = body.get(..length - HEADER_LEN) else { return Ok(None) };
        let frame = Frame { message_type, id, payload: payload.to_vec() };
        self.start += length;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            // A rare huge request must not stay in the agent's memory for ever.
            self.buffer.shrink_to(HOST_LIMIT);
        }
        Ok(Some(frame))
    }

    /// Bytes that wait for the rest of their frame.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u32, id: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode::<()>(&mut out, MessageType(kind), id, |out| {
            out.extend_from_slice(payload);
            Ok(())
        })
        .unwrap();
        out
    }

    #[test]
    fn header_is_sixteen_little_endian_bytes_and_counts_itself() {
        let bytes = frame(0x1010_0b01, 0x0102_0304_0506_0708, b"{}");
        assert_eq!(bytes, [1, 0x0b, 0x10, 0x10, 18, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, b'{', b'}']);
    }

    #[test]
    fn size_below_the_header_or_above_the_limit_is_refused() {
        for size in [0u32, 15, 101, 0x7fff_ffff, u32::MAX] {
            let mut bytes = frame(0x1010_0101, 7, b"");
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            let mut decoder = Decoder::new(100);
            decoder.push(&bytes);
            assert_eq!(decoder.next_frame().unwrap_err().size, size);
        }
        let mut decoder = Decoder::new(100);
        decoder.push(&frame(0x1010_0101, 7, &[b' '; 84]));
        assert_eq!(decoder.next_frame().unwrap().unwrap().payload.len(), 84);
    }

    #[test]
    fn a_claimed_size_allocates_nothing() {
        let mut bytes = frame(0x1010_0101, 7, b"");
        bytes[4..8].copy_from_slice(&(GUEST_LIMIT as u32).to_le_bytes());
        let mut decoder = Decoder::new(GUEST_LIMIT);
        decoder.push(&bytes);
        assert_eq!(decoder.next_frame().unwrap(), None);
        assert!(decoder.buffer.capacity() < 4096);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            frames in prop::collection::vec(
                (any::<u32>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(1usize..64, 1..64),
        ) {
            let stream: Vec<u8> =
                frames.iter().flat_map(|(kind, id, payload)| frame(*kind, *id, payload)).collect();
            let (mut decoder, mut seen, mut rest) = (Decoder::new(1024), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                decoder.push(head);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push((frame.message_type.0, frame.id, frame.payload));
                }
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(decoder.pending(), 0);
        }
    }
}
