//! Defects of frames: done to what a right guest would send.

use linkspan_protocol::MessageType;
use linkspan_protocol::frame::{Decoder, Frame};
use serde_json::{Value, json};

use super::{Defect, Guest};
use crate::wire::frame;

/// So many frames have to be due for [`Defect::Interleaves`].
const MANY: usize = 40;

pub(super) fn spoil(guest: &Guest, pending: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let Some(defect) = guest.defect else { return pending };
    if defect == Defect::Interleaves {
        return interleave(guest, pending);
    }
    pending.into_iter().flat_map(|bytes| one(defect, bytes)).collect()
}

fn interleave(guest: &Guest, mut pending: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    // Once: what is left unsent goes to the next connection, and is another check's.
    if pending.len() >= MANY && !std::mem::replace(&mut guest.state.borrow_mut().mixed, true) {
        let (first, second) = (pending.remove(0), pending.remove(0));
        let (head, tail) = first.split_at(first.len() / 2);
        let mixed = [head, &second, tail].concat();
        pending.insert(0, mixed);
    }
    pending
}

fn one(defect: Defect, bytes: Vec<u8>) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new(usize::MAX);
    decoder.push(&bytes);
    let Ok(Some(Frame { message_type, id, payload })) = decoder.next_frame() else {
        return vec![bytes];
    };
    if message_type == MessageType::NOTIFICATION {
        return notification(defect, bytes, &payload);
    }
    let mut body: Value = serde_json::from_slice(&payload).unwrap_or_default();
    let failed = body["Result"] != 0;
    let with = |body: &Value| vec![frame(message_type, id, body.to_string().as_bytes())];
    match defect {
        Defect::BigEndian => {
            let mut bytes = bytes;
            bytes[0..4].reverse();
            bytes[4..8].reverse();
            bytes[8..16].reverse();
            vec![bytes]
        }
        Defect::SizeWithoutHeader => {
            let mut bytes = bytes;
            let size = u32::try_from(payload.len()).unwrap_or_default();
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            vec![bytes]
        }
        Defect::WrappedPayload => with(&json!([body])),
        Defect::BareResponseType => vec![frame(MessageType(0x2000_0000), id, &payload)],
        Defect::ShortIds => vec![frame(message_type, id & 0xffff_ffff, &payload)],
        Defect::HugeStacks if message_type == MessageType::DUMP_STACKS.response() && !failed => {
            body["GuestStacks"] = json!("x".repeat(70_000));
            with(&body)
        }
        Defect::NoStacks if message_type == MessageType::DUMP_STACKS.response() && !failed => {
            body["GuestStacks"] = json!("");
            with(&body)
        }
        Defect::DropsActivity => with(&without(body, "ActivityId")),
        Defect::EmptyActivity if body.get("ActivityId").is_none() => {
            body["ActivityId"] = json!("");
            with(&body)
        }
        Defect::EmptyError if !failed => {
            body["ErrorMessage"] = json!("");
            with(&body)
        }
        Defect::NoRecords if failed => with(&without(body, "ErrorRecords")),
        Defect::NegativeLine if failed => {
            body["ErrorRecords"][0]["Line"] = json!(-1);
            with(&body)
        }
        Defect::FailureWithBody if failed => {
            body["ProcessId"] = json!(0);
            with(&body)
        }
        Defect::UnsignedResult if failed => {
            let result = body["Result"].as_i64().unwrap_or_default();
            body["Result"] = json!(result & 0xffff_ffff);
            with(&body)
        }
        Defect::NoDefinedCapabilities if body.get("Capabilities").is_some() => {
            body["Capabilities"] = without(body["Capabilities"].take(), "GuestDefinedCapabilities");
            with(&body)
        }
        _ => vec![bytes],
    }
}

fn notification(defect: Defect, bytes: Vec<u8>, payload: &[u8]) -> Vec<Vec<u8>> {
    match defect {
        Defect::NoNotification => Vec::new(),
        Defect::TwoNotifications => vec![bytes.clone(), bytes],
        Defect::HasResultInfo => {
            let mut body: Value = serde_json::from_slice(payload).unwrap_or_default();
            body["ResultInfo"] = json!("{}");
            vec![frame(MessageType::NOTIFICATION, 0, body.to_string().as_bytes())]
        }
        _ => vec![bytes],
    }
}

fn without(mut body: Value, key: &str) -> Value {
    if let Some(map) = body.as_object_mut() {
        map.remove(key);
    }
    body
}
