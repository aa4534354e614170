//! A guest without a machine: memory, two rings and the vhost-user messages QEMU would send.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::packet::{HEADER_LEN, HOST_CID, Header, Operation, STREAM};

pub(super) const GUEST_CID: u64 = 3;
const MEMORY: usize = 1 << 20;
const ENTRIES: u16 = 16;
const SLOT: u64 = 0x2000;
/// Bytes in each buffer the guest receives into.
pub(super) const ROOM: u32 = 1024;

struct Queue {
    base: u64,
    buffers: u64,
    kick: EventFd,
    call: EventFd,
    /// Watches `call`.
    calls: Epoll,
    used: u16,
    available: u16,
}

impl Queue {
    fn new(base: u64, buffers: u64) -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (call, calls) = (event(), Epoll::new().unwrap());
        let readable = EpollEvent::new(EventSet::IN, 0);
        calls.ctl(ControlOperation::Add, call.as_raw_fd(), readable).unwrap();
        Self { base, buffers, kick: event(), call, calls, used: 0, available: 0 }
    }

    fn desc(&self) -> u64 {
        self.base
    }

    fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    fn used(&self) -> u64 {
        self.base + 0x2000
    }

    fn buffer(&self, slot: u16) -> u64 {
        self.buffers + u64::from(slot) * SLOT
    }
}

/// The guest's side of a device.
pub(super) struct Driver {
    memory: GuestMemoryMmap,
    frontend: Frontend,
    queues: [Queue; 2],
}

impl Driver {
    /// Brings the device up as QEMU and a guest's driver would.
    pub(super) fn start(device: &Device) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY as u64).unwrap();
        let mut frontend =
            Frontend::from_stream(UnixStream::from(device.take_frontend().unwrap()), 2);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(VhostUserProtocolFeatures::CONFIG).unwrap();
        let (_, config) =
            frontend.get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8]).unwrap();
        assert_eq!(config, GUEST_CID.to_le_bytes());
        frontend.set_features(features & !(1 << 29)).unwrap(); // no event index: every change is announced
        let mut driver = Self {
            memory: map(&file),
            frontend,
            queues: [Queue::new(0, 0x1_0000), Queue::new(0x4000, 0x8_0000)],
        };
        driver.set_memory(&file);
        driver.start_rings(0);
        for slot in 0..ENTRIES {
            driver.post(slot);
        }
        driver.kick(0);
        driver
    }

    fn set_memory(&mut self, file: &File) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: 0,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    fn start_rings(&mut self, base: u16) {
        for (index, queue) in self.queues.iter().enumerate() {
            self.frontend.set_vring_num(index, ENTRIES).unwrap();
            self.frontend.set_vring_base(index, base).unwrap();
            let config = VringConfigData {
                queue_max_size: ENTRIES,
                queue_size: ENTRIES,
                flags: 0,
                desc_table_addr: queue.desc(),
                used_ring_addr: queue.used(),
                avail_ring_addr: queue.avail(),
                log_addr: None,
            };
            self.frontend.set_vring_addr(index, &config).unwrap();
            self.frontend.set_vring_call(index, &queue.call).unwrap();
            self.frontend.set_vring_kick(index, &queue.kick).unwrap();
            self.frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Pauses and resumes, as QEMU does around a stop.
    pub(super) fn pause_and_resume(&mut self) {
        let bases = [0, 1].map(|index| self.frontend.get_vring_base(index).unwrap());
        assert_eq!(bases[1], u32::from(self.queues[1].available));
        for (index, queue) in self.queues.iter().enumerate() {
            self.frontend.set_vring_base(index, bases[index] as u16).unwrap();
            self.frontend.set_vring_call(index, &queue.call).unwrap();
            self.frontend.set_vring_kick(index, &queue.kick).unwrap();
        }
        self.frontend.get_features().unwrap(); // answered, so all of the above was seen
    }

    /// Starts over with empty rings, as a guest that reboots does.
    pub(super) fn reboot(&mut self) {
        for index in [0, 1] {
            self.frontend.get_vring_base(index).unwrap();
        }
        for queue in &mut self.queues {
            self.memory.write_slice(&[0; 0x4000], GuestAddress(queue.base)).unwrap();
            (queue.used, queue.available) = (0, 0);
        }
        self.start_rings(0);
        for slot in 0..ENTRIES {
            self.post(slot);
        }
        self.kick(0);
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, address: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn read<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn offer(&mut self, queue: usize, slot: u16, address: u64, len: u32, flags: u16) {
        let q = &self.queues[queue];
        let desc = q.desc() + u64::from(slot) * 16;
        self.write(address, desc);
        self.write(len, desc + 8);
        self.write(flags, desc + 12);
        self.write(0u16, desc + 14);
        self.write(slot, q.avail() + 4 + u64::from(q.available % ENTRIES) * 2);
        let q = &mut self.queues[queue];
        q.available = q.available.wrapping_add(1);
        let (index, address) = (q.available, q.avail() + 2);
        self.write(index, address);
    }

    fn post(&mut self, slot: u16) {
        let address = self.queues[0].buffer(slot);
        self.offer(0, slot, address, HEADER_LEN as u32 + ROOM, 2);
    }

    pub(super) fn kick(&self, queue: usize) {
        self.queues[queue].kick.write(1).unwrap();
    }

    /// Waits for the device to use a chain. Returns its head and length.
    fn next_used(&mut self, queue: usize) -> (u16, u32) {
        loop {
            let q = &self.queues[queue];
            if self.read::<u16>(q.used() + 2) != q.used {
                break;
            }
            let mut events = [EpollEvent::default()];
            assert_eq!(q.calls.wait(5000, &mut events).unwrap(), 1, "the device stays silent");
            q.call.read().unwrap();
        }
        let q = &mut self.queues[queue];
        let entry = q.used() + 4 + u64::from(q.used % ENTRIES) * 8;
        q.used = q.used.wrapping_add(1);
        (self.read::<u32>(entry) as u16, self.read::<u32>(entry + 4))
    }

    /// Sends raw bytes as one chain of `len` bytes, and waits until the device has taken it.
    pub(super) fn send_raw(&mut self, bytes: &[u8], address: Option<u64>, len: u32) {
        let slot = self.queues[1].available % ENTRIES;
        let buffer = self.queues[1].buffer(slot);
        self.memory.write_slice(bytes, GuestAddress(buffer)).unwrap();
        self.offer(1, slot, address.unwrap_or(buffer), len, 0);
        self.kick(1);
        self.next_used(1);
    }

    /// Sends a packet.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        self.send_raw(&bytes, None, bytes.len() as u32);
    }

    /// Waits for a packet.
    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        let (slot, len) = self.next_used(0);
        let mut bytes = vec![0; len as usize];
        let address = GuestAddress(self.queues[0].buffer(slot));
        self.memory.read_slice(&mut bytes, address).unwrap();
        self.post(slot);
        self.kick(0);
        let header = Header::decode(bytes[..HEADER_LEN].try_into().unwrap());
        assert_eq!(bytes.len(), HEADER_LEN + header.len as usize);
        (header, bytes.split_off(HEADER_LEN))
    }

    /// Waits for a packet of this kind, and returns its flags and payload.
    pub(super) fn expect(&mut self, operation: Operation) -> (u32, Vec<u8>) {
        let (header, payload) = self.receive();
        assert_eq!(header.operation, operation, "{header:?}");
        (header.flags, payload)
    }
}

fn map(file: &File) -> GuestMemoryMmap {
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, Some(offset))]).unwrap()
}

/// A packet from port 1000 of the guest to `port` of the host.
pub(super) fn packet(port: u32, operation: Operation) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: 1000,
        dst_port: port,
        len: 0,
        kind: STREAM,
        operation,
        flags: 0,
        buf_alloc: 1 << 18,
        fwd_cnt: 0,
    }
}
