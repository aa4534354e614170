//! One connection's rules: credit, half-close, reset. No sockets, no rings, no clock.
//!
//! The worker tells a [`Connection`] what happened (`handle_*` for what the guest sent, `host_*` for what
//! became of the host socket) and asks what follows (`poll_*`, [`Connection::window`]).
//!
//! Each direction closes on its own; both ends can close either.
//!
//! | what happened                        | what follows                                                 |
//! |--------------------------------------|--------------------------------------------------------------|
//! | guest: sends no more                 | when all it sent is delivered, the host socket's write side closes |
//! | guest: receives no more              | the host socket's read side closes                           |
//! | guest: both                          | when all it sent is delivered, a reset answers and the host socket closes |
//! | guest: reset, having said that it sends no more | the same, without the answer                      |
//! | guest: reset                         | the host socket closes at once                               |
//! | host socket: end of file             | the guest learns that the host sends no more                 |
//! | host socket: gone, or refuses writes | the guest learns that the host receives no more; what it sent is dropped |
//! | guest: breaks a rule                 | a reset, and the host socket closes at once                  |

use crate::packet::{Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// What the worker does about a packet it handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Nothing, beyond polling the connection.
    Continue,
    /// The guest took the connection the host asked for.
    Established,
    /// The payload goes to the host socket; say how far with [`Connection::delivered`].
    Deliver,
    /// The guest is done with it, after an orderly end: with bytes still to deliver the connection lives on
    /// without an address.
    Reset,
    /// The guest refused it, or broke it off: close at once.
    Abort,
    /// The guest broke a rule: reset it.
    Violation,
}

/// What the worker does to the host socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostStep {
    /// Shut down its write side: the host process reads an end of file.
    ShutdownWrite,
    /// Shut down its read side: the host process can write no more.
    ShutdownRead,
    /// Answer the guest with a reset unless it reset first, and close.
    Finish,
}

/// A packet without payload that a connection owes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) operation: Operation,
    pub(crate) flags: u32,
}

/// The state of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    established: bool,
    /// Owed to the guest: the packet that opens the connection, from either side.
    opening: Option<Operation>,

    /// Bytes we hold for the guest, and how many came, went on, and were last reported as gone on.
    buf_alloc: u32,
    received: u32,
    forwarded: u32,
    reported: u32,
    update_asked: bool,

    /// What the guest holds for us, what it reported, and what we sent.
    peer_buf_alloc: u32,
    peer_forwarded: u32,
    sent: u32,
    /// Value of `sent` at our last request for credit.
    asked_at: Option<u32>,
    credit_wanted: bool,

    guest_sends: bool,
    guest_receives: bool,
    guest_reset: bool,
    host_sends: bool,
    host_receives: bool,
    write_shut: bool,
    read_shut: bool,
    /// Shutdown flags the guest already has from us.
    told: u32,
}

impl Connection {
    /// A connection the guest asked for and somebody took. `buf_alloc` is in bytes.
    pub(crate) fn accepted(request: &Header, buf_alloc: u32) -> Self {
        let mut connection = Self::new(Operation::RESPONSE, buf_alloc);
        connection.established = true;
        connection.peer_buf_alloc = request.buf_alloc;
        connection.peer_forwarded = request.fwd_cnt;
        connection
    }

    /// A connection the host asks for. `buf_alloc` is in bytes.
    pub(crate) fn requested(buf_alloc: u32) -> Self {
        Self::new(Operation::REQUEST, buf_alloc)
    }

    fn new(opening: Operation, buf_alloc: u32) -> Self {
        Self {
            established: false,
            opening: Some(opening),
            buf_alloc,
            received: 0,
            forwarded: 0,
            reported: 0,
            update_asked: false,
            peer_buf_alloc: 0,
            peer_forwarded: 0,
            sent: 0,
            asked_at: None,
            credit_wanted: false,
            guest_sends: true,
            guest_receives: true,
            guest_reset: false,
            host_sends: true,
            host_receives: true,
            write_shut: false,
            read_shut: false,
            told: 0,
        }
    }

    /// Takes in a packet of the guest's for this connection.
    pub(crate) fn handle_packet(&mut self, header: &Header) -> Reaction {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        match header.operation {
            Operation::RESET => {
                let orderly = !self.guest_sends;
                self.guest_reset = true;
                self.guest_sends = false;
                self.guest_receives = false;
                if orderly { Reaction::Reset } else { Reaction::Abort }
            }
            Operation::RESPONSE if !self.established => {
                self.established = true;
                Reaction::Established
            }
            _ if !self.established => Reaction::Violation,
            Operation::SHUTDOWN => {
                self.guest_sends &= header.flags & SHUTDOWN_SEND == 0;
                self.guest_receives &= header.flags & SHUTDOWN_RECEIVE == 0;
                Reaction::Continue
            }
            Operation::DATA => self.handle_data(header.len),
            Operation::CREDIT_UPDATE => Reaction::Continue,
            Operation::CREDIT_REQUEST => {
                self.update_asked = true;
                Reaction::Continue
            }
            _ => Reaction::Violation,
        }
    }

    fn handle_data(&mut self, len: u32) -> Reaction {
        let room = self.buf_alloc - self.undelivered();
        if !self.guest_sends || len > room {
            return Reaction::Violation;
        }
        self.received = self.received.wrapping_add(len);
        if self.host_receives {
            Reaction::Deliver
        } else {
            self.forwarded = self.received; // it was under way when we told the guest
            Reaction::Continue
        }
    }

    /// Bytes taken from the guest that the host socket does not have yet; at most `buf_alloc`.
    pub(crate) fn undelivered(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// The host socket took `len` bytes more of what is undelivered.
    pub(crate) fn delivered(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len.min(self.undelivered()));
    }

    /// The host socket takes no more bytes; what is undelivered never will be.
    pub(crate) fn host_receives_no_more(&mut self) {
        self.host_receives = false;
        self.forwarded = self.received;
    }

    /// `len` bytes were read from the host socket and are on their way in a data packet.
    pub(crate) fn host_sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// The host socket is at its end of file.
    pub(crate) fn host_sends_no_more(&mut self) {
        self.host_sends = false;
    }

    /// How many bytes may be read from the host socket now.
    pub(crate) fn window(&self) -> u32 {
        if self.established && self.host_sends && self.guest_receives { self.credit() } else { 0 }
    }

    fn credit(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// The host socket has bytes, but [`Connection::window`] was zero: ask the guest about it, though not
    /// more than twice for each bufferful.
    pub(crate) fn starved(&mut self) {
        let waits =
            self.established && self.host_sends && self.guest_receives && self.credit() == 0;
        let recently = self
            .asked_at
            .is_some_and(|at| self.sent.wrapping_sub(at) < (self.peer_buf_alloc / 2).max(1));
        if waits && !recently {
            self.asked_at = Some(self.sent);
            self.credit_wanted = true;
        }
    }

    /// The next packet without payload the guest is owed.
    pub(crate) fn poll_control(&mut self) -> Option<Control> {
        if self.guest_reset {
            return None;
        }
        let plain = |operation| Some(Control { operation, flags: 0 });
        if let Some(operation) = self.opening.take() {
            return plain(operation);
        }
        if !self.established {
            return None;
        }
        let flags = self.shutdown_flags();
        if flags != self.told {
            self.told = flags;
            return Some(Control { operation: Operation::SHUTDOWN, flags });
        }
        if self.owes_update() {
            self.update_asked = false;
            return plain(Operation::CREDIT_UPDATE);
        }
        std::mem::take(&mut self.credit_wanted)
            .then_some(Control { operation: Operation::CREDIT_REQUEST, flags: 0 })
    }

    /// Whether [`Connection::poll_control`] has something.
    pub(crate) fn owes_control(&self) -> bool {
        !self.guest_reset && (self.opening.is_some() || self.established && (self.owes_more()))
    }

    fn owes_more(&self) -> bool {
        self.shutdown_flags() != self.told || self.owes_update() || self.credit_wanted
    }

    fn shutdown_flags(&self) -> u32 {
        let mut flags = self.told;
        if !self.host_sends {
            flags |= SHUTDOWN_SEND;
        }
        // A guest that sends no more is in no hurry to learn it; one packet for both will do.
        if !self.host_receives && (self.guest_sends || !self.host_sends) {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags
    }

    /// An update is worth a packet when asked for, or when half of what the guest dares to send came free
    /// unreported. Linux sends no more ahead than its own buffer holds, however large ours is.
    fn owes_update(&self) -> bool {
        let unreported = self.forwarded.wrapping_sub(self.reported);
        let half = self.buf_alloc.min(self.peer_buf_alloc) / 2;
        self.update_asked || self.guest_sends && unreported >= half.max(1)
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that is about to go out.
    pub(crate) fn credit_fields(&mut self) -> (u32, u32) {
        self.reported = self.forwarded;
        (self.buf_alloc, self.forwarded)
    }

    /// The next thing due on the host socket. [`HostStep::Finish`] is the last.
    pub(crate) fn poll_host(&mut self) -> Option<HostStep> {
        let flushed = self.undelivered() == 0;
        if self.guest_is_done() {
            return flushed.then_some(HostStep::Finish);
        }
        if !self.guest_sends && flushed && !self.write_shut {
            self.write_shut = true;
            return Some(HostStep::ShutdownWrite);
        }
        if !self.guest_receives && !self.read_shut {
            self.read_shut = true;
            self.host_sends = false;
            return Some(HostStep::ShutdownRead);
        }
        None
    }

    /// The guest will neither send nor receive: only delivery of what it sent keeps the connection.
    pub(crate) fn guest_is_done(&self) -> bool {
        !self.guest_sends && !self.guest_receives
    }

    /// Whether the guest ended the connection with a reset, so that none answers it.
    pub(crate) fn guest_reset(&self) -> bool {
        self.guest_reset
    }

    /// Whether the guest answered the host's request for this connection.
    pub(crate) fn is_established(&self) -> bool {
        self.established
    }
}

#[cfg(test)]
mod tests;
