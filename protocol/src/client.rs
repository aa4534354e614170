//! The host's end, without IO.
//!
//! A [`Client`] numbers requests, matches responses by id, watches deadlines and passes
//! notifications on. Drive it like this: [`call`](Client::call), then write what
//! [`poll_transmit`](Client::poll_transmit) gives; feed what arrives to
//! [`handle_input`](Client::handle_input), and the time of
//! [`next_timeout`](Client::next_timeout) to [`handle_timeout`](Client::handle_timeout); take
//! [`poll_event`](Client::poll_event) until there is none.
//!
//! What the peer may do wrong has three fates. A request that fails comes back as a [`Fault`].
//! A frame that breaks the protocol ends the bridge, and every pending call learns why. A
//! transport that ends does the same through [`disconnect`](Client::disconnect).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use thiserror::Error;

use crate::frame::{self, Decoder, Frame, FrameError, HOST_LIMIT};
use crate::message::{
    ContainerId, Envelope, LinkspanGuest, LinkspanHost, NegotiateProtocol, Notification, Procedure,
    ResponseEnvelope,
};
use crate::{DecodeError, Fault, Kind, MessageType, VERSION, json, message};

/// Names one request of one [`Client`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A successful response, not yet looked into.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    document: serde_json::Value,
}

impl Reply {
    /// Reads the response that belongs to the procedure `P`.
    ///
    /// # Errors
    /// Names the field that is not as it should be.
    pub fn decode<P: Procedure>(&self) -> Result<P::Response, DecodeError> {
        json::read(&self.document)
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CallError {
    /// The guest says so.
    #[error("{0}")]
    Fault(#[from] Fault),
    /// The guest did not answer in time. The bridge goes on, and a late answer is passed over.
    #[error("the guest did not answer {procedure} in time")]
    TimedOut {
        /// What was asked.
        procedure: MessageType,
    },
    /// There is no bridge any more.
    #[error("bridge closed: {reason}")]
    Closed {
        /// Why.
        reason: CloseReason,
    },
}

/// Why a bridge ended.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed by this side")]
    Local,
    /// The transport ended or failed.
    #[error("{0}")]
    Transport(String),
    /// The guest broke the protocol.
    #[error("protocol violation by the guest: {0}")]
    Violation(#[from] Violation),
}

/// How a guest breaks the protocol so that nothing more can be trusted.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Violation {
    /// A header with an impossible size.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Neither a response nor the one known notification.
    #[error("unexpected message {0}")]
    Unexpected(MessageType),
    /// A response to nothing.
    #[error("response with id {id}, which no request has")]
    UnknownId {
        /// As it came.
        id: u64,
    },
    /// A document that cannot be read.
    #[error("{message_type} with id {id}: {reason}")]
    Document {
        /// What it was.
        message_type: MessageType,
        /// As it came.
        id: u64,
        /// What is wrong.
        reason: String,
    },
}

/// What has happened, for the owner of a [`Client`].
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// A call has ended, one way or another. There is exactly one for each call, unless it was
    /// [abandoned](Client::abandon).
    Answered {
        /// Which.
        call: CallId,
        /// How.
        outcome: Result<Reply, CallError>,
    },
    /// A container has exited.
    Notified(Notification),
    /// The bridge has ended; all calls have been answered before this.
    Closed(CloseReason),
}

#[derive(Debug)]
struct Pending {
    message_type: MessageType,
    /// To be written again if a guest has not got it.
    frame: Vec<u8>,
    deadline: Option<Instant>,
}

/// The host's end of a bridge. See the [module](self).
#[derive(Debug)]
pub struct Client {
    decoder: Decoder,
    next_id: u64,
    pending: BTreeMap<u64, Pending>,
    /// Calls given up here whose answers may still come.
    abandoned: BTreeSet<u64>,
    outgoing: VecDeque<Vec<u8>>,
    events: VecDeque<ClientEvent>,
    closed: Option<CloseReason>,
    /// With Linkspan's own guest, connections are resumed under this number; 0: they are not.
    session: u64,
    /// Notifications that have come.
    notified: u64,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            decoder: Decoder::new(HOST_LIMIT),
            next_id: 0,
            pending: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            closed: None,
            session: 0,
            notified: 0,
        }
    }
}

impl Client {
    /// An end whose connections are resumed, as far as the guest can: answers and notifications
    /// that were lost with one come on the next, and requests that were lost are written again.
    /// `session` is a number that no other host of the same guest has.
    pub fn resuming(session: u64) -> Self {
        Self { session, ..Self::default() }
    }

    /// The negotiation of the next connection.
    pub fn negotiation(&self) -> NegotiateProtocol {
        let unsent: BTreeSet<u64> = self.outgoing.iter().filter_map(|frame| id_of(frame)).collect();
        let pending = self.pending.keys().copied().filter(|id| !unsent.contains(id)).collect();
        let linkspan = LinkspanHost { session: self.session, pending, notified: self.notified };
        let linkspan = (self.session != 0).then_some(linkspan);
        NegotiateProtocol { linkspan, ..NegotiateProtocol::exactly(VERSION) }
    }

    /// Goes on after a negotiation: what the guest has not got is written again, first.
    pub fn resume(&mut self, guest: &LinkspanGuest) {
        for id in guest.unknown.iter().rev() {
            if let Some(pending) = self.pending.get(id) {
                self.outgoing.push_front(pending.frame.clone());
            }
        }
    }

    /// Queues a request. Without a deadline it stays pending until it is answered, as a
    /// WaitForProcess has to. On a closed bridge it is answered at once, with the reason.
    pub fn call<P: Procedure>(
        &mut self,
        container: ContainerId,
        request: &P,
        deadline: Option<Instant>,
    ) -> CallId {
        self.call_with(&Envelope::to(container), request, deadline)
    }

    /// As [`call`](Self::call), with an envelope of the caller's own.
    pub fn call_with<P: Procedure>(
        &mut self,
        envelope: &Envelope,
        request: &P,
        deadline: Option<Instant>,
    ) -> CallId {
        let id = self.next_id;
        let call = CallId(id);
        if let Some(reason) = self.closed.clone() {
            let outcome = Err(CallError::Closed { reason });
            self.events.push_back(ClientEvent::Answered { call, outcome });
            return call;
        }
        self.next_id += 1;
        let message_type = request.message_type();
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, message_type, id, |out| {
            message::write_request(envelope, request, out)
        })
        .expect("a request document has string keys only");
        // Where nothing is resumed, nothing has to be kept.
        let frame = if self.session == 0 { Vec::new() } else { bytes.clone() };
        self.outgoing.push_back(bytes);
        self.pending.insert(id, Pending { message_type, frame, deadline });
        call
    }

    /// As [`call`](Self::call) without a deadline, but the frame is handed over to be written
    /// before all others: for a negotiation, which has to come first on a new connection.
    pub fn call_now<P: Procedure>(
        &mut self,
        container: ContainerId,
        request: &P,
    ) -> (CallId, Vec<u8>) {
        let call = self.call(container, request, None);
        (call, self.outgoing.pop_back().unwrap_or_default())
    }

    /// Fails every pending call, on a bridge that stays open: the guest has lost them.
    pub fn fail_pending(&mut self, reason: &CloseReason) {
        self.outgoing.clear();
        for id in std::mem::take(&mut self.pending).into_keys() {
            self.abandoned.insert(id);
            let outcome = Err(CallError::Closed { reason: reason.clone() });
            self.events.push_back(ClientEvent::Answered { call: CallId(id), outcome });
        }
    }

    /// Gives a call up: no event will come for it, and a late answer is passed over.
    pub fn abandon(&mut self, call: CallId) {
        if self.pending.remove(&call.0).is_some() {
            self.abandoned.insert(call.0);
        }
    }

    /// The next bytes to write to the guest: one whole frame.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.outgoing.pop_front()
    }

    /// What has happened, oldest first.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Takes bytes from the guest, cut anywhere.
    ///
    /// # Errors
    /// A [`Violation`]; the bridge is closed then and all calls have been answered.
    pub fn handle_input(&mut self, bytes: &[u8], now: Instant) -> Result<(), Violation> {
        if self.closed.is_some() {
            return Ok(());
        }
        self.decoder.push(bytes);
        loop {
            let handled = match self.decoder.next_frame() {
                Ok(Some(frame)) => self.handle_frame(frame),
                Ok(None) => break,
                Err(error) => Err(error.into()),
            };
            if let Err(violation) = handled {
                self.close(CloseReason::Violation(violation.clone()));
                return Err(violation);
            }
        }
        self.handle_timeout(now);
        Ok(())
    }

    fn handle_frame(&mut self, frame: Frame) -> Result<(), Violation> {
        let Frame { message_type, id, payload } = frame;
        let document = |error: DecodeError| Violation::Document {
            message_type,
            id,
            reason: error.to_string(),
        };
        match message_type.kind() {
            Kind::Response => {
                let Some(pending) = self.pending.remove(&id) else {
                    return match self.abandoned.remove(&id) {
                        true => Ok(()),
                        false => Err(Violation::UnknownId { id }),
                    };
                };
                let read = json::parse(&payload)
                    .and_then(|value| Ok((json::read::<ResponseEnvelope>(&value)?, value)));
                let (envelope, value) = read.map_err(|error| {
                    // Its caller is told with the others when the bridge closes.
                    self.pending.insert(id, pending);
                    document(error)
                })?;
                let outcome = if envelope.result.is_ok() {
                    Ok(Reply { document: value })
                } else {
                    Err(CallError::Fault(Fault {
                        result: envelope.result,
                        message: envelope.error_message,
                        records: envelope.error_records,
                    }))
                };
                self.events.push_back(ClientEvent::Answered { call: CallId(id), outcome });
                Ok(())
            }
            Kind::Notification if message_type == MessageType::NOTIFICATION => {
                let notification = json::parse(&payload).and_then(|value| json::read(&value));
                self.notified += 1;
                self.events.push_back(ClientEvent::Notified(notification.map_err(document)?));
                Ok(())
            }
            _ => Err(Violation::Unexpected(message_type)),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has to be called next.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.pending.values().filter_map(|pending| pending.deadline).min()
    }

    /// Answers the calls whose deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late = |pending: &Pending| pending.deadline.is_some_and(|deadline| deadline <= now);
        for (id, pending) in self.pending.extract_if(.., |_, pending| late(pending)) {
            self.abandoned.insert(id);
            let outcome = Err(CallError::TimedOut { procedure: pending.message_type });
            self.events.push_back(ClientEvent::Answered { call: CallId(id), outcome });
        }
    }

    /// The transport has ended.
    pub fn disconnect(&mut self, why: impl Into<String>) {
        self.close(CloseReason::Transport(why.into()));
    }

    /// Ends the bridge: every pending call is answered with `reason`. Later reasons are ignored.
    pub fn close(&mut self, reason: CloseReason) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(reason.clone());
        self.fail_pending(&reason);
        self.events.push_back(ClientEvent::Closed(reason));
    }

    /// Why the bridge has ended, if it has.
    pub fn closed(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }

    /// A new connection to the same guest: calls stay pending, ids go on, requests that were not
    /// written yet are sent on it. The caller negotiates anew.
    ///
    /// Returns whether that is possible: a closed bridge stays closed.
    pub fn reconnect(&mut self) -> bool {
        self.decoder = Decoder::new(HOST_LIMIT);
        self.closed.is_none()
    }

    /// How many calls wait for an answer.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

fn id_of(frame: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*frame.get(8..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::*;
    use crate::{HResult, VERSION};

    fn response(message_type: u32, id: u64, body: &str) -> Vec<u8> {
        let mut out = Vec::new();
        frame::encode::<()>(&mut out, MessageType(message_type), id, |out| {
            out.extend_from_slice(body.as_bytes());
            Ok(())
        })
        .unwrap();
        out
    }

    fn wait(client: &mut Client) -> CallId {
        let wait = WaitForProcess { process_id: 7, timeout_in_ms: INFINITE };
        client.call("c".into(), &wait, None)
    }

    #[test]
    fn negotiation_is_the_documented_frame_to_the_byte() {
        let mut client = Client::default();
        client.call(ContainerId::none(), &NegotiateProtocol::exactly(VERSION), None);
        let bytes = client.poll_transmit().unwrap();
        assert_eq!(bytes.len(), 125);
        assert_eq!(bytes[..16], [1, 0x0b, 0x10, 0x10, 0x7d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            std::str::from_utf8(&bytes[16..]).unwrap(),
            "{\"ContainerId\":\"\",\"ActivityId\":\"00000000-0000-0000-0000-000000000000\",\
             \"MinimumVersion\":4,\"MaximumVersion\":4}\n"
        );
    }

    #[test]
    fn responses_match_by_id_in_any_order_and_of_any_type() {
        let mut client = Client::default();
        let (first, second) = (wait(&mut client), wait(&mut client));
        let now = Instant::now();
        // A confidential sidecar answers with a bare kind and no procedure.
        client.handle_input(&response(0x2000_0000, 1, "{\"ExitCode\":3}"), now).unwrap();
        let failed = "{\"Result\":-1070137079,\"ErrorMessage\":\"late\"}";
        client.handle_input(&response(0x2010_0601, 0, failed), now).unwrap();
        let Some(ClientEvent::Answered { call, outcome }) = client.poll_event() else { panic!() };
        assert_eq!(call, second);
        assert_eq!(outcome.unwrap().decode::<WaitForProcess>().unwrap().exit_code, 3);
        let Some(ClientEvent::Answered { call, outcome }) = client.poll_event() else { panic!() };
        assert_eq!(call, first);
        let Err(CallError::Fault(fault)) = outcome else { panic!("{outcome:?}") };
        assert_eq!((fault.result, fault.message.as_str()), (HResult::TIMEOUT, "late"));
    }

    #[test]
    fn a_violation_ends_the_bridge_and_answers_every_call() {
        for (bytes, what) in [
            (response(0x2010_0601, 99, "{}"), "no request has"),
            (response(0x2010_0601, 0, "nonsense"), "not valid JSON"),
            (response(0x2010_0601, 0, "{\"Result\":\"x\"}"), "Result: invalid type"),
            (response(0x1010_0601, 0, "{}"), "unexpected message"),
            (response(0x3010_0201, 0, "{}"), "unexpected message"),
            (response(0x3010_0101, 0, "{\"ResultInfo\":\"\"}"), "ResultInfo"),
            (vec![1, 6, 0x10, 0x20, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "size of 15 bytes"),
            (vec![1, 6, 0x10, 0x20, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], "size of 65537 bytes"),
        ] {
            let mut client = Client::default();
            let (first, second) = (wait(&mut client), wait(&mut client));
            let error = client.handle_input(&bytes, Instant::now()).unwrap_err();
            assert!(error.to_string().contains(what), "{error} lacks {what}");
            for expected in [first, second] {
                let event = client.poll_event();
                let Some(ClientEvent::Answered { call, outcome }) = event else { panic!() };
                assert_eq!(call, expected);
                assert!(matches!(outcome, Err(CallError::Closed { .. })));
            }
            assert!(matches!(client.poll_event(), Some(ClientEvent::Closed(_))));
            let late = wait(&mut client);
            let Some(ClientEvent::Answered { call, outcome }) = client.poll_event() else {
                panic!()
            };
            assert!(call == late && matches!(outcome, Err(CallError::Closed { .. })));
        }
    }

    #[test]
    fn a_response_of_exactly_the_limit_is_accepted() {
        let mut client = Client::default();
        wait(&mut client);
        let body = format!("{{\"ExitCode\":1{}}}", " ".repeat(HOST_LIMIT - 16 - 14));
        let bytes = response(0x2010_0601, 0, &body);
        assert_eq!(bytes.len(), HOST_LIMIT);
        client.handle_input(&bytes, Instant::now()).unwrap();
        assert!(matches!(client.poll_event(), Some(ClientEvent::Answered { outcome: Ok(_), .. })));
    }

    #[test]
    fn a_deadline_fails_one_call_and_its_late_answer_is_passed_over() {
        let (mut client, start) = (Client::default(), Instant::now());
        let deadline = start + Duration::from_secs(30);
        let late = client.call("c".into(), &ShutdownGraceful {}, Some(deadline));
        let other = wait(&mut client);
        assert_eq!(client.next_timeout(), Some(deadline));
        client.handle_timeout(start + Duration::from_secs(29));
        assert_eq!(client.poll_event(), None);
        client.handle_timeout(deadline);
        let Some(ClientEvent::Answered { call, outcome }) = client.poll_event() else { panic!() };
        assert!(call == late && matches!(outcome, Err(CallError::TimedOut { .. })));
        assert_eq!(client.next_timeout(), None);
        client.handle_input(&response(0x2010_0301, late.0, "{}"), deadline).unwrap();
        client.abandon(other);
        client.handle_input(&response(0x2010_0601, other.0, "{}"), deadline).unwrap();
        assert_eq!(client.poll_event(), None);
        assert_eq!(client.pending(), 0);
    }

    #[test]
    fn ids_and_pending_calls_survive_a_reconnect() {
        let mut client = Client::default();
        let call = wait(&mut client);
        client.handle_input(&[1, 2, 3], Instant::now()).unwrap();
        assert!(client.reconnect());
        let negotiate = NegotiateProtocol::exactly(VERSION);
        assert_eq!(client.call(ContainerId::none(), &negotiate, None), CallId(1));
        let now = Instant::now();
        client.handle_input(&response(0x2010_0601, call.0, "{\"ExitCode\":0}"), now).unwrap();
        let Some(ClientEvent::Answered { call: got, .. }) = client.poll_event() else { panic!() };
        assert_eq!(got, call);
    }
}
