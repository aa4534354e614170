//! Any host: every request is answered exactly once, with its id, in a frame that a host accepts,
//! over as many connections as it takes. `?` answers one request of those taken so far.

use std::collections::BTreeMap;

use crate::script::{Options, Step, frame, script, transmitted};
use linkspan_protocol::frame::{Decoder, GUEST_LIMIT, HOST_LIMIT};
use linkspan_protocol::message::DumpStacksResponse;
use linkspan_protocol::{Fault, HResult, Incoming, MessageType, Server, ServerOptions};

/// A host that keeps the books: what it has sent, less what was answered.
struct Host {
    server: Server,
    /// Reads the same stream, to know what is in it.
    mirror: Decoder,
    open: BTreeMap<(MessageType, u64), usize>,
    taken: Vec<Incoming>,
    options: Options,
}

impl Host {
    fn send(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.options.cut) {
            self.mirror.push(piece);
            while let Ok(Some(frame)) = self.mirror.next_frame() {
                *self.open.entry((frame.message_type.response(), frame.id)).or_default() += 1;
            }
            let handled = self.server.handle_input(piece);
            assert_eq!(handled.is_err(), self.mirror.next_frame().is_err());
            while let Some(incoming) = self.server.poll_request() {
                self.taken.push(incoming);
            }
            self.receive();
            if handled.is_err() {
                return self.lose();
            }
        }
    }

    fn receive(&mut self) {
        while let Some(bytes) = self.server.poll_transmit() {
            let (frame, document) = transmitted(&bytes, true);
            assert!(document["Result"].is_i64(), "{document}");
            let open = self.open.get_mut(&(frame.message_type, frame.id));
            let open = open.unwrap_or_else(|| panic!("nobody asked for {frame:?}"));
            assert_ne!(*open, 0, "answered twice: {frame:?}");
            *open -= 1;
        }
    }

    fn lose(&mut self) {
        self.server.disconnect(None);
        self.mirror = Decoder::new(GUEST_LIMIT);
        assert!(!self.server.is_negotiated());
    }

    fn answer(&mut self, how: u8) {
        let taken = match self.options.last_first {
            true => self.taken.pop(),
            false => (!self.taken.is_empty()).then(|| self.taken.remove(0)),
        };
        let Some(Incoming { ticket, .. }) = taken else { return };
        // Now and then more than a host would accept.
        let length = if how == b'~' { HOST_LIMIT } else { usize::from(how) };
        let guest_stacks = "\u{1}".repeat(length);
        let outcome = match how % 4 {
            0 => Err(Fault::new(HResult::FAIL, guest_stacks)),
            _ => Ok(DumpStacksResponse { guest_stacks }),
        };
        self.server.respond(ticket, outcome);
        self.receive();
    }

    fn negotiate(&mut self) {
        let body = br#"{"MinimumVersion":4,"MaximumVersion":4}"#;
        self.send(&frame(MessageType::NEGOTIATE_PROTOCOL, 0, body));
        assert!(self.server.is_negotiated());
    }
}

/// Tries an input.
pub fn run(input: &[u8]) {
    let (options, steps) = script(input);
    let server = Server::new(ServerOptions::default());
    let (open, taken) = Default::default();
    let mut host = Host { server, mirror: Decoder::new(GUEST_LIMIT), open, taken, options };
    if options.negotiate {
        host.negotiate();
    }
    for step in steps {
        match step {
            Step::Frame(message_type, id, body) => host.send(&frame(message_type, id, body)),
            Step::Raw(bytes) => host.send(bytes),
            Step::Lost => host.lose(),
            Step::Other(how) => host.answer(how),
        }
    }
    while !host.taken.is_empty() {
        host.answer(1);
    }
    host.lose();
    host.negotiate();
    assert!(host.open.values().all(|open| *open == 0), "never answered: {:?}", host.open);
}
