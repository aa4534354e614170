//! The guest's end, without IO.
//!
//! A [`Server`] negotiates, reads requests, and writes exactly one response to each: a
//! [`Ticket`] is made with the request and used up by the answer. Requests that cannot be read,
//! are not known or come at the wrong time are answered here and never seen by the agent.
//!
//! The connection may be lost and made anew ([`disconnect`](Server::disconnect)) while requests
//! are being worked on. Their answers, and notifications, then wait for the next connection and
//! its negotiation: a host that is still negotiating expects nothing else.

mod history;

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::Value;

use self::history::History;
use crate::frame::{self, Decoder, Frame, FrameError, GUEST_LIMIT, HOST_LIMIT};
use crate::message::{
    Capabilities, Empty, Envelope, LinkspanGuest, LinkspanHost, ModifySettings, NegotiateProtocol,
    NegotiateProtocolResponse, Notification, Request, ResponseEnvelope,
};
use crate::{DecodeError, ErrorRecord, Fault, HResult, Kind, MessageType, VERSION, json, message};

/// What a guest's end needs to know.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Declared in the negotiation.
    pub capabilities: Capabilities,
    /// The largest request in bytes, header included; a larger one ends the connection.
    pub request_limit: usize,
    /// Named in the records of failed requests.
    pub module_name: &'static str,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let capabilities = Capabilities::linux();
        Self { capabilities, request_limit: GUEST_LIMIT, module_name: "linkspan-guest" }
    }
}

/// The right, and the duty, to answer one request.
#[derive(Debug)]
#[must_use = "every request has to be answered"]
pub struct Ticket {
    message_type: MessageType,
    id: u64,
    activity_id: String,
}

impl Ticket {
    /// What was asked.
    pub fn message_type(&self) -> MessageType {
        self.message_type
    }
}

/// A request for the agent.
#[derive(Debug)]
pub struct Incoming {
    /// To answer with.
    pub ticket: Ticket,
    /// Whom it is for.
    pub envelope: Envelope,
    /// What is asked.
    pub request: Request,
}

/// The guest's end of a bridge. See the [module](self).
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    decoder: Decoder,
    negotiated: bool,
    history: History,
    requests: VecDeque<Incoming>,
    outgoing: VecDeque<Vec<u8>>,
    /// Frames that wait for a negotiated connection.
    held: VecDeque<Vec<u8>>,
}

impl Server {
    /// An end without a connection's history.
    pub fn new(options: ServerOptions) -> Self {
        let decoder = Decoder::new(options.request_limit);
        let (history, requests, outgoing, held) = Default::default();
        Self { options, decoder, negotiated: false, history, requests, outgoing, held }
    }

    /// Takes bytes from the host, cut anywhere.
    ///
    /// # Errors
    /// A header with an impossible size. The connection has to be given up, and made anew after
    /// [`disconnect`](Self::disconnect).
    pub fn handle_input(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        self.decoder.push(bytes);
        while let Some(frame) = self.decoder.next_frame()? {
            self.handle_frame(frame);
        }
        Ok(())
    }

    fn handle_frame(&mut self, frame: Frame) {
        let Frame { message_type, id, payload } = frame;
        let parsed = json::parse(&payload);
        let activity_id = match &parsed {
            Ok(document) => document["ActivityId"].as_str().unwrap_or_default().to_owned(),
            Err(_) => String::new(),
        };
        let ticket = Ticket { message_type, id, activity_id };
        let negotiates = message_type == MessageType::NEGOTIATE_PROTOCOL;
        if message_type.kind() != Kind::Request || negotiates == self.negotiated {
            return self.refuse(&ticket, not_implemented(message_type));
        }
        match parsed.and_then(|document| read_request(message_type, &document)) {
            Ok(Some((_, Request::NegotiateProtocol(range)))) => self.negotiate(&ticket, range),
            Ok(Some((envelope, request))) => {
                self.history.came(ticket.id);
                self.requests.push_back(Incoming { ticket, envelope, request });
            }
            Ok(None) => self.refuse(&ticket, not_implemented(message_type)),
            // The reference never looks into this one's document.
            Err(_) if message_type == MessageType::DUMP_STACKS => {
                let request = Request::DumpStacks(message::DumpStacks {});
                self.history.came(ticket.id);
                self.requests.push_back(Incoming {
                    ticket,
                    envelope: Envelope::default(),
                    request,
                });
            }
            Err(error) => {
                let text = format!("{message_type}: {error}");
                self.refuse(&ticket, Fault::new(HResult::INVALID_JSON, text));
            }
        }
    }

    fn negotiate(&mut self, ticket: &Ticket, range: NegotiateProtocol) {
        let outcome = if range.includes_ours() {
            let capabilities = self.options.capabilities.clone();
            let linkspan = self.resume(range.linkspan);
            Ok(NegotiateProtocolResponse { version: VERSION, capabilities, linkspan })
        } else {
            let NegotiateProtocol { minimum_version, maximum_version, .. } = range;
            let text = format!(
                "protocol versions {minimum_version} to {maximum_version} do not include {VERSION}"
            );
            Err(Fault::new(HResult::UNSUPPORTED_PROTOCOL_VERSION, text))
        };
        let succeeded = outcome.is_ok();
        let frame = self.response(ticket, outcome);
        self.outgoing.push_back(frame);
        if succeeded {
            self.negotiated = true;
            self.outgoing.append(&mut self.held);
        }
    }

    /// Finds out what is still to be said to this host.
    fn resume(&mut self, host: Option<LinkspanHost>) -> Option<LinkspanGuest> {
        let Some(host) = host.filter(|host| host.session != 0) else {
            self.history.begin(0);
            return None;
        };
        if host.session != self.history.session() {
            if self.history.session() != 0 {
                // Its requests are unknown to this one, and their answers would end its bridge.
                self.held.retain(|frame| history::is_notification(frame));
            }
            self.history.begin(host.session);
        }
        let (mut unread, unknown) = self.history.resume(&host, &self.held);
        unread.append(&mut self.held);
        self.held = unread;
        Some(LinkspanGuest { unknown })
    }

    /// The next request for the agent. Requests are to be worked on at the same time: one that
    /// waits must not hold up the others.
    pub fn poll_request(&mut self) -> Option<Incoming> {
        self.requests.pop_front()
    }

    /// Answers a request. A response that a host could not receive, for its size, becomes a fault.
    pub fn respond<R: Serialize>(&mut self, ticket: Ticket, outcome: Result<R, Fault>) {
        self.history.answered(ticket.id);
        let frame = self.response(&ticket, outcome);
        self.send_negotiated(frame);
    }

    /// Answers a request of the present connection that the agent never sees.
    fn refuse(&mut self, ticket: &Ticket, fault: Fault) {
        let frame = self.response(ticket, Err::<Empty, _>(fault));
        self.outgoing.push_back(frame);
    }

    fn send_negotiated(&mut self, frame: Vec<u8>) {
        match self.negotiated {
            true => self.outgoing.push_back(frame),
            false => self.held.push_back(frame),
        }
    }

    fn response<R: Serialize>(&self, ticket: &Ticket, outcome: Result<R, Fault>) -> Vec<u8> {
        let mut frame = encode_response(ticket, outcome, self.options.module_name);
        if frame.len() > HOST_LIMIT {
            let text = format!(
                "the response to {} has {} bytes, more than the {HOST_LIMIT} that a host accepts",
                ticket.message_type,
                frame.len()
            );
            let fault = Err::<Empty, _>(Fault::new(HResult::FAIL, text));
            frame = encode_response(ticket, fault, self.options.module_name);
        }
        frame
    }

    /// Bytes that wait to be written on this connection: what a host that does not read costs.
    pub fn backlog(&self) -> usize {
        self.outgoing.iter().map(Vec::len).sum()
    }

    /// Bytes that wait for a connection that is negotiated.
    pub fn held(&self) -> usize {
        self.held.iter().map(Vec::len).sum()
    }

    /// Says that a container has exited.
    pub fn notify(&mut self, notification: &Notification) {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, MessageType::NOTIFICATION, 0, |out| {
            serde_json::to_writer(out, notification)
        })
        .expect("a notification has string keys only");
        self.send_negotiated(bytes);
    }

    /// Says what only Linkspan's own host may hear, if that is who is connected.
    pub fn notify_linkspan(&mut self, notification: &Notification) {
        if self.negotiated && self.history.session() != 0 {
            self.notify(notification);
        }
    }

    /// The next bytes to write to the host: one whole frame.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        let frame = self.outgoing.pop_front()?;
        self.history.wrote(&frame);
        Some(frame)
    }

    /// The connection is lost, and `in_flight` was not written in full. Frames that have not gone
    /// out wait for the next connection; those of one that was not negotiated mean nothing there.
    pub fn disconnect(&mut self, in_flight: Option<Vec<u8>>) {
        self.decoder = Decoder::new(self.options.request_limit);
        if in_flight.is_some() {
            self.history.take_back();
        }
        let unsent = in_flight.into_iter().chain(std::mem::take(&mut self.outgoing));
        if self.negotiated {
            self.held.extend(unsent);
        }
        self.negotiated = false;
    }

    /// Whether the present connection has been negotiated.
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }
}

fn not_implemented(message_type: MessageType) -> Fault {
    let text = format!("{message_type} is not supported here (type {})", message_type.0);
    Fault::new(HResult::NOT_IMPLEMENTED, text)
}

fn read_request(
    message_type: MessageType,
    document: &Value,
) -> Result<Option<(Envelope, Request)>, DecodeError> {
    let Some(request) = Request::read(message_type, document) else { return Ok(None) };
    let request = request?;
    if let Request::ModifySettings(ModifySettings { request: None }) = &request {
        return Err(missing("Request"));
    }
    Ok(Some((json::read(document)?, request)))
}

fn missing(field: &'static str) -> DecodeError {
    use serde::de::Error as _;
    DecodeError::Shape { path: field.to_owned(), source: serde_json::Error::custom("is missing") }
}

fn encode_response<R: Serialize>(
    ticket: &Ticket,
    outcome: Result<R, Fault>,
    module_name: &str,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let message_type = ticket.message_type.response();
    let activity_id = ticket.activity_id.clone();
    frame::encode(&mut bytes, message_type, ticket.id, |out| match outcome {
        Ok(body) => {
            let envelope = ResponseEnvelope { activity_id, ..ResponseEnvelope::default() };
            message::write_response(&envelope, &body, out)
        }
        Err(Fault { result, message, mut records }) => {
            if records.is_empty() {
                records.push(ErrorRecord {
                    result,
                    message: message.clone(),
                    module_name: module_name.to_owned(),
                    line: u32::MAX,
                    ..ErrorRecord::default()
                });
            }
            let envelope = ResponseEnvelope {
                result,
                activity_id,
                error_message: message,
                error_records: records,
            };
            serde_json::to_writer(out, &envelope)
        }
    })
    .expect("a response has string keys only");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{CallError, Client, ClientEvent};
    use crate::message::*;

    fn raw(message_type: u32, id: u64, body: &str) -> Vec<u8> {
        let mut out = Vec::new();
        frame::encode::<()>(&mut out, MessageType(message_type), id, |out| {
            out.extend_from_slice(body.as_bytes());
            Ok(())
        })
        .unwrap();
        out
    }

    fn answer(server: &mut Server) -> (u32, u64, Value) {
        let bytes = server.poll_transmit().expect("an answer");
        let mut decoder = Decoder::new(HOST_LIMIT);
        decoder.push(&bytes);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(decoder.pending(), 0);
        (frame.message_type.0, frame.id, serde_json::from_slice(&frame.payload).unwrap())
    }

    fn negotiated() -> Server {
        let mut server = Server::new(ServerOptions::default());
        negotiate(&mut server);
        server
    }

    fn negotiate(server: &mut Server) {
        let body = r#"{"MinimumVersion":4,"MaximumVersion":4}"#;
        server.handle_input(&raw(0x1010_0b01, 0, body)).unwrap();
        assert_eq!(answer(server).2["Version"], 4);
    }

    #[test]
    fn negotiation_answers_the_documented_bytes() {
        let mut server = Server::new(ServerOptions::default());
        let body = format!(
            r#"{{"ContainerId":"","ActivityId":"{}","MinimumVersion":4,"MaximumVersion":4}}"#,
            crate::UVM_ID
        );
        server.handle_input(&raw(0x1010_0b01, 0, &body)).unwrap();
        let bytes = server.poll_transmit().unwrap();
        assert_eq!(bytes.len(), 342);
        let text = std::str::from_utf8(&bytes[16..]).unwrap();
        let want = "{\"Result\":0,\"ActivityId\":\"00000000-0000-0000-0000-000000000000\",\
            \"Version\":4,\"Capabilities\":{\"SupportedSchemaVersions\":[{\"Major\":2,\"Minor\":1}],\
            \"RuntimeOsType\":\"Linux\",\"GuestDefinedCapabilities\":{\
            \"NamespaceAddRequestSupported\":true,\"SignalProcessSupported\":true,\
            \"DumpStacksSupported\":true,\"DeleteContainerStateSupported\":true}}}";
        assert_eq!(text, want);
    }

    #[test]
    fn negotiation_comes_first_once_and_may_be_tried_again() {
        let mut server = Server::new(ServerOptions::default());
        server.handle_input(&raw(0x1010_0901, u64::MAX, "{}")).unwrap();
        let (message_type, id, body) = answer(&mut server);
        assert_eq!((message_type, id), (0x2010_0901, u64::MAX));
        assert_eq!(body["Result"], HResult::NOT_IMPLEMENTED.0);
        for (min, max) in [(1, 3), (5, 9), (9, 5)] {
            let body = format!(r#"{{"MinimumVersion":{min},"MaximumVersion":{max}}}"#);
            server.handle_input(&raw(0x1010_0b01, 1, &body)).unwrap();
            let (_, _, body) = answer(&mut server);
            assert_eq!(body["Result"], HResult::UNSUPPORTED_PROTOCOL_VERSION.0);
            assert!(body.get("Version").is_none() && body.get("Capabilities").is_none());
        }
        let body = r#"{"MinimumVersion":1,"MaximumVersion":10,"ActivityId":"not a guid"}"#;
        server.handle_input(&raw(0x1010_0b01, 2, body)).unwrap();
        let (_, _, body) = answer(&mut server);
        assert_eq!((&body["Version"], &body["ActivityId"]), (&4.into(), &"not a guid".into()));
        assert!(body.get("ErrorMessage").is_none() && body.get("ErrorRecords").is_none());
        server.handle_input(&raw(0x1010_0b01, 3, r#"{"MaximumVersion":4}"#)).unwrap();
        assert_eq!(answer(&mut server).2["Result"], HResult::NOT_IMPLEMENTED.0);
    }

    #[test]
    fn what_cannot_be_read_is_answered_with_the_code_that_hosts_know() {
        let mut server = negotiated();
        for (message_type, body, result) in [
            (0x1010_0e01 | 0x7000, "{}", HResult::NOT_IMPLEMENTED),
            (0x3010_0101, "{}", HResult::NOT_IMPLEMENTED),
            (0x2010_0101, "{}", HResult::NOT_IMPLEMENTED),
            (0x1010_0101, "{\"Con", HResult::INVALID_JSON),
            (0x1010_0101, "", HResult::INVALID_JSON),
            (0x1010_0101, "[1]", HResult::INVALID_JSON),
            (0x1010_0101, r#"{"ContainerConfig":"{"}"#, HResult::INVALID_JSON),
            (0x1010_0901, r#"{"Query":"nonsense"}"#, HResult::INVALID_JSON),
            (0x1010_0601, r#"{"ProcessId":-1}"#, HResult::INVALID_JSON),
            (0x1010_0801, r#"{"Height":65536}"#, HResult::INVALID_JSON),
            (0x1010_0601, r#"{"otsc":7}"#, HResult::INVALID_JSON),
            (0x1010_0a01, r#"{}"#, HResult::INVALID_JSON),
            (0x1010_0a01, r#"{"Request":7}"#, HResult::INVALID_JSON),
            (
                0x1010_0a01,
                r#"{"Request":{"ResourceType":"MappedVirtualDisk"}}"#,
                HResult::INVALID_JSON,
            ),
            (
                0x1010_0a01,
                r#"{"Request":{"ResourceType":"MappedVirtualDisk","Settings":{"Lun":256}}}"#,
                HResult::INVALID_JSON,
            ),
        ] {
            server.handle_input(&raw(message_type, 5, body)).unwrap();
            let (answered, id, answer) = answer(&mut server);
            assert_eq!((answered, id), (MessageType(message_type).response().0, 5));
            assert_eq!(answer["Result"], result.0, "{message_type:#x} {body}: {answer}");
            assert_eq!(answer["ErrorRecords"][0]["Result"], result.0);
            assert!(answer["ErrorRecords"][0]["ModuleName"].is_string());
        }
        assert!(server.poll_request().is_none());
    }

    #[test]
    fn an_unknown_resource_type_reaches_the_agent_which_knows_the_target() {
        let mut server = negotiated();
        let body = r#"{"Request":{"ResourceType":"Bogus","Settings":{}}}"#;
        server.handle_input(&raw(0x1010_0a01, 5, body)).unwrap();
        let incoming = server.poll_request().unwrap();
        let Request::ModifySettings(ModifySettings { request: Some(request) }) = incoming.request
        else {
            panic!()
        };
        assert!(matches!(request.target, ModifyTarget::Unreadable(_)));
        server.respond::<Empty>(incoming.ticket, Err(Fault::new(HResult::FAIL, "no")));
        assert_eq!(answer(&mut server).2["Result"], HResult::FAIL.0);
    }

    #[test]
    fn a_response_too_large_for_a_host_becomes_a_fault() {
        let mut server = negotiated();
        server.handle_input(&raw(0x1010_0c01, 1, "no json")).unwrap();
        let incoming = server.poll_request().unwrap();
        let body = DumpStacksResponse { guest_stacks: "x".repeat(HOST_LIMIT) };
        server.respond(incoming.ticket, Ok(body));
        let (_, _, body) = answer(&mut server);
        assert_eq!(body["Result"], HResult::FAIL.0);
        assert!(body.get("GuestStacks").is_none());
    }

    #[test]
    fn answers_and_notifications_outlive_a_connection_but_wait_for_negotiation() {
        let mut server = negotiated();
        server.handle_input(&raw(0x1010_0601, 41, r#"{"ProcessId":7}"#)).unwrap();
        server.handle_input(&raw(0x1010_0601, 42, r#"{"ProcessId":8}"#)).unwrap();
        let (first, second) = (server.poll_request().unwrap(), server.poll_request().unwrap());
        let body = || Ok(WaitForProcessResponse { exit_code: 3, ..Default::default() });
        server.respond(first.ticket, body());
        let in_flight = server.poll_transmit();
        server.disconnect(in_flight);
        server.respond(second.ticket, body());
        server.notify(&Notification { container_id: "c".into(), ..Notification::default() });
        assert!(server.poll_transmit().is_none());
        server.handle_input(&raw(0x1010_0901, 0, "{}")).unwrap();
        assert_eq!(answer(&mut server).2["Result"], HResult::NOT_IMPLEMENTED.0);
        negotiate(&mut server);
        assert_eq!(answer(&mut server).1, 41);
        assert_eq!(answer(&mut server).1, 42);
        assert_eq!(answer(&mut server).0, MessageType::NOTIFICATION.0);
        assert!(server.poll_transmit().is_none());
    }

    #[test]
    fn both_ends_agree() {
        let (mut client, mut server) = (Client::default(), negotiated());
        let now = std::time::Instant::now();
        let wait = WaitForProcess { process_id: 7, timeout_in_ms: INFINITE };
        let call = client.call("web".into(), &wait, None);
        while let Some(bytes) = client.poll_transmit() {
            for byte in bytes {
                server.handle_input(&[byte]).unwrap();
            }
        }
        let incoming = server.poll_request().unwrap();
        assert_eq!(incoming.envelope.container_id, "web".into());
        assert_eq!(incoming.request, Request::WaitForProcess(wait));
        let gone = Fault::new(HResult::ELEMENT_NOT_FOUND, "no process 7");
        server.respond::<WaitForProcessResponse>(incoming.ticket, Err(gone.clone()));
        while let Some(bytes) = server.poll_transmit() {
            client.handle_input(&bytes, now).unwrap();
        }
        let Some(ClientEvent::Answered { call: answered, outcome }) = client.poll_event() else {
            panic!()
        };
        assert_eq!(answered, call);
        let Err(CallError::Fault(fault)) = outcome else { panic!() };
        assert_eq!((fault.result, fault.message), (gone.result, gone.message));
    }
}
