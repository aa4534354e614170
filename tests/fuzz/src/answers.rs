//! Any JSON as any answer, or as a notification: what can be read can be written, and reads back
//! as the same.

use std::fmt::Debug;

use linkspan_protocol::message::{
    CreateResponse, DumpStacksResponse, ExecuteProcessResponse, GetPropertiesResponse,
    NegotiateProtocolResponse, Notification, WaitForProcessResponse,
};
use serde_json::Value;

/// Tries an input: a byte says which document the rest is.
pub fn run(input: &[u8]) {
    let Some((&selector, text)) = input.split_first() else { return };
    let Ok(document) = serde_json::from_slice(text) else { return };
    match selector.wrapping_sub(b'a') % 7 {
        0 => same::<NegotiateProtocolResponse>(document),
        1 => same::<CreateResponse>(document),
        2 => same::<ExecuteProcessResponse>(document),
        3 => same::<WaitForProcessResponse>(document),
        4 => same::<GetPropertiesResponse>(document),
        5 => same::<DumpStacksResponse>(document),
        _ => same::<Notification>(document),
    }
}

fn same<T>(document: Value)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
{
    let Ok(read) = serde_json::from_value::<T>(document) else { return };
    let written = serde_json::to_value(&read).expect("what was read can be written");
    let again: T = serde_json::from_value(written).expect("what was written can be read");
    assert_eq!(read, again);
}
