//! How an input of the `client` and `server` targets is taken apart.
//!
//! It is a script. Its first byte holds [`Options`],
//! the rest is a list of lines, and each line one [`Step`]:
//!
//! | line starts with | meaning                                                               |
//! |------------------|-----------------------------------------------------------------------|
//! | `!`              | the connection is lost                                                |
//! | `?`              | the other thing a target can do: see there                            |
//! | `=`              | the rest goes to the peer as it is, no frame is made of it            |
//! | other            | one frame: this byte selects its type, the next its id, then the body |
//!
//! So a mutation rarely breaks the framing, which the `decoder` target looks after, and gets deep
//! into what the frames mean.

use linkspan_protocol::MessageType;
use linkspan_protocol::frame::{self, Decoder, Frame, HOST_LIMIT};

/// The types of all requests, one that nobody knows, a response, and a notification.
pub const TYPES: [MessageType; 19] = [
    MessageType::CREATE,
    MessageType::START,
    MessageType::SHUTDOWN_GRACEFUL,
    MessageType::SHUTDOWN_FORCED,
    MessageType::EXECUTE_PROCESS,
    MessageType::WAIT_FOR_PROCESS,
    MessageType::SIGNAL_PROCESS,
    MessageType::RESIZE_CONSOLE,
    MessageType::GET_PROPERTIES,
    MessageType::MODIFY_SETTINGS,
    MessageType::NEGOTIATE_PROTOCOL,
    MessageType::DUMP_STACKS,
    MessageType::DELETE_CONTAINER_STATE,
    MessageType::UPDATE_CONTAINER,
    MessageType::LIFECYCLE_NOTIFICATION,
    MessageType::MODIFY_SERVICE_SETTINGS,
    MessageType::NOTIFICATION,
    MessageType(0x2010_0101),
    MessageType(0x1010_7701),
];

/// The type that a byte of the input stands for; `a` is the first of [`TYPES`].
pub fn message_type(selector: u8) -> MessageType {
    TYPES[usize::from(selector.wrapping_sub(b'a')) % TYPES.len()]
}

/// How a script is to be run.
#[derive(Clone, Copy)]
pub struct Options {
    /// Begin with a negotiation that succeeds.
    pub negotiate: bool,
    /// Answer the youngest request first.
    pub last_first: bool,
    /// Hand bytes over in pieces of this many.
    pub cut: usize,
}

/// One line of a script.
pub enum Step<'a> {
    /// A frame with this type, id and body.
    Frame(MessageType, u64, &'a [u8]),
    /// Bytes for the peer.
    Raw(&'a [u8]),
    /// The connection is lost.
    Lost,
    /// What the target makes of it, with the next byte.
    Other(u8),
}

/// Takes an input apart.
pub fn script(input: &[u8]) -> (Options, impl Iterator<Item = Step<'_>>) {
    let (&first, rest) = input.split_first().unwrap_or((&0, &[]));
    let cut = [usize::MAX, 1, 7, 16, 17, 100, 1000, 4096][usize::from(first >> 2 & 7)];
    let options = Options { negotiate: first & 1 == 0, last_first: first & 2 != 0, cut };
    let steps = rest.split(|&byte| byte == b'\n').filter_map(|line| match line {
        [] => None,
        [b'!', ..] => Some(Step::Lost),
        [b'?', rest @ ..] => Some(Step::Other(rest.first().copied().unwrap_or(0))),
        [b'=', rest @ ..] => Some(Step::Raw(rest)),
        [selector] => Some(Step::Frame(message_type(*selector), 0, b"")),
        [selector, id, body @ ..] => {
            Some(Step::Frame(message_type(*selector), u64::from(id.wrapping_sub(b'0')), body))
        }
    });
    (options, steps)
}

/// The bytes of one frame.
pub fn frame(message_type: MessageType, id: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let Ok(()) = frame::encode::<std::convert::Infallible>(&mut out, message_type, id, |out| {
        out.extend_from_slice(body);
        Ok(())
    });
    out
}

/// Reads what one of our ends transmits: exactly one frame, no larger than a host accepts if
/// `for_host`, with a JSON object in it.
pub fn transmitted(bytes: &[u8], for_host: bool) -> (Frame, serde_json::Value) {
    let mut decoder = Decoder::new(if for_host { HOST_LIMIT } else { usize::MAX });
    decoder.push(bytes);
    let frame = decoder.next_frame().expect("a size within the limit").expect("a whole frame");
    assert_eq!(decoder.pending(), 0, "more than one frame");
    let document = serde_json::from_slice(&frame.payload).expect("a JSON document");
    assert!(matches!(document, serde_json::Value::Object(_)), "a JSON object");
    (frame, document)
}
