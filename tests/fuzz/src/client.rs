//! Any guest: every call ends exactly once, or never if it was abandoned, and a bridge that
//! closes has ended all of them before. `?` lets time pass (even) or abandons a call (odd).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::script::{Step, frame, script, transmitted};
use linkspan_protocol::message::*;
use linkspan_protocol::{CallId, Client, ClientEvent};

/// A runtime that keeps the books.
struct Runtime {
    client: Client,
    now: Instant,
    calls: BTreeMap<CallId, Call>,
    closed: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Call {
    Pending,
    Ended,
    Abandoned,
}

impl Runtime {
    fn call<P: Procedure>(&mut self, request: &P, seconds: Option<u64>) {
        let deadline = seconds.map(|seconds| self.now + Duration::from_secs(seconds));
        let call = self.client.call("c".into(), request, deadline);
        assert!(self.calls.insert(call, Call::Pending).is_none(), "an id is used twice");
    }

    fn take_events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            assert!(!self.closed, "{event:?} after the end");
            match event {
                ClientEvent::Answered { call, outcome } => {
                    let known = self.calls.get_mut(&call).expect("a call that was made");
                    assert_eq!(*known, Call::Pending, "{call:?} ends again");
                    *known = Call::Ended;
                    if let Ok(reply) = outcome {
                        // Whatever it holds: reading it as anything must not panic.
                        let _ = reply.decode::<NegotiateProtocol>();
                        let _ = reply.decode::<Create>();
                        let _ = reply.decode::<ExecuteProcess>();
                        let _ = reply.decode::<GetProperties>();
                    }
                }
                ClientEvent::Notified(_) => {}
                ClientEvent::Closed(_) => self.closed = true,
            }
        }
        let pending = self.calls.values().filter(|call| **call == Call::Pending).count();
        assert_eq!(pending, self.client.pending());
        assert_eq!(self.closed, self.client.closed().is_some());
        assert!(!self.closed || pending == 0);
        assert!(self.client.next_timeout().is_none_or(|deadline| deadline > self.now));
    }
}

/// Tries an input.
pub fn run(input: &[u8]) {
    let (options, steps) = script(input);
    let (now, calls) = (Instant::now(), BTreeMap::new());
    let mut runtime = Runtime { client: Client::default(), now, calls, closed: false };
    runtime.call(&NegotiateProtocol::exactly(4), Some(10));
    runtime.call(&Create::default(), Some(100));
    runtime.call(&ExecuteProcess::default(), Some(100));
    runtime.call(&WaitForProcess { process_id: 7, timeout_in_ms: INFINITE }, None);
    runtime.call(&GetProperties::default(), Some(50));
    runtime.call(&DumpStacks {}, None);
    while let Some(bytes) = runtime.client.poll_transmit() {
        transmitted(&bytes, false);
    }
    for step in steps {
        let bytes = match step {
            Step::Frame(message_type, id, body) if options.negotiate => {
                frame(message_type.response(), id, body)
            }
            Step::Frame(message_type, id, body) => frame(message_type, id, body),
            Step::Raw(bytes) => bytes.to_vec(),
            Step::Lost => {
                assert_eq!(runtime.client.reconnect(), !runtime.closed);
                continue;
            }
            Step::Other(what) if what % 2 == 0 => {
                runtime.now += Duration::from_secs(what.into());
                runtime.client.handle_timeout(runtime.now);
                runtime.take_events();
                continue;
            }
            Step::Other(what) => {
                let call = CallId(u64::from(what / 2) % 8);
                runtime.client.abandon(call);
                if let Some(state @ Call::Pending) = runtime.calls.get_mut(&call) {
                    *state = Call::Abandoned;
                }
                continue;
            }
        };
        for piece in bytes.chunks(options.cut) {
            let violated = runtime.client.handle_input(piece, runtime.now).is_err();
            runtime.take_events();
            assert!(!violated || runtime.closed);
        }
    }
    runtime.client.disconnect("the input ends");
    runtime.take_events();
    assert!(runtime.closed);
    assert!(runtime.calls.values().all(|call| *call != Call::Pending));
}
