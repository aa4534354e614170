//! What went over the wire during a check.

use std::fmt::Write;
use std::time::{Duration, Instant};

use linkspan_protocol::MessageType;
use linkspan_protocol::frame::{Decoder, HEADER_LEN};
use serde::Serialize;

/// Which way bytes went, seen from the harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// By the harness.
    Sent,
    /// From the peer.
    Received,
    /// Nothing went; something happened.
    Event,
}

/// One write, one frame, or one happening.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Since the check began.
    pub at: Duration,
    /// Which way.
    pub way: Way,
    /// The bytes, or the text of a happening.
    pub bytes: Vec<u8>,
}

/// All of one check.
#[derive(Debug)]
pub struct Transcript {
    begun: Instant,
    entries: Vec<Entry>,
    dropped: usize,
}

/// No transcript is longer; the beginning and the end are kept.
const MOST: usize = 400;
/// How much of a document is shown.
const SHOWN: usize = 600;

impl Default for Transcript {
    fn default() -> Self {
        Self { begun: Instant::now(), entries: Vec::new(), dropped: 0 }
    }
}

impl Transcript {
    /// Adds an entry.
    pub fn push(&mut self, way: Way, bytes: &[u8]) {
        if self.entries.len() == MOST {
            self.entries.remove(MOST / 2);
            self.dropped += 1;
        }
        let at = self.begun.elapsed();
        // A check may send a mebibyte; nobody reads that in a report.
        let bytes = bytes[..bytes.len().min(4 * SHOWN)].to_vec();
        self.entries.push(Entry { at, way, bytes });
    }

    /// Adds a happening.
    pub fn note(&mut self, text: &str) {
        self.push(Way::Event, text.as_bytes());
    }

    /// Adds what another transcript has.
    pub(crate) fn replay(&mut self, entries: &[Entry]) {
        for Entry { at, way, bytes } in entries {
            self.push(*way, bytes);
            if let Some(entry) = self.entries.last_mut() {
                entry.at = *at;
            }
        }
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Lines for people: decoded where the bytes are frames, as hexadecimal where they are not.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if self.dropped > 0 && index == MOST / 2 {
                lines.push(format!("… {} entries left out", self.dropped));
            }
            let seconds = entry.at.as_secs_f64();
            match entry.way {
                Way::Event => {
                    lines.push(format!(
                        "{seconds:9.4} -- {}",
                        String::from_utf8_lossy(&entry.bytes)
                    ));
                }
                Way::Sent => lines.push(format!("{seconds:9.4} -> {}", describe(&entry.bytes))),
                Way::Received => lines.push(format!("{seconds:9.4} <- {}", describe(&entry.bytes))),
            }
        }
        lines
    }
}

/// Bytes for people.
pub fn describe(bytes: &[u8]) -> String {
    let mut decoder = Decoder::new(usize::MAX);
    decoder.push(bytes);
    let mut text = String::new();
    while let Ok(Some(frame)) = decoder.next_frame() {
        let separator = if text.is_empty() { "" } else { " ++ " };
        let size = frame.payload.len() + HEADER_LEN;
        let _ = write!(text, "{separator}{} id {} size {size}", frame.message_type, frame.id);
        let body = String::from_utf8_lossy(&frame.payload);
        let _ = write!(text, " {}", shortened(body.trim_end()));
    }
    let rest = &bytes[bytes.len() - decoder.pending().min(bytes.len())..];
    if rest.is_empty() && !text.is_empty() {
        return text;
    }
    if !text.is_empty() {
        text.push_str(" ++ ");
    }
    if let Some(header) = rest.get(..HEADER_LEN) {
        let word =
            |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
        let id = u64::from_le_bytes(header[8..].try_into().unwrap_or_default());
        let kind = MessageType(word(0));
        let _ = write!(text, "part of {kind} id {id} size {} [{}]", word(4), hex(header));
        let _ = write!(text, " {}", shortened(&String::from_utf8_lossy(&rest[HEADER_LEN..])));
    } else {
        let _ = write!(text, "{} bytes [{}]", rest.len(), hex(rest));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;

    #[test]
    fn frames_are_shown_by_name_and_scraps_as_bytes() {
        let mut bytes = frame(MessageType::DUMP_STACKS, 7, b"{\"a\":1}\n");
        assert_eq!(describe(&bytes), "DumpStacks id 7 size 24 {\"a\":1}");
        bytes.extend_from_slice(&[1, 2]);
        assert!(describe(&bytes).ends_with("++ 2 bytes [01 02]"), "{}", describe(&bytes));
        let cut = describe(&frame(MessageType::CREATE, 1, b"{}")[..17]);
        assert!(cut.starts_with("part of Create id 1 size 18 [01 01 10 10"), "{cut}");
    }
}
