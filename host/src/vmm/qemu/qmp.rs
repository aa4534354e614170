//! QEMU's monitor protocol: JSON objects, one a line.
//!
//! This module knows the bytes and does no IO; [`client`] moves them.
//!
//! | from QEMU                                    | is                       |
//! |----------------------------------------------|--------------------------|
//! | `{"QMP": …}`                                 | the greeting, once       |
//! | `{"return": value, "id": n}`                 | a command has succeeded  |
//! | `{"error": {"class", "desc"}, "id": n}`      | a command has failed     |
//! | `{"event": name, "data": {…}, "timestamp"}`  | something has happened   |

mod client;

pub(super) use client::Qmp;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use thiserror::Error;

/// The longest line that is taken. Answers to what we ask have a few hundred bytes.
const LINE_LIMIT: usize = 4 << 20;

/// Why a command has no result.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum QmpError {
    /// QEMU says why.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// What it was told.
        command: String,
        /// In its words.
        reason: String,
    },
    /// QEMU did not answer, or what was to follow did not happen.
    #[error("QEMU did not complete {0} in time")]
    TimedOut(String),
    /// QEMU has ended, or closed its monitor.
    #[error("QEMU has ended")]
    Closed,
    /// What came is not the protocol.
    #[error("QEMU's monitor said something unknown: {0}")]
    Malformed(String),
}

/// Something that has happened in QEMU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Event {
    #[serde(rename = "event")]
    pub(super) name: String,
    #[serde(default)]
    pub(super) data: Map<String, Value>,
}

impl Event {
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key)?.as_str()
    }
}

/// One line from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Message {
    Greeting,
    /// The outcome of the command with this id; an error is QEMU's text.
    Answer {
        id: Option<u64>,
        outcome: Result<Value, String>,
    },
    Event(Event),
}

/// Cuts bytes into messages.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    /// How much of it is known to have no line end.
    searched: usize,
}

impl Decoder {
    /// Takes bytes, cut anywhere.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub(super) fn next_message(&mut self) -> Result<Option<Message>, QmpError> {
        loop {
            let found = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
            let Some(end) = found.map(|at| self.searched + at) else {
                self.searched = self.buffer.len();
                return match self.searched > LINE_LIMIT {
                    true => Err(QmpError::Malformed(format!("a line of over {LINE_LIMIT} bytes"))),
                    false => Ok(None),
                };
            };
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return parse(line.trim_ascii()).map(Some);
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let unknown = || {
        let start = &line[..line.len().min(200)];
        QmpError::Malformed(String::from_utf8_lossy(start).escape_debug().to_string())
    };
    let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else { return Err(unknown()) };
    if object.contains_key("QMP") {
        return Ok(Message::Greeting);
    }
    if object.contains_key("event") {
        let event = serde_json::from_value(Value::Object(object)).map_err(|_| unknown())?;
        return Ok(Message::Event(event));
    }
    let id = object.get("id").and_then(Value::as_u64);
    if let Some(value) = object.remove("return") {
        return Ok(Message::Answer { id, outcome: Ok(value) });
    }
    let reason = object.get("error").and_then(|error| error.get("desc")?.as_str());
    let reason = reason.ok_or_else(unknown)?.to_owned();
    Ok(Message::Answer { id, outcome: Err(reason) })
}

/// One command as a line.
fn encode(command: &str, arguments: &Value, id: u64) -> Vec<u8> {
    let mut document = json!({ "execute": command, "id": id });
    if !arguments.is_null() {
        document["arguments"] = arguments.clone();
    }
    let mut line = document.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder) -> Vec<Message> {
        std::iter::from_fn(|| decoder.next_message().unwrap()).collect()
    }

    const SESSION: &str = concat!(
        r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#,
        "\r\n",
        r#"{"return": {}, "id": 0}"#,
        "\r\n",
        r#"{"timestamp": {"seconds": 1}, "event": "DEVICE_DELETED", "data": {"device": "d"}}"#,
        "\r\n\r\n",
        r#"{"id": 1, "error": {"class": "GenericError", "desc": "no such node"}}"#,
        "\r\n",
    );

    #[test]
    fn messages_are_found_wherever_the_bytes_are_cut() {
        let mut whole = Decoder::default();
        whole.push(SESSION.as_bytes());
        let expected = all(&mut whole);
        assert_eq!(expected.len(), 4);
        assert_eq!(expected[0], Message::Greeting);
        assert_eq!(expected[1], Message::Answer { id: Some(0), outcome: Ok(json!({})) });
        let Message::Event(event) = &expected[2] else { panic!("{expected:?}") };
        assert_eq!((event.name.as_str(), event.text("device")), ("DEVICE_DELETED", Some("d")));
        let refused = Message::Answer { id: Some(1), outcome: Err("no such node".into()) };
        assert_eq!(expected[3], refused);

        for size in 1..SESSION.len() {
            let mut cut = Decoder::default();
            let mut found = Vec::new();
            for piece in SESSION.as_bytes().chunks(size) {
                cut.push(piece);
                found.extend(all(&mut cut));
            }
            assert_eq!(found, expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_event_may_come_without_data() {
        let mut decoder = Decoder::default();
        decoder.push(b"{\"event\": \"STOP\"}\n");
        let Some(Message::Event(event)) = decoder.next_message().unwrap() else { panic!() };
        assert_eq!((event.name.as_str(), event.text("reason")), ("STOP", None));
    }

    #[test]
    fn what_is_not_the_protocol_is_an_error_and_not_a_panic() {
        for line in
            ["null\n", "[]\n", "{}\n", "{\"error\": 1}\n", "\u{1b}[31m\n", "{\"event\": 7}\n"]
        {
            let mut decoder = Decoder::default();
            decoder.push(line.as_bytes());
            assert!(matches!(decoder.next_message(), Err(QmpError::Malformed(_))), "{line:?}");
        }
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let mut decoder = Decoder::default();
        decoder.push(&vec![b' '; LINE_LIMIT + 1]);
        assert!(decoder.next_message().is_err());
    }

    #[test]
    fn a_command_is_one_line_with_its_id() {
        let line = encode("device_del", &json!({ "id": "a\nb" }), 7);
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let value: Value = serde_json::from_slice(&line).unwrap();
        let expected = json!({ "execute": "device_del", "arguments": { "id": "a\nb" }, "id": 7 });
        assert_eq!(value, expected);
        let bare: Value = serde_json::from_slice(&encode("quit", &Value::Null, 8)).unwrap();
        assert_eq!(bare, json!({ "execute": "quit", "id": 8 }));
    }
}
