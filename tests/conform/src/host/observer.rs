//! What holds for every request, whatever a check is about. What breaks it is noted under its own
//! statement.

use std::collections::BTreeSet;

use linkspan_protocol::frame::{Frame, HEADER_LEN};
use linkspan_protocol::{Kind, MessageType, UVM_ID, port};
use serde_json::Value;

/// Requests so far.
#[derive(Debug, Default)]
pub(super) struct Observer {
    next_id: u64,
    /// No request has come on this connection.
    said: bool,
    connections: usize,
    ports: BTreeSet<u32>,
    started: BTreeSet<String>,
    violations: Vec<(u32, String)>,
}

const STREAMS: [(&str, &str); 3] =
    [("StdIn", "CreateStdInPipe"), ("StdOut", "CreateStdOutPipe"), ("StdErr", "CreateStdErrPipe")];

impl Observer {
    pub(super) fn take(&mut self) -> Vec<(u32, String)> {
        std::mem::take(&mut self.violations)
    }

    pub(super) fn violation(&mut self, statement: u32, text: impl Into<String>) {
        self.violations.push((statement, text.into()));
    }

    /// Those since there were so many.
    pub(super) fn since(&self, count: usize) -> &[(u32, String)] {
        self.violations.get(count..).unwrap_or_default()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.violations.len()
    }

    /// A connection has been made.
    pub(super) fn connected(&mut self) {
        self.said = false;
        self.connections += 1;
    }

    /// Looks at a frame; gives its document if it can be answered.
    pub(super) fn look(&mut self, frame: &Frame) -> Option<Value> {
        let Frame { message_type, id, payload } = frame;
        self.order(*message_type, *id);
        let size = payload.len() + HEADER_LEN;
        let body = match serde_json::from_slice::<Value>(payload) {
            Ok(body) if body.is_object() => body,
            // A document that ends too early was cut by the size in its header.
            Err(error) if error.is_eof() && !payload.is_empty() => {
                let text = format!("the size of {message_type} ends inside its document: {size}");
                self.violation(12, text);
                return None;
            }
            Ok(other) => {
                self.violation(13, format!("the payload of {message_type} is no object: {other}"));
                return Some(Value::Null);
            }
            Err(error) => {
                let text = format!("the payload of {message_type} is no JSON: {error}");
                self.violation(13, text);
                return Some(Value::Null);
            }
        };
        if message_type.kind() != Kind::Request || message_type.name().is_none() {
            self.violation(12, format!("{:#010x} is the type of no request", message_type.0));
        }
        self.envelope(*message_type, &body);
        match *message_type {
            MessageType::NEGOTIATE_PROTOCOL => self.negotiation(&body),
            MessageType::CREATE => self.text(*message_type, "ContainerConfig", &body),
            MessageType::GET_PROPERTIES => self.text(*message_type, "Query", &body),
            MessageType::EXECUTE_PROCESS => {
                self.text(*message_type, "ProcessParameters", &body["Settings"]);
                self.execute(&body);
            }
            MessageType::MODIFY_SETTINGS if !body["Request"].is_object() => {
                self.violation(26, format!("Request is no object: {}", body["Request"]));
            }
            _ => {}
        }
        Some(body)
    }

    fn order(&mut self, message_type: MessageType, id: u64) {
        let first = !std::mem::replace(&mut self.said, true);
        if first && self.connections == 1 {
            if (message_type, id) != (MessageType::NEGOTIATE_PROTOCOL, 0) {
                let text = format!("the first frame is {message_type} with id {id}");
                self.violation(2, text);
            }
        } else if id != self.next_id {
            let text = format!("{message_type} has id {id}, and {} is next", self.next_id);
            self.violation(11, text);
        }
        self.next_id = id.wrapping_add(1);
    }

    fn envelope(&mut self, kind: MessageType, body: &Value) {
        if !body["ContainerId"].is_string() {
            self.violation(13, format!("the ContainerId of {kind} is {}", body["ContainerId"]));
        }
        if !body["ActivityId"].as_str().is_some_and(is_guid) {
            let text = format!("the ActivityId of {kind} is {}, no GUID", body["ActivityId"]);
            self.violation(13, text);
        }
        if let Some(trace) = body.get("otsc")
            && !trace["traceparent"].as_str().is_some_and(is_traceparent)
        {
            self.violation(14, format!("the otsc of {kind} is {trace}"));
        }
    }

    fn negotiation(&mut self, body: &Value) {
        for key in ["MinimumVersion", "MaximumVersion"] {
            if body[key] != 4 {
                self.violation(3, format!("{key} is {}", body[key]));
            }
        }
    }

    /// A string that holds JSON.
    fn text(&mut self, kind: MessageType, key: &str, body: &Value) {
        let inner = body[key].as_str().map(serde_json::from_str::<Value>);
        // A query for nothing may be an empty string.
        let empty = kind == MessageType::GET_PROPERTIES && body[key] == "";
        if !empty && !matches!(inner, Some(Ok(_))) {
            self.violation(26, format!("{key} is no string that holds JSON: {}", body[key]));
        }
    }

    fn execute(&mut self, body: &Value) {
        let settings = &body["Settings"];
        let text = settings["ProcessParameters"].as_str().unwrap_or_default();
        let parameters: Value = serde_json::from_str(text).unwrap_or_default();
        if settings.get("StdioRelaySettings").is_some() {
            self.violation(29, "StdioRelaySettings are there, for a Linux guest");
        }
        let ports = &settings["VsockStdioRelaySettings"];
        if !ports.is_object() {
            self.violation(29, format!("VsockStdioRelaySettings is {ports}"));
            return;
        }
        let mut least = port::FIRST_STDIO;
        for (stream, wanted) in STREAMS {
            let named = ports[stream].as_u64().filter(|&port| port != 0);
            if named.is_some() != (parameters[wanted] == true) {
                let text = format!(
                    "{wanted} is {}, and the port of {stream} is {}",
                    parameters[wanted], ports[stream]
                );
                self.violation(29, text);
            }
            if let Some(port) = named {
                self.port(stream, port, &mut least);
            }
        }
        let container = body["ContainerId"].as_str().unwrap_or_default();
        if container == UVM_ID || parameters["CreateInUtilityVM"] == true {
            return;
        }
        let has_process = parameters.get("OciProcess").is_some_and(Value::is_object);
        let first = self.started.insert(container.to_owned());
        if first == has_process {
            let which = if first { "the init's has" } else { "a further one lacks" };
            self.violation(38, format!("{which} OciProcess, in container {container:?}"));
        }
    }

    fn port(&mut self, stream: &str, number: u64, least: &mut u32) {
        let Some(port) = u32::try_from(number).ok().filter(|port| port >= least) else {
            let text = format!("the port of {stream} is {number:#x}; {least:#x} or more is due");
            self.violation(28, text);
            return;
        };
        if !self.ports.insert(port) {
            self.violation(28, format!("the port of {stream}, {port:#x}, was used before"));
        }
        *least = port.saturating_add(1);
    }
}

fn is_guid(text: &str) -> bool {
    let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(|part| hex(part))
}

/// `00-<32 digits>-<16 digits>-<2 digits>`, with ids that are not 0.
fn is_traceparent(text: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts.as_slice() else { return false };
    [version, trace, span, flags].map(|part| part.len()) == [2, 32, 16, 2]
        && parts.iter().all(|part| part.bytes().all(lower))
        && *version != "ff"
        && [trace, span].iter().all(|id| id.bytes().any(|digit| digit != b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_and_traceparents_are_told_from_text() {
        assert!(is_guid(UVM_ID));
        for wrong in ["", "x", "{00000000-0000-0000-0000-000000000000}", "0-0-0-0-0"] {
            assert!(!is_guid(wrong), "{wrong:?}");
        }
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(good));
        assert!(!is_traceparent(&good.to_uppercase()));
        assert!(!is_traceparent("00-00000000000000000000000000000000-b7ad6b7169203331-01"));
        assert!(!is_traceparent("traceparent"));
    }
}
