//! Any JSON as any request: what can be read can be written, and reads back as the same.

use crate::script::message_type;
use linkspan_protocol::MessageType;
use linkspan_protocol::message::{Envelope, Request};
use serde_json::Value;

/// As a server does it: the type is known, a `null` is no value at all.
fn read(message_type: MessageType, bytes: &[u8]) -> Option<(Envelope, Request)> {
    let mut document = serde_json::from_slice(bytes).ok()?;
    drop_nulls(&mut document);
    let request = Request::read(message_type, &document)?.ok()?;
    Some((serde_json::from_value(document).ok()?, request))
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn written(envelope: &Envelope, request: &Request) -> Vec<u8> {
    let mut out = Vec::new();
    request.write(envelope, &mut out).expect("what was read can be written");
    assert_eq!(out.pop(), Some(b'\n'));
    out
}

/// Tries an input.
pub fn run(input: &[u8]) {
    let Some((&selector, document)) = input.split_first() else { return };
    let message_type = message_type(selector);
    let Some((envelope, request)) = read(message_type, document) else { return };
    assert_eq!(request.message_type(), message_type);
    let mut before = (envelope, request);
    // Two things settle on their first way through: an opaque document takes the envelope's keys
    // in, and a Create without its nested document gets an empty one.
    let settles = match &before.1 {
        Request::UpdateContainer(_) | Request::LifecycleNotification(_) => true,
        Request::Create(create) => create.container_config.0.is_null(),
        _ => false,
    };
    if settles {
        let out = written(&before.0, &before.1);
        before = read(message_type, &out).expect("what was written can be read");
    }
    let out = written(&before.0, &before.1);
    let after = read(message_type, &out).expect("what was written can be read");
    assert_eq!(before, after, "{}", String::from_utf8_lossy(&out));
}
