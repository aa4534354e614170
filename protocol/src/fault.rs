//! A request's failure as it crosses the wire.

use serde::{Deserialize, Serialize};

use crate::HResult;
use crate::json::is_zero;

/// Longest message that a fault carries, in bytes: it appears twice in a response, which has to
/// stay below the host's limit.
const MESSAGE_LIMIT: usize = 8 << 10;

/// A failed request: what the guest answers in place of a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({result})")]
pub struct Fault {
    /// The code that programs act on.
    pub result: HResult,
    /// The text that people read.
    pub message: String,
    /// Where in the agent it came from; empty from our own.
    pub records: Vec<ErrorRecord>,
}

impl Fault {
    /// A fault with a code and a text. A text of more than 8 KiB is cut.
    pub fn new(result: HResult, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_LIMIT {
            let end = (0..=MESSAGE_LIMIT).rev().find(|&at| message.is_char_boundary(at));
            message.truncate(end.unwrap_or(0));
            message.push('…');
        }
        Self { result, message, records: Vec::new() }
    }
}

/// One entry of a failed response's `ErrorRecords`; hosts log it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ErrorRecord {
    /// The code.
    pub result: HResult,
    /// The text.
    pub message: String,
    /// A stack trace, if there is one.
    #[serde(skip_serializing_if = "is_zero")]
    pub stack_trace: String,
    /// The program.
    pub module_name: String,
    /// The source file's name, or empty.
    pub file_name: String,
    /// The line; `u32::MAX` where it is not known.
    pub line: u32,
    /// The function, if known.
    #[serde(skip_serializing_if = "is_zero")]
    pub function_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_message_is_cut_at_a_character() {
        let fault = Fault::new(HResult::FAIL, "ü".repeat(MESSAGE_LIMIT));
        assert!(fault.message.len() <= MESSAGE_LIMIT + 3);
        assert!(fault.message.ends_with("ü…"));
    }
}
