//! Plays one side of a recorded bridge again, for the other to be looked at.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use hyperv_socket::Stream;
use linkspan_protocol::MessageType;
use linkspan_protocol::frame::{Decoder, Frame, GUEST_LIMIT};
use linkspan_protocol::port;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::capture::{Direction, Packet, PacketKind};

/// What the peer did that it did not do when it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which frame of the recording, counted from 0.
    pub frame: usize,
    /// What was recorded, and what came.
    pub text: String,
}

/// Plays the frames that went `as_side`'s way on one bridge connection, each when the peer's
/// frames before it have come. Frames of the peer are compared by type, id and `Result`.
///
/// # Errors
/// What the stream gives; `TimedOut` when a frame does not come within `patience`.
pub async fn play(
    packets: &[Packet],
    as_side: Direction,
    mut stream: Stream,
    patience: Duration,
) -> io::Result<Vec<Difference>> {
    let first =
        packets.iter().find(|packet| packet.port == port::BRIDGE).map(|packet| packet.connection);
    let frames = packets.iter().filter(|packet| {
        packet.kind == PacketKind::Frame
            && packet.port == port::BRIDGE
            && Some(packet.connection) == first
    });
    let mut decoder = Decoder::new(GUEST_LIMIT);
    let (mut differences, mut early) = (Vec::new(), VecDeque::<Frame>::new());
    let mut buffer = vec![0; 64 << 10];
    for (index, packet) in frames.enumerate() {
        if packet.direction == as_side {
            stream.write_all(&packet.bytes).await?;
            continue;
        }
        let Some(wanted) = parsed(&packet.bytes) else { continue };
        // Answers may come in another order than they did.
        let frame = loop {
            if let Some(at) = early.iter().position(|frame| {
                (frame.message_type, frame.id) == (wanted.message_type, wanted.id)
            }) {
                break early.remove(at);
            }
            match decoder.next_frame() {
                Ok(Some(frame)) => early.push_back(frame),
                Ok(None) => {
                    let read = timeout(patience, stream.read(&mut buffer)).await;
                    let Ok(read) = read else {
                        let text = format!(
                            "no {} with id {} within {patience:?}",
                            wanted.message_type, wanted.id
                        );
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    };
                    match read? {
                        0 => break None,
                        len => decoder.push(&buffer[..len]),
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        };
        let Some(frame) = frame else {
            let text =
                format!("the peer closes before {} with id {}", wanted.message_type, wanted.id);
            differences.push(Difference { frame: index, text });
            break;
        };
        let (was, is) = (result(&wanted), result(&frame));
        if was != is {
            let text = format!(
                "{} with id {}: Result was {was:?}, is {is:?}",
                wanted.message_type, wanted.id
            );
            differences.push(Difference { frame: index, text });
        }
    }
    Ok(differences)
}

fn parsed(bytes: &[u8]) -> Option<Frame> {
    let mut decoder = Decoder::new(GUEST_LIMIT);
    decoder.push(bytes);
    decoder.next_frame().ok().flatten()
}

fn result(frame: &Frame) -> Option<Value> {
    if frame.message_type == MessageType::NOTIFICATION {
        return None;
    }
    let body: Value = serde_json::from_slice(&frame.payload).ok()?;
    body.get("Result").cloned()
}
