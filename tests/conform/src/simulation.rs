//! Both ends of the bridge and a model of the stdio relay under a seeded scheduler, in virtual
//! time. One seed is one run, the same on every machine.
//!
//! The scheduler picks what happens next: a piece of bytes arrives, an end works, time passes, or
//! a fault: the connection is cut, held up, or the guest crashes. Streams and the bridge are
//! connections of their own, so what is on one overtakes what is on another. After every step the
//! invariants are looked at.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use linkspan_protocol::client::CloseReason;
use linkspan_protocol::message::{
    ContainerId, INFINITE, NegotiateProtocol, Notification, Request, WaitForProcess,
    WaitForProcessResponse,
};
use linkspan_protocol::{
    CallError, CallId, Client, ClientEvent, Incoming, Server, ServerOptions, Ticket, VERSION,
};

/// What the simulation can be made to do wrong, to see that it notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The guest answers a wait when the process ends, not when its output has been taken.
    ExitBeforeDrain,
    /// The guest forgets what was being written when the connection ended.
    LosesInFlight,
    /// The relay resumes one byte too late.
    ReplayOffByOne,
    /// The relay forgets that its process has ended while it has no connection.
    LosesHalfClose,
    /// The guest sends each notification again on a new connection.
    NotifiesTwice,
    /// The guest tells of an exit before anybody has waited for it.
    NotifiesEarly,
    /// The host forgets its pending calls when it reconnects.
    ForgetsCalls,
}

/// All of them.
pub const MUTATIONS: [Mutation; 7] = [
    Mutation::ExitBeforeDrain,
    Mutation::LosesInFlight,
    Mutation::ReplayOffByOne,
    Mutation::LosesHalfClose,
    Mutation::NotifiesTwice,
    Mutation::NotifiesEarly,
    Mutation::ForgetsCalls,
];

/// A seeded source of choices: splitmix64.
#[derive(Clone, Debug)]
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// One process: what it writes, and how far that has come.
#[derive(Debug)]
struct Relay {
    /// All that it will ever write.
    output: Vec<u8>,
    /// How much of it the guest has written to the stream's present connection, and before.
    sent: usize,
    /// On the way; empty without a connection.
    wire: VecDeque<u8>,
    connected: bool,
    /// The guest has half-closed, and the host will see that after the bytes on the way.
    half_closed: bool,
    /// What the host has taken.
    received: Vec<u8>,
    host_saw_end: bool,
    host_closed: bool,
    exited: bool,
}

impl Relay {
    fn drained(&self) -> bool {
        self.exited && self.host_closed
    }
}

struct Process {
    relay: Relay,
    container: String,
    call: CallId,
    exit_code: u32,
    ticket: Option<Ticket>,
    /// What the host was told.
    told: Option<u32>,
    notified: u32,
    queued: bool,
    waited: bool,
}

/// Everything.
struct World {
    choices: Choices,
    mutation: Option<Mutation>,
    now: Instant,
    client: Client,
    server: Server,
    /// Bytes on the bridge, each way; what is cut is lost.
    to_guest: VecDeque<u8>,
    to_host: VecDeque<u8>,
    /// A frame that the guest is writing, and how much of it has gone out.
    in_flight: Option<(Vec<u8>, usize)>,
    connected: bool,
    negotiation: Option<CallId>,
    negotiated: bool,
    processes: BTreeMap<u32, Process>,
    steps: usize,
}

/// A run that broke an invariant.
#[derive(Debug, thiserror::Error)]
#[error("seed {seed}, step {step}: {what}")]
pub struct Broken {
    /// Which run.
    pub seed: u64,
    /// When.
    pub step: usize,
    /// What does not hold.
    pub what: String,
}

/// Runs one seed to its end.
///
/// # Errors
/// The first invariant that does not hold.
pub fn run(seed: u64, mutation: Option<Mutation>) -> Result<usize, Broken> {
    let mut world = World::new(seed, mutation);
    let outcome = world.go();
    outcome.map(|()| world.steps).map_err(|what| Broken { seed, step: world.steps, what })
}

/// No run takes longer, unless something waits for ever.
const MOST_STEPS: usize = 20_000;
/// After so many steps nothing goes wrong any more, so that everything can come to its end.
const FAULTS_UNTIL: usize = 400;

impl World {
    fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut choices = Choices(seed);
        let count = 1 + choices.below(4);
        let mut world = Self {
            mutation,
            now: Instant::now(),
            client: Client::default(),
            server: Server::new(ServerOptions::default()),
            to_guest: VecDeque::new(),
            to_host: VecDeque::new(),
            in_flight: None,
            connected: false,
            negotiation: None,
            negotiated: false,
            processes: BTreeMap::new(),
            steps: 0,
            choices,
        };
        world.connect();
        for pid in 1..=u32::try_from(count).unwrap_or(1) {
            let length = world.choices.below(200);
            let output = (0..length).map(|index| (index as u8) ^ (pid as u8)).collect();
            let container = format!("c{pid}");
            let wait = WaitForProcess { process_id: pid, timeout_in_ms: INFINITE };
            let call = world.client.call(container.as_str().into(), &wait, None);
            let relay = Relay {
                output,
                sent: 0,
                wire: VecDeque::new(),
                connected: true,
                half_closed: false,
                received: Vec::new(),
                host_saw_end: false,
                host_closed: false,
                exited: false,
            };
            let exit_code = pid * 7;
            let process = Process {
                relay,
                container,
                call,
                exit_code,
                ticket: None,
                told: None,
                notified: 0,
                queued: false,
                waited: false,
            };
            world.processes.insert(pid, process);
        }
        world
    }

    fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn connect(&mut self) {
        self.connected = true;
        self.negotiated = false;
        let (call, bytes) =
            self.client.call_now(ContainerId::none(), &NegotiateProtocol::exactly(VERSION));
        self.negotiation = Some(call);
        self.to_guest.extend(bytes);
    }

    fn cut(&mut self) -> Result<(), String> {
        self.connected = false;
        // What was written is still read; a frame that was not written in full is not one.
        let piece: Vec<u8> = self.to_guest.drain(..).collect();
        self.guest_takes(&piece)?;
        let piece: Vec<u8> = self.to_host.drain(..).collect();
        self.host_takes(&piece)?;
        let in_flight = self.in_flight.take().map(|(bytes, _)| bytes);
        let lost = self.has(Mutation::LosesInFlight);
        self.server.disconnect(in_flight.filter(|_| !lost));
        if let Some(call) = self.negotiation.take() {
            self.client.abandon(call);
        }
        self.client.reconnect();
        if self.has(Mutation::ForgetsCalls) {
            self.client.fail_pending(&CloseReason::Local);
        }
        if self.has(Mutation::NotifiesTwice) {
            let told: Vec<String> = self
                .processes
                .values()
                .filter(|process| process.notified > 0)
                .map(|process| process.container.clone())
                .collect();
            told.iter().for_each(|container| self.notify(container));
        }
        Ok(())
    }

    fn notify(&mut self, container: &str) {
        let notification =
            Notification { container_id: container.into(), ..Notification::default() };
        self.server.notify(&notification);
    }

    fn go(&mut self) -> Result<(), String> {
        while self.steps < MOST_STEPS {
            self.steps += 1;
            self.step()?;
            self.invariants()?;
            if self.is_over() {
                return Ok(());
            }
        }
        let waiting: Vec<_> =
            self.processes.iter().filter(|(_, p)| p.told.is_none() || p.notified == 0).collect();
        let pids: Vec<_> = waiting.iter().map(|(pid, _)| **pid).collect();
        Err(format!("processes {pids:?} are never told of, and nothing goes wrong any more"))
    }

    fn is_over(&self) -> bool {
        self.processes.values().all(|process| process.told.is_some() && process.notified == 1)
            && self.to_host.is_empty()
            && self.in_flight.is_none()
    }

    fn step(&mut self) -> Result<(), String> {
        let faults = self.steps < FAULTS_UNTIL;
        if faults && self.connected && self.choices.one_in(60) {
            return self.cut();
        }
        if !self.connected && (self.choices.one_in(3) || !faults) {
            self.connect();
            return Ok(());
        }
        match self.choices.below(8) {
            0 | 1 => self.host_works()?,
            2 => self.guest_reads()?,
            3 => self.guest_writes(),
            4 => self.time_passes(),
            _ => self.stream_works(faults),
        }
        Ok(())
    }

    fn time_passes(&mut self) {
        self.now += Duration::from_millis(self.choices.next() % 1000);
        self.client.handle_timeout(self.now);
    }

    /// The host reads a piece, and writes what it has, once it may.
    fn host_works(&mut self) -> Result<(), String> {
        let len = 1 + self.choices.below(64);
        let len = len.min(self.to_host.len());
        let piece: Vec<u8> = self.to_host.drain(..len).collect();
        self.host_takes(&piece)?;
        if self.connected
            && self.negotiated
            && let Some(bytes) = self.client.poll_transmit()
        {
            self.to_guest.extend(bytes);
        }
        Ok(())
    }

    fn host_takes(&mut self, piece: &[u8]) -> Result<(), String> {
        if let Err(violation) = self.client.handle_input(piece, self.now) {
            return Err(format!("the host ends the bridge: {violation}"));
        }
        while let Some(event) = self.client.poll_event() {
            self.event(event)?;
        }
        Ok(())
    }

    fn event(&mut self, event: ClientEvent) -> Result<(), String> {
        match event {
            ClientEvent::Closed(reason) => Err(format!("the bridge is closed: {reason}")),
            ClientEvent::Notified(notification) => {
                let id = notification.container_id;
                let process = self.processes.values_mut().find(|p| p.container == id.as_str());
                let process = process.ok_or_else(|| format!("a notification for {id}"))?;
                process.notified += 1;
                Ok(())
            }
            ClientEvent::Answered { call, outcome } if Some(call) == self.negotiation => {
                self.negotiation = None;
                self.negotiated = outcome.is_ok();
                outcome.map(drop).map_err(|error| format!("negotiation: {error}"))
            }
            ClientEvent::Answered { call, outcome } => {
                self.answered(call, outcome.map(|r| r.decode::<WaitForProcess>()))
            }
        }
    }

    fn answered(
        &mut self,
        call: CallId,
        outcome: Result<Result<WaitForProcessResponse, linkspan_protocol::DecodeError>, CallError>,
    ) -> Result<(), String> {
        let process = self.processes.values_mut().find(|process| process.call == call);
        let process = process.ok_or_else(|| format!("an answer to {call:?}, which nobody made"))?;
        let answer = outcome.map_err(|error| format!("a wait fails: {error}"))?;
        let code = answer.map_err(|error| error.to_string())?.exit_code;
        if process.told.replace(code).is_some() {
            return Err(format!("{call:?} is answered twice"));
        }
        if code != process.exit_code {
            return Err(format!("{code} is told, not {}", process.exit_code));
        }
        Ok(())
    }

    fn guest_reads(&mut self) -> Result<(), String> {
        let len = (1 + self.choices.below(64)).min(self.to_guest.len());
        let piece: Vec<u8> = self.to_guest.drain(..len).collect();
        self.guest_takes(&piece)
    }

    fn guest_takes(&mut self, piece: &[u8]) -> Result<(), String> {
        self.server.handle_input(piece).map_err(|error| format!("the guest gives up: {error}"))?;
        while let Some(Incoming { ticket, request, .. }) = self.server.poll_request() {
            let Request::WaitForProcess(wait) = request else { return Err(format!("{request:?}")) };
            let process = self.processes.get_mut(&wait.process_id);
            let process = process.ok_or_else(|| format!("no process {}", wait.process_id))?;
            process.ticket = Some(ticket);
        }
        Ok(())
    }

    /// The guest answers what is due, and writes a piece.
    fn guest_writes(&mut self) {
        let early = self.has(Mutation::ExitBeforeDrain);
        let eager = self.has(Mutation::NotifiesEarly);
        let mut due = Vec::new();
        for process in self.processes.values_mut() {
            let ended = process.relay.drained() || (early && process.relay.exited);
            if ended && let Some(ticket) = process.ticket.take() {
                let response = WaitForProcessResponse {
                    exit_code: process.exit_code,
                    ..WaitForProcessResponse::default()
                };
                self.server.respond(ticket, Ok(response));
                process.waited = true;
            }
            let tell = process.waited || (eager && process.relay.exited);
            if tell && !std::mem::replace(&mut process.queued, tell) {
                due.push(process.container.clone());
            }
        }
        due.iter().for_each(|container| self.notify(container));
        if !self.connected {
            return;
        }
        if self.in_flight.is_none() {
            self.in_flight = self.server.poll_transmit().map(|bytes| (bytes, 0));
        }
        if let Some((bytes, written)) = &mut self.in_flight {
            let len = (1 + self.choices.below(96)).min(bytes.len() - *written);
            self.to_host.extend(&bytes[*written..*written + len]);
            *written += len;
            if *written == bytes.len() {
                self.in_flight = None;
            }
        }
    }

    /// One stream goes on: the guest relays, the host reads (now and then), a connection breaks.
    fn stream_works(&mut self, faults: bool) {
        let off_by_one = self.has(Mutation::ReplayOffByOne);
        let forgets = self.has(Mutation::LosesHalfClose);
        let count = self.processes.len();
        let which = self.choices.below(count);
        let Some(process) = self.processes.values_mut().nth(which) else { return };
        let relay = &mut process.relay;
        if !relay.connected {
            if self.choices.one_in(3) || !faults {
                // It dials again, and resumes behind what the host has.
                relay.connected = true;
                relay.sent = relay.received.len();
                if off_by_one && relay.sent > 0 && relay.sent < relay.output.len() {
                    relay.sent += 1;
                }
                relay.half_closed = false;
            }
            return;
        }
        if faults && !relay.host_closed && self.choices.one_in(40) {
            relay.connected = false;
            relay.wire.clear();
            return;
        }
        match self.choices.below(3) {
            0 => {
                let len = self.choices.below(48).min(relay.output.len() - relay.sent);
                // A slow reader's stream takes no more than so much.
                let len = len.min(64usize.saturating_sub(relay.wire.len()));
                relay.wire.extend(&relay.output[relay.sent..relay.sent + len]);
                relay.sent += len;
            }
            1 if relay.sent == relay.output.len() && !(forgets && relay.exited) => {
                relay.exited = true;
                relay.half_closed = true;
            }
            _ => {
                let len = self.choices.below(48).min(relay.wire.len());
                relay.received.extend(relay.wire.drain(..len));
                if relay.wire.is_empty() && relay.half_closed && relay.sent == relay.output.len() {
                    relay.host_saw_end = true;
                    relay.host_closed = true;
                }
            }
        }
    }

    fn invariants(&self) -> Result<(), String> {
        for (pid, process) in &self.processes {
            let relay = &process.relay;
            if !relay.output.starts_with(&relay.received) {
                return Err(format!("process {pid}: the host has bytes that were not written so"));
            }
            if relay.host_saw_end && relay.received != relay.output {
                return Err(format!("process {pid}: the stream ends before its output"));
            }
            if process.told.is_some() && !relay.drained() {
                return Err(format!("process {pid}: the exit is told before its output was taken"));
            }
            if process.notified > 1 {
                return Err(format!("process {pid}: the host is notified twice"));
            }
            if process.notified == 1 && !process.waited {
                return Err(format!(
                    "process {pid}: the host is notified of what it did not wait for"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_seed_breaks_an_invariant() {
        for seed in 0..1500 {
            if let Err(broken) = run(seed, None) {
                panic!("{broken}; again with: linkspan simulate --seed {seed}");
            }
        }
    }

    #[test]
    fn a_seed_is_the_same_run_every_time() {
        for seed in [1, 77, 4711] {
            assert_eq!(run(seed, None).unwrap(), run(seed, None).unwrap());
        }
        assert_ne!(run(1, None).unwrap(), run(2, None).unwrap());
    }

    #[test]
    fn each_mutation_is_found() {
        for mutation in MUTATIONS {
            let found = (0..500).find_map(|seed| run(seed, Some(mutation)).err());
            let found = found.unwrap_or_else(|| panic!("{mutation:?} is not found"));
            println!("{mutation:?}: {found}");
        }
    }
}
