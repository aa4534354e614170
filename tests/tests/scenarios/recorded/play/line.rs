//! A line of a recording.

use linkspan_protocol::{Kind, MessageType};
use serde_json::Value;

pub(super) enum Line {
    Note(String),
    /// No whole frame.
    Bytes(Vec<u8>),
    /// A request that is no JSON document.
    Text {
        message: MessageType,
        id: u64,
        text: String,
    },
    Request {
        message: MessageType,
        id: u64,
        body: Value,
    },
    Response {
        id: u64,
        body: Value,
    },
    Notification(Value),
}

impl Line {
    pub(super) fn parse(line: &str) -> Self {
        let line: Value = serde_json::from_str(line).expect("a recording is JSON");
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        if let Some(note) = text("note") {
            return Self::Note(note);
        }
        if let Some(hex) = text("raw_frame_hex") {
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
            return Self::Bytes((0..hex.len()).step_by(2).map(byte).collect());
        }
        let number = text("type").expect("a type");
        let number = u32::from_str_radix(number.trim_start_matches("0x"), 16).expect("a number");
        let (message, id) = (MessageType(number), line["id"].as_u64().expect("an id"));
        let body = line["body"].clone();
        match message.kind() {
            Kind::Notification => Self::Notification(body),
            Kind::Response => Self::Response { id, body },
            _ => match text("raw") {
                Some(text) => Self::Text { message, id, text },
                None => Self::Request { message, id, body },
            },
        }
    }
}
