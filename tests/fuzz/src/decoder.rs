//! Any bytes, cut anywhere: no panic, the same frames however they are cut, and never more kept
//! than came in or than the limit allows.

use linkspan_protocol::frame::{Decoder, Frame, FrameError, HEADER_LEN};

const LIMIT: usize = 4096;

fn frames<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<FrameError>) {
    let (mut decoder, mut seen, mut left) = (Decoder::new(LIMIT), Vec::new(), 0);
    for piece in pieces {
        decoder.push(piece);
        left += piece.len();
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.payload.len() <= LIMIT - HEADER_LEN);
                    left -= HEADER_LEN + frame.payload.len();
                    seen.push(frame);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_frame(), Err(error.clone()), "an error stays");
                    return (seen, Some(error));
                }
            }
        }
        assert_eq!(decoder.pending(), left);
        assert!(left < LIMIT);
    }
    (seen, None)
}

/// Tries an input: a byte says how the rest is cut.
pub fn run(input: &[u8]) {
    let Some((&cut, stream)) = input.split_first() else { return };
    let cut = usize::from(cut) + 1;
    assert_eq!(frames(stream.chunks(cut)), frames(stream.chunks(LIMIT * 16)));
}
