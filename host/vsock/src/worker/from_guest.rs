//! Packets from the guest: the ring it sends on.

use std::os::unix::net::UnixStream;

use super::Worker;
use super::table::{Key, Waiter};
use crate::connection::{Connection, Reaction};
use crate::error::ConnectError;
use crate::export;
use crate::frontend::{Frontend, TX};
use crate::memory::Buffers;
use crate::packet::{HEADER_LEN, HOST_CID, Header, Operation, STREAM};
use crate::registry::{GuestStream, PORT_ANY};

/// Chains taken before other work has its turn.
const TURN: usize = 128;

/// The guest is told of chains given back at least this often, so that it can go on while we do.
const ANNOUNCE_EVERY: usize = 16;

impl Worker {
    /// Takes packets from the ring, and remembers whether some are left.
    pub(super) fn serve_tx(&mut self, frontend: &mut Frontend) {
        let Frontend { memory, rings, .. } = frontend;
        let ring = &mut rings[TX];
        ring.hush(memory);
        for turn in 1..=TURN {
            let Some(chain) = ring.pop(memory) else {
                self.tx_pending = ring.listen(memory);
                break;
            };
            let head = chain.head_index();
            if let Some(packet) = Buffers::of_chain(memory, chain, false) {
                self.take_packet(packet);
            }
            ring.give_back(memory, head, 0);
            if turn % ANNOUNCE_EVERY == 0 {
                ring.announce(memory);
            }
        }
        ring.announce(memory);
    }

    fn take_packet(&mut self, packet: Buffers<'_>) {
        let mut header = [0; HEADER_LEN];
        if !packet.read(&mut header) {
            return;
        }
        let header = Header::decode(&header);
        if header.src_cid != self.guest_cid {
            return;
        }
        let key = Key { guest_port: header.src_port, host_port: header.dst_port };
        let for_us = header.dst_cid == HOST_CID
            && header.kind == STREAM
            && header.src_port != PORT_ANY
            && header.dst_port != PORT_ANY;
        let opens = header.operation == Operation::REQUEST;
        match self.table.find(key).filter(|_| for_us) {
            None if for_us && opens => self.accept(key, &header),
            None if header.operation == Operation::RESET => {}
            None => self.reply(header.reset()),
            // The guest gave up waiting for our reset, and has used the port again.
            Some(id) if opens && self.is_done(id) => {
                self.table.detach(id);
                self.accept(key, &header);
            }
            Some(id) => self.react(id, &header, packet),
        }
    }

    fn is_done(&mut self, id: u64) -> bool {
        self.table.get(id).is_some_and(|entry| entry.connection.guest_is_done())
    }

    fn react(&mut self, id: u64, header: &Header, packet: Buffers<'_>) {
        let Some(entry) = self.table.get(id) else { return };
        let len = header.len as usize;
        let reaction = if len > packet.len() - HEADER_LEN {
            Reaction::Violation
        } else {
            entry.connection.handle_packet(header)
        };
        match reaction {
            Reaction::Continue => {}
            Reaction::Deliver => entry.deliver(packet.window(HEADER_LEN, len)),
            Reaction::Established => self.established(id),
            Reaction::Violation => return self.abandon(id, ConnectError::Refused, true),
            Reaction::Abort => return self.abandon(id, ConnectError::Refused, false),
            Reaction::Reset => self.table.detach(id),
        }
        self.settle(id);
    }

    /// The guest accepted: whoever waits gets the stream.
    fn established(&mut self, id: u64) {
        let Some(entry) = self.table.get(id) else { return };
        match std::mem::replace(&mut entry.waiter, Waiter::Nobody) {
            Waiter::Nobody => {}
            Waiter::Caller(answer, stream) => answer.give(Ok(stream)),
            Waiter::Client => {
                if !export::confirm(&entry.socket, entry.key.host_port) {
                    entry.host_is_gone();
                }
            }
        }
    }

    /// Opens a connection the guest asks for, or refuses it at once.
    fn accept(&mut self, key: Key, request: &Header) {
        let socket =
            if self.table.len() < self.max_connections { self.find_taker(key) } else { None };
        let connection = Connection::accepted(request, self.buffer());
        let accepted = socket
            .is_some_and(|socket| self.insert(key, connection, socket, Waiter::Nobody).is_ok());
        if !accepted {
            self.reply(request.reset());
        }
    }

    /// The host's end for a connection to `key.host_port`, with somebody at the other end of it.
    fn find_taker(&mut self, key: Key) -> Option<UnixStream> {
        if let Some(handler) = self.shared.registry.take(key.host_port) {
            let (ours, stream) = UnixStream::pair().ok()?;
            let Key { guest_port, host_port } = key;
            return handler(GuestStream { stream, guest_port, host_port }).then_some(ours);
        }
        self.export.as_ref()?.connect(key.host_port).ok()
    }
}
