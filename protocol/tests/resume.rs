//! Both ends over connections that break at any byte.

use std::collections::BTreeMap;
use std::time::Instant;

use linkspan_protocol::message::{
    ContainerId, NegotiateProtocol, Notification, Request, WaitForProcess, WaitForProcessResponse,
};
use linkspan_protocol::{CallId, Client, ClientEvent, Server, ServerOptions, Ticket};

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What the two ends have seen.
#[derive(Default)]
struct Seen {
    /// Requests by process id, as the agent got them.
    requests: BTreeMap<u32, usize>,
    /// Answers by call: process id, and how often.
    answers: BTreeMap<CallId, (u32, usize)>,
    notifications: BTreeMap<String, usize>,
}

struct World {
    client: Client,
    server: Server,
    working: Vec<(Ticket, u32)>,
    /// Bytes on their way: to the guest, to the host.
    wires: [Vec<u8>; 2],
    /// A frame that the guest has not written in full, and how much of it.
    writing: Option<(Vec<u8>, usize)>,
    negotiating: Option<CallId>,
    seen: Seen,
}

impl World {
    fn connect(&mut self) {
        self.client.reconnect();
        let negotiation = self.client.negotiation();
        let (call, frame) = self.client.call_now(ContainerId::none(), &negotiation);
        self.negotiating = Some(call);
        self.wires[0].extend(frame);
    }

    fn cut(&mut self) {
        if let Some(call) = self.negotiating.take() {
            self.client.abandon(call);
        }
        self.wires = Default::default();
        self.server.disconnect(self.writing.take().map(|(frame, _)| frame));
        self.connect();
    }

    /// The host writes only after the negotiation.
    fn host_writes(&mut self, dice: &mut Dice) {
        if self.negotiating.is_none()
            && let Some(frame) = self.client.poll_transmit()
        {
            // Cut off now and then: what follows then is another connection.
            if dice.below(60) == 0 {
                self.wires[0].extend(&frame[..dice.below(frame.len() as u64) as usize]);
                return self.cut();
            }
            self.wires[0].extend(frame);
        }
    }

    fn guest_writes(&mut self, dice: &mut Dice) {
        let (frame, written) = match self.writing.take() {
            Some(writing) => writing,
            None => match self.server.poll_transmit() {
                Some(frame) => (frame, 0),
                None => return,
            },
        };
        let end = written + 1 + dice.below((frame.len() - written) as u64) as usize;
        self.wires[1].extend(&frame[written..end]);
        self.writing = (end < frame.len()).then_some((frame, end));
    }

    fn guest_reads(&mut self, dice: &mut Dice) {
        let len = dice.below(self.wires[0].len() as u64 + 1) as usize;
        let bytes: Vec<u8> = self.wires[0].drain(..len).collect();
        self.server.handle_input(&bytes).unwrap();
        while let Some(incoming) = self.server.poll_request() {
            let Request::WaitForProcess(wait) = incoming.request else { panic!() };
            *self.seen.requests.entry(wait.process_id).or_default() += 1;
            self.working.push((incoming.ticket, wait.process_id));
        }
    }

    fn guest_works(&mut self, dice: &mut Dice) {
        if self.working.is_empty() {
            return;
        }
        let (ticket, pid) =
            self.working.swap_remove(dice.below(self.working.len() as u64) as usize);
        let response = WaitForProcessResponse { exit_code: pid, ..Default::default() };
        self.server.respond(ticket, Ok(response));
        if pid.is_multiple_of(3) {
            let notification =
                Notification { container_id: ContainerId(pid.to_string()), ..Default::default() };
            self.server.notify(&notification);
        }
    }

    fn host_reads(&mut self, dice: &mut Dice) {
        let len = dice.below(self.wires[1].len() as u64 + 1) as usize;
        let bytes: Vec<u8> = self.wires[1].drain(..len).collect();
        self.client.handle_input(&bytes, Instant::now()).unwrap();
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Answered { call, outcome } if Some(call) == self.negotiating => {
                    let response = outcome.unwrap().decode::<NegotiateProtocol>().unwrap();
                    self.negotiating = None;
                    self.client.resume(&response.linkspan.unwrap());
                }
                ClientEvent::Answered { call, outcome } => {
                    let response = outcome.unwrap().decode::<WaitForProcess>().unwrap();
                    let answer = self.seen.answers.get_mut(&call).unwrap();
                    assert_eq!(answer.0, response.exit_code);
                    answer.1 += 1;
                }
                ClientEvent::Notified(notification) => {
                    let id = notification.container_id.as_str().to_owned();
                    *self.seen.notifications.entry(id).or_default() += 1;
                }
                ClientEvent::Closed(reason) => panic!("{reason}"),
            }
        }
    }
}

#[test]
fn everything_comes_exactly_once_over_connections_that_break_anywhere() {
    let mut cuts = 0;
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let mut world = World {
            client: Client::resuming(seed + 1),
            server: Server::new(ServerOptions::default()),
            working: Vec::new(),
            wires: Default::default(),
            writing: None,
            negotiating: None,
            seen: Seen::default(),
        };
        world.connect();
        let mut asked = 0;
        let mut steps = 0;
        while asked < 60 || world.seen.answers.values().any(|(_, times)| *times == 0) {
            steps += 1;
            assert!(steps < 200_000, "seed {seed}: no progress");
            match dice.below(400) {
                0..20 if asked < 60 => {
                    asked += 1;
                    let wait = WaitForProcess { process_id: asked, timeout_in_ms: 0 };
                    let call = world.client.call("c".into(), &wait, None);
                    world.seen.answers.insert(call, (asked, 0));
                }
                0..80 => world.host_writes(&mut dice),
                80..180 => world.guest_reads(&mut dice),
                180..220 => world.guest_works(&mut dice),
                220..310 => world.guest_writes(&mut dice),
                310..399 => world.host_reads(&mut dice),
                _ => {
                    cuts += 1;
                    world.cut();
                }
            }
        }
        // What is still on its way.
        for _ in 0..2000 {
            world.host_writes(&mut Dice(1));
            world.guest_reads(&mut dice);
            world.guest_writes(&mut dice);
            world.host_reads(&mut dice);
        }
        let Seen { requests, answers, notifications } = world.seen;
        assert!(requests.values().all(|times| *times == 1), "seed {seed}: {requests:?}");
        assert_eq!(requests.len(), 60);
        assert!(answers.values().all(|(_, times)| *times == 1), "seed {seed}: {answers:?}");
        assert_eq!(notifications.len(), 20, "seed {seed}");
        assert!(notifications.values().all(|times| *times == 1), "seed {seed}: {notifications:?}");
    }
    assert!(cuts > 1000);
}
