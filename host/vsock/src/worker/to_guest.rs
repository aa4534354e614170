//! Packets to the guest: the ring it receives on.

use std::io;
use std::os::fd::AsFd;

use vm_memory::GuestMemoryMmap;

use super::Worker;
use super::table::{Entry, Key, retry};
use crate::frontend::{Frontend, RX};
use crate::memory::Buffers;
use crate::packet::{HEADER_LEN, HOST_CID, Header, Operation, STREAM};
use crate::ring::Ring;

/// Bytes one connection may send before the next has its turn.
const QUANTUM: usize = 256 * 1024;

/// Buffers of the guest's filled by one read.
const MAX_SLOTS: usize = 64;

/// Turns taken before other work has its own.
const TURN: usize = 32;

/// A buffer of the guest's, with room for a header and some payload.
struct Slot<'m> {
    head: u16,
    buffers: Buffers<'m>,
}

impl Slot<'_> {
    fn room(&self) -> usize {
        self.buffers.len() - HEADER_LEN
    }
}

/// The next slot of the ring. Buffers too small to be of use go back as they are.
fn next_slot<'m>(ring: &mut Ring, memory: &'m GuestMemoryMmap) -> Option<Slot<'m>> {
    for _ in 0..MAX_SLOTS {
        let chain = ring.pop(memory)?;
        let head = chain.head_index();
        match Buffers::of_chain(memory, chain, true) {
            Some(buffers) if buffers.len() > HEADER_LEN => return Some(Slot { head, buffers }),
            _ => ring.give_back(memory, head, 0),
        }
    }
    None
}

/// Slots for up to `window` bytes of payload.
fn slots_for<'m>(ring: &mut Ring, memory: &'m GuestMemoryMmap, window: usize) -> Vec<Slot<'m>> {
    let mut slots = Vec::new();
    let mut room = 0;
    while room < window && slots.len() < MAX_SLOTS {
        let slot = if slots.is_empty() {
            next_slot(ring, memory)
        } else {
            // Slots that stay empty are taken back in order, so none may go back in between.
            ring.pop(memory).and_then(|chain| {
                let head = chain.head_index();
                let buffers = Buffers::of_chain(memory, chain, true)
                    .filter(|buffers| buffers.len() > HEADER_LEN);
                if buffers.is_none() {
                    ring.unpop();
                }
                Some(Slot { head, buffers: buffers? })
            })
        };
        let Some(slot) = slot else { break };
        room += slot.room();
        slots.push(slot);
    }
    slots
}

impl Worker {
    /// Sends what there is to send while the guest has buffers for it.
    pub(super) fn serve_rx(&mut self, frontend: &mut Frontend) {
        if self.rx_blocked || self.ready.is_empty() && self.replies.is_empty() {
            return;
        }
        let Frontend { memory, rings, .. } = frontend;
        let ring = &mut rings[RX];
        ring.hush(memory);
        for _ in 0..TURN {
            if !self.send_replies(ring, memory) || !self.send_next(ring, memory) {
                self.rx_blocked = !ring.listen(memory);
                break;
            }
            ring.announce(memory);
        }
        ring.announce(memory);
    }

    /// Returns whether the ring had room for them all.
    fn send_replies(&mut self, ring: &mut Ring, memory: &GuestMemoryMmap) -> bool {
        while let Some(header) = self.replies.front() {
            let Some(slot) = next_slot(ring, memory) else { return false };
            slot.buffers.write(&header.encode());
            ring.give_back(memory, slot.head, HEADER_LEN as u32);
            self.replies.pop_front();
        }
        true
    }

    /// Lets the next connection send. Returns whether the ring had room for it.
    fn send_next(&mut self, ring: &mut Ring, memory: &GuestMemoryMmap) -> bool {
        let Some(id) = self.ready.pop_front() else { return true };
        let guest_cid = self.guest_cid;
        let Some(entry) = self.table.get(id) else { return true };
        entry.queued = false;
        let had_room = send_control(entry, guest_cid, ring, memory)
            && send_data(entry, guest_cid, ring, memory);
        self.settle(id); // queues it again if there is more
        had_room
    }
}

fn send_control(
    entry: &mut Entry,
    guest_cid: u64,
    ring: &mut Ring,
    memory: &GuestMemoryMmap,
) -> bool {
    while entry.connection.owes_control() {
        let Some(slot) = next_slot(ring, memory) else { return false };
        let Some(control) = entry.connection.poll_control() else {
            ring.unpop();
            break;
        };
        let header =
            Header { flags: control.flags, ..header(entry, guest_cid, control.operation, 0) };
        slot.buffers.write(&header.encode());
        ring.give_back(memory, slot.head, HEADER_LEN as u32);
    }
    true
}

fn send_data(entry: &mut Entry, guest_cid: u64, ring: &mut Ring, memory: &GuestMemoryMmap) -> bool {
    let window = (entry.connection.window() as usize).min(QUANTUM);
    if !entry.readable || window == 0 {
        return true;
    }
    let slots = slots_for(ring, memory, window);
    if slots.is_empty() {
        return false;
    }
    let mut payload = Buffers::empty();
    for slot in &slots {
        payload.extend_from(&slot.buffers, HEADER_LEN, window - payload.len());
    }
    let received = match retry(|| payload.receive_from(entry.socket.as_fd())) {
        Ok(len) => {
            // A short read found the socket empty, unless its end of file is still to come.
            entry.readable = len == payload.len() || entry.ending && len > 0;
            if len == 0 {
                entry.connection.host_sends_no_more();
            }
            len
        }
        Err(error) => {
            entry.readable = false;
            if error.kind() != io::ErrorKind::WouldBlock {
                entry.connection.host_sends_no_more();
                entry.host_is_gone();
            }
            0
        }
    };
    let mut rest = received;
    for slot in &slots {
        let len = slot.room().min(rest);
        if len == 0 {
            ring.unpop();
            continue;
        }
        rest -= len;
        let header = header(entry, guest_cid, Operation::DATA, len as u32);
        entry.connection.host_sent(len as u32);
        slot.buffers.write(&header.encode());
        ring.give_back(memory, slot.head, (HEADER_LEN + len) as u32);
    }
    true
}

fn header(entry: &mut Entry, guest_cid: u64, operation: Operation, len: u32) -> Header {
    let Key { guest_port, host_port } = entry.key;
    let (buf_alloc, fwd_cnt) = entry.connection.credit_fields();
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: host_port,
        dst_port: guest_port,
        len,
        kind: STREAM,
        operation,
        flags: 0,
        buf_alloc,
        fwd_cnt,
    }
}
