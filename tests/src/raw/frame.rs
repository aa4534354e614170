//! Frames, and what holds for every one that a guest sends.

use linkspan_conform::wire::hresult;
use linkspan_protocol::frame::Frame;
use linkspan_protocol::{HResult, Kind, MessageType};
use serde_json::Value;

/// A response that is right as far as every response has to be.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its type.
    pub message_type: MessageType,
    /// The id of the request.
    pub id: u64,
    /// The document.
    pub body: Value,
}

impl Response {
    /// `Result`.
    ///
    /// # Panics
    /// Never: it has been checked.
    pub fn result(&self) -> i64 {
        self.body["Result"].as_i64().expect("was checked")
    }

    /// Asserts success.
    ///
    /// # Panics
    /// On a failure.
    #[track_caller]
    pub fn expect_success(&self) {
        assert_eq!(self.result(), 0, "{}", self.body);
    }

    /// Asserts a failure of this code.
    ///
    /// # Panics
    /// On success and on another code.
    #[track_caller]
    pub fn expect_fault(&self, code: HResult) {
        assert_eq!(self.result(), hresult(code), "not {code}: {}", self.body);
    }
}

/// Checks a frame. A notification is the error.
pub(super) fn check(frame: Frame) -> Result<Response, Value> {
    let Frame { message_type, id, payload } = frame;
    let text = std::str::from_utf8(&payload).expect("a payload is UTF-8");
    let body: Value = serde_json::from_str(text).expect("a payload is one JSON document");
    let keys = body.as_object().unwrap_or_else(|| panic!("no object: {body}"));
    if message_type.kind() == Kind::Notification {
        assert_eq!((message_type, id), (MessageType::NOTIFICATION, 0), "{body}");
        return Err(body);
    }
    assert_eq!(message_type.kind(), Kind::Response, "{message_type:?} {body}");
    let result = body["Result"].as_i64().unwrap_or_else(|| panic!("no Result: {body}"));
    assert!(i32::try_from(result).is_ok(), "Result is no signed 32-bit number: {body}");
    assert_ne!(body["ActivityId"], "", "an empty ActivityId is left out: {body}");
    if result == 0 {
        assert!(!keys.contains_key("ErrorMessage"), "{body}");
        assert!(!keys.contains_key("ErrorRecords"), "{body}");
    } else {
        check_failure(&body, result);
    }
    Ok(Response { message_type, id, body })
}

fn check_failure(body: &Value, result: i64) {
    let envelope = ["Result", "ActivityId", "ErrorMessage", "ErrorRecords"];
    for key in body.as_object().into_iter().flatten().map(|(key, _)| key) {
        assert!(envelope.contains(&key.as_str()), "a failure has no {key}: {body}");
    }
    let records = body["ErrorRecords"].as_array().unwrap_or_else(|| panic!("no records: {body}"));
    let [record] = records.as_slice() else { panic!("not one record: {body}") };
    assert_eq!(record["Result"], result, "{body}");
    assert!(record["ModuleName"].is_string() && record["Message"].is_string(), "{body}");
    assert!(record["Line"].as_u64().is_some_and(|line| line <= u64::from(u32::MAX)), "{body}");
}
