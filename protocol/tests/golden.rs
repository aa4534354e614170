//! Recorded conversations of the reference agent (hcsshim 7c9ff7f4) in a virtual machine: all of
//! it has to be readable, lose nothing on the way through our types, and where our [`Server`]
//! answers by itself it has to answer as the reference did.

use linkspan_protocol::frame::{self, Decoder, HOST_LIMIT};
use linkspan_protocol::message::*;
use linkspan_protocol::{Client, ClientEvent, HResult, MessageType, Server, ServerOptions};
use serde_json::Value;

const RECORDINGS: [(&str, &str); 6] = [
    ("negotiate", include_str!("golden/01-negotiate.jsonl")),
    ("negotiate range", include_str!("golden/01b-negotiate-range.jsonl")),
    ("modify", include_str!("golden/02-modify.jsonl")),
    ("lifecycle", include_str!("golden/03-lifecycle.jsonl")),
    ("vpmem", include_str!("golden/09-vpmem.jsonl")),
    ("network", include_str!("golden/10-network-pod.jsonl")),
];

struct Line {
    to_guest: bool,
    message_type: MessageType,
    id: u64,
    payload: Vec<u8>,
    body: Option<Value>,
}

fn lines(text: &str) -> impl Iterator<Item = Line> {
    text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).expect("a recording is JSON");
        let number = line.get("type")?.as_str()?.trim_start_matches("0x").to_owned();
        let body = line.get("body").cloned();
        let payload = match (&body, line.get("raw").and_then(Value::as_str)) {
            (Some(body), _) => body.to_string().into_bytes(),
            (None, raw) => raw?.as_bytes().to_vec(),
        };
        Some(Line {
            to_guest: line["dir"] == "h2g",
            message_type: MessageType(u32::from_str_radix(&number, 16).unwrap()),
            id: line["id"].as_u64().unwrap(),
            payload,
            body,
        })
    })
}

/// A document without what Go leaves out, and with its nested documents opened: two of these are
/// equal if a Go program reads the same from both.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| {
                let nested = ["ContainerConfig", "ProcessParameters", "Query", "Properties"];
                match value.as_str().and_then(|text| serde_json::from_str(text).ok()) {
                    Some(inner) if nested.contains(&key.as_str()) => (key, plain(&inner)),
                    _ => (key, plain(value)),
                }
            })
            .filter(|(_, value)| !is_empty(value))
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

#[test]
fn recorded_requests_lose_nothing_on_the_way_through_our_types() {
    let mut seen = std::collections::BTreeMap::<_, usize>::new();
    for (name, text) in RECORDINGS {
        for line in lines(text).filter(|line| line.to_guest) {
            let Some(body) = &line.body else { continue };
            let Some(Ok(request)) = Request::read(line.message_type, body) else { continue };
            let envelope: Envelope = serde_json::from_value(body.clone()).unwrap();
            let mut out = Vec::new();
            request.write(&envelope, &mut out).unwrap();
            let written: Value = serde_json::from_slice(&out).unwrap();
            if let Request::ModifySettings(ModifySettings { request: Some(inner) }) = &request
                && matches!(inner.target, ModifyTarget::Unreadable(_))
            {
                continue;
            }
            assert_eq!(plain(&written), plain(body), "{name} {} {}", line.message_type, line.id);
            *seen.entry(line.message_type).or_default() += 1;
        }
    }
    assert!(seen.len() >= 12, "only {seen:?}");
    assert!(seen[&MessageType::MODIFY_SETTINGS] >= 40 && seen[&MessageType::CREATE] >= 10);
}

#[test]
fn recorded_answers_lose_nothing_on_the_way_through_our_types() {
    let mut seen = 0;
    for (name, text) in RECORDINGS {
        for line in lines(text).filter(|line| !line.to_guest) {
            let body = line.body.expect("the agent always answers with JSON");
            let request = MessageType(0x1000_0000 | (line.message_type.0 & 0x0fff_ffff));
            let written = if line.message_type == MessageType::NOTIFICATION {
                serde_json::to_value(serde_json::from_value::<Notification>(body.clone()).unwrap())
            } else {
                rewrite(request, body.clone())
            };
            let written = written.unwrap();
            assert_eq!(plain(&written), plain(&body), "{name} {} {}", line.message_type, line.id);
            seen += 1;
        }
    }
    assert!(seen > 150, "only {seen}");
}

fn rewrite(request: MessageType, body: Value) -> serde_json::Result<Value> {
    fn through<R: Procedure>(body: Value) -> serde_json::Result<Value> {
        let envelope: ResponseEnvelope = serde_json::from_value(body.clone())?;
        let mut written = serde_json::to_value(envelope)?;
        let own = serde_json::to_value(serde_json::from_value::<R::Response>(body)?)?;
        let (Value::Object(written_map), Value::Object(own)) = (&mut written, own) else {
            unreachable!("both are structs")
        };
        written_map.extend(own);
        Ok(written)
    }
    match request {
        MessageType::NEGOTIATE_PROTOCOL => through::<NegotiateProtocol>(body),
        MessageType::CREATE => through::<Create>(body),
        MessageType::EXECUTE_PROCESS => through::<ExecuteProcess>(body),
        MessageType::WAIT_FOR_PROCESS => through::<WaitForProcess>(body),
        MessageType::GET_PROPERTIES => through::<GetProperties>(body),
        MessageType::DUMP_STACKS => through::<DumpStacks>(body),
        _ => through::<Start>(body),
    }
}

#[test]
fn our_server_refuses_what_the_reference_refuses_and_with_the_same_code() {
    let mut refused = 0;
    for (name, text) in RECORDINGS {
        let mut server = Server::new(ServerOptions::default());
        let answers: Vec<Line> = lines(text).filter(|line| !line.to_guest).collect();
        let mut last_id = 0;
        for line in lines(text).filter(|line| line.to_guest) {
            if line.id <= std::mem::replace(&mut last_id, line.id) {
                server.disconnect(None); // the recording went on with a new connection
            }
            let mut bytes = Vec::new();
            frame::encode::<()>(&mut bytes, line.message_type, line.id, |out| {
                out.extend_from_slice(&line.payload);
                Ok(())
            })
            .unwrap();
            server.handle_input(&bytes).unwrap();
            while let Some(incoming) = server.poll_request() {
                server.respond(incoming.ticket, Ok(Empty {}));
            }
            let ours = server.poll_transmit().expect("one answer to each request");
            let mut decoder = Decoder::new(HOST_LIMIT);
            decoder.push(&ours);
            let ours = decoder.next_frame().unwrap().unwrap();
            let ours_body: Value = serde_json::from_slice(&ours.payload).unwrap();
            let recorded = answers.iter().find(|answer| {
                answer.id == line.id && answer.message_type == line.message_type.response()
            });
            let Some(recorded) = recorded else { continue };
            let recorded = recorded.body.as_ref().unwrap();
            if ours_body["Result"] != 0 {
                assert_eq!(ours_body["Result"], recorded["Result"], "{name} {}", line.id);
                assert_eq!(ours_body["ActivityId"], recorded["ActivityId"], "{name} {}", line.id);
                refused += 1;
            }
            if line.message_type == MessageType::NEGOTIATE_PROTOCOL && recorded["Result"] == 0 {
                assert_eq!(&ours_body, recorded, "{name}");
            }
            for code in [HResult::NOT_IMPLEMENTED, HResult::INVALID_JSON] {
                let schema = recorded["ErrorMessage"].to_string().contains("schema version");
                if recorded["Result"] == code.0 && !schema {
                    assert_eq!(ours_body["Result"], code.0, "{name} {}: {recorded}", line.id);
                }
            }
        }
    }
    assert!(refused >= 9, "only {refused}");
}

#[test]
fn our_client_takes_everything_that_the_reference_agent_says() {
    for (name, text) in RECORDINGS {
        let mut client = Client::default();
        let now = std::time::Instant::now();
        for line in lines(text).filter(|line| !line.to_guest) {
            let id = if line.message_type == MessageType::NOTIFICATION {
                0
            } else {
                let request = WaitForProcess { process_id: 1, timeout_in_ms: INFINITE };
                client.call("c".into(), &request, None).0
            };
            let mut bytes = Vec::new();
            frame::encode::<()>(&mut bytes, line.message_type, id, |out| {
                out.extend_from_slice(&line.payload);
                Ok(())
            })
            .unwrap();
            client.handle_input(&bytes, now).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!matches!(client.poll_event(), None | Some(ClientEvent::Closed(_))), "{name}");
        }
    }
}
