//! What holds for every frame that a guest sends, whatever a check is about.
//!
//! A frame that breaks one of these rules is noted under the rule's own statement, so that a
//! defect is told where it belongs and not by whichever check met it.

use std::collections::HashMap;

use linkspan_protocol::frame::{Frame, HOST_LIMIT};
use linkspan_protocol::{Kind, MessageType};
use serde_json::Value;

use crate::wire::hresult;

/// A response as it came.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its type.
    pub message_type: MessageType,
    /// The id of the request.
    pub id: u64,
    /// The document.
    pub body: Value,
}

/// What the request was.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Its type.
    pub(crate) message_type: MessageType,
    /// What its `ActivityId` has to be answered with.
    pub(crate) echo: Echo,
}

/// What becomes of an `ActivityId`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    /// It comes back; an empty one, or none, does not.
    Exactly(String),
    /// The request could not be read; whatever comes is right.
    Any,
}

/// Frames so far.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Requests without a response. An id may be in use more than once.
    asked: HashMap<u64, Vec<Asked>>,
    /// Statement and what it says.
    violations: Vec<(u32, String)>,
}

/// What a frame is, after a look at it.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A response to something that was asked.
    Response(Response),
    /// A notification's document.
    Notification(Value),
    /// Neither.
    Noise,
}

/// The keys of a response's envelope.
const ENVELOPE: [&str; 4] = ["Result", "ActivityId", "ErrorMessage", "ErrorRecords"];

impl Observer {
    /// Notes a request.
    pub(crate) fn ask(&mut self, id: u64, asked: Asked) {
        self.asked.entry(id).or_default().push(asked);
    }

    /// Violations since the last call.
    pub(crate) fn take(&mut self) -> Vec<(u32, String)> {
        std::mem::take(&mut self.violations)
    }

    /// Whether something has been noted since the last [`take`](Self::take).
    pub(crate) fn has_violations(&self) -> bool {
        !self.violations.is_empty()
    }

    /// Notes a violation of a statement.
    pub(crate) fn violation(&mut self, statement: u32, text: impl Into<String>) {
        self.violations.push((statement, text.into()));
    }

    /// Looks at a frame.
    pub(crate) fn look(&mut self, frame: &Frame) -> Seen {
        let size = frame.payload.len() + linkspan_protocol::frame::HEADER_LEN;
        if size > HOST_LIMIT {
            let text =
                format!("{} has {size} bytes; hosts end at {HOST_LIMIT}", frame.message_type);
            self.violation(12, text);
        }
        let body = match serde_json::from_slice::<Value>(&frame.payload) {
            Ok(body) if body.is_object() => body,
            Ok(other) => {
                self.violation(6, format!("the payload is no object: {other}"));
                return Seen::Noise;
            }
            // A document that ends too early was cut by the size in its header.
            Err(error) if error.is_eof() && !frame.payload.is_empty() => {
                let text = format!(
                    "the size of {} ends inside its document: {size} bytes",
                    frame.message_type
                );
                self.violation(5, text);
                return Seen::Noise;
            }
            Err(error) => {
                self.violation(
                    6,
                    format!("the payload of {} is no JSON: {error}", frame.message_type),
                );
                return Seen::Noise;
            }
        };
        match frame.message_type.kind() {
            Kind::Notification => {
                self.notification(frame, &body);
                Seen::Notification(body)
            }
            Kind::Response => self.response(frame, body),
            _ => {
                let text = format!("{} is neither response nor notification", frame.message_type);
                self.violation(9, text);
                Seen::Noise
            }
        }
    }

    fn notification(&mut self, frame: &Frame, body: &Value) {
        if (frame.message_type, frame.id) != (MessageType::NOTIFICATION, 0) {
            let text = format!("{} with id {}: {body}", frame.message_type, frame.id);
            self.violation(84, text);
        }
        if let Some(info) = body.get("ResultInfo") {
            self.violation(85, format!("ResultInfo is {info}"));
        }
    }

    fn response(&mut self, frame: &Frame, body: Value) -> Seen {
        let Frame { message_type, id, .. } = *frame;
        let Some(waiting) = self.asked.get_mut(&id) else {
            self.violation(10, format!("{message_type} has id {id}, which no request has"));
            return Seen::Noise;
        };
        let at = waiting.iter().position(|asked| asked.message_type.response() == message_type);
        let right = at.is_some();
        let asked = waiting.remove(at.unwrap_or(0));
        if waiting.is_empty() {
            self.asked.remove(&id);
        }
        if !right {
            let want = asked.message_type.response();
            let text = format!(
                "{:#010x} answers {}, not {:#010x}",
                message_type.0, asked.message_type, want.0
            );
            self.violation(9, text);
        }
        self.envelope(&asked, &body);
        Seen::Response(Response { message_type, id, body })
    }

    fn envelope(&mut self, asked: &Asked, body: &Value) {
        let kind = asked.message_type;
        if let Echo::Exactly(activity) = &asked.echo {
            let expected = Some(activity.as_str()).filter(|activity| !activity.is_empty());
            let echoed = body.get("ActivityId");
            if echoed.map(|echoed| echoed.as_str()) != expected.map(Some) {
                let text =
                    format!("{kind} with ActivityId {activity:?} is answered with {echoed:?}");
                self.violation(16, text);
            }
        }
        let Some(result) = body
            .get("Result")
            .and_then(Value::as_i64)
            .filter(|&result| i32::try_from(result).is_ok())
        else {
            let text = format!("the Result of {kind} is {:?}", body.get("Result"));
            self.violation(36, text);
            return;
        };
        if result == 0 {
            for key in ["ErrorMessage", "ErrorRecords"] {
                if body.get(key).is_some() {
                    self.violation(18, format!("{kind} has succeeded, and has {key}"));
                }
            }
            return;
        }
        for key in body.as_object().into_iter().flatten().map(|(key, _)| key) {
            if !ENVELOPE.contains(&key.as_str()) {
                self.violation(35, format!("{kind} has failed, and has {key}"));
            }
        }
        self.records(kind, result, body);
    }

    fn records(&mut self, kind: MessageType, result: i64, body: &Value) {
        let records = body.get("ErrorRecords").and_then(Value::as_array);
        let [record] = records.map(Vec::as_slice).unwrap_or_default() else {
            let count = records.map_or(0, Vec::len);
            self.violation(33, format!("{kind} has failed with {count} error records"));
            return;
        };
        if record["Result"] != result || !record["ModuleName"].is_string() {
            self.violation(33, format!("the record of {kind} does not fit {result}: {record}"));
        }
        let line = record["Line"].as_u64();
        if line.is_none_or(|line| line > u64::from(u32::MAX)) {
            self.violation(34, format!("Line is {}", record["Line"]));
        }
    }
}

impl Response {
    /// `Result`; `None` where it is no number.
    pub fn result(&self) -> Option<i64> {
        self.body.get("Result").and_then(Value::as_i64)
    }

    /// Whether it says so.
    pub fn succeeded(&self) -> bool {
        self.result() == Some(0)
    }

    /// Whether it says that code.
    pub fn is(&self, code: linkspan_protocol::HResult) -> bool {
        self.result() == Some(hresult(code))
    }
}
