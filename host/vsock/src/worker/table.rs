//! The connections of a device, and what each has besides its rules: a socket, and bytes that wait for it.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::AsRawFd;

use crate::connection::Connection;
use crate::device::Answer;
use crate::memory::Buffers;

/// Above this capacity an emptied backlog is freed, below it is kept.
const KEPT_BACKLOG: usize = 16 * 1024;

/// The address of a connection: the guest's port and the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) guest_port: u32,
    pub(crate) host_port: u32,
}

/// Who waits for the guest's answer to a connection the host asked for.
pub(crate) enum Waiter {
    Nobody,
    /// A caller of the device, who gets the other end of the socket.
    Caller(Answer, UnixStream),
    /// A client of the export socket, which is the host socket itself.
    Client,
}

/// Bytes of the guest's that the host socket had no room for.
#[derive(Default)]
pub(crate) struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends what is left of `payload` after `skip` bytes.
    fn push(&mut self, payload: Buffers<'_>, skip: usize) {
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let rest = payload.window(skip, usize::MAX);
        let at = self.bytes.len();
        self.bytes.resize(at + rest.len(), 0);
        rest.read(&mut self.bytes[at..]);
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
        if self.bytes.capacity() > KEPT_BACKLOG {
            self.bytes = Vec::new();
        }
    }
}

/// One connection.
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) connection: Connection,
    pub(crate) socket: UnixStream,
    pub(crate) backlog: Backlog,
    pub(crate) waiter: Waiter,
    /// The socket may have bytes: it was announced, and not read dry since.
    pub(crate) readable: bool,
    /// The socket's other end is shut: it stays readable until its end of file was read.
    pub(crate) ending: bool,
    /// It waits in the ready queue.
    pub(crate) queued: bool,
    /// Epoll also watches for room to write.
    pub(crate) watches_room: bool,
}

impl Entry {
    pub(crate) fn new(
        key: Key,
        connection: Connection,
        socket: UnixStream,
        waiter: Waiter,
    ) -> Self {
        Self {
            key,
            connection,
            socket,
            backlog: Backlog::default(),
            waiter,
            readable: false,
            ending: false,
            queued: false,
            watches_room: false,
        }
    }

    /// Hands the guest's bytes to the host socket, and keeps what it has no room for.
    pub(crate) fn deliver(&mut self, payload: Buffers<'_>) {
        let mut sent = 0;
        if self.backlog.is_empty() {
            match retry(|| payload.send_to(self.socket.as_fd())) {
                Ok(len) => sent = len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.host_is_gone(),
            }
            self.connection.delivered(sent as u32);
        }
        if sent < payload.len() {
            self.backlog.push(payload, sent);
        }
    }

    /// Hands over what was kept, as far as there is room now.
    pub(crate) fn flush(&mut self) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !self.backlog.is_empty() {
            let rest = &self.backlog.bytes[self.backlog.start..];
            match send(self.socket.as_raw_fd(), rest, flags) {
                Ok(sent) => {
                    self.connection.delivered(sent as u32);
                    self.backlog.start += sent;
                    if self.backlog.start == self.backlog.bytes.len() {
                        self.backlog.clear();
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => return self.host_is_gone(),
            }
        }
    }

    /// Nobody reads the other end of the socket any more.
    pub(crate) fn host_is_gone(&mut self) {
        self.connection.host_receives_no_more();
        self.backlog.clear();
    }

    /// Reads away what the host process wrote and the guest will not take: a socket closed over unread bytes
    /// would show the host process a reset where the guest made an orderly end.
    pub(crate) fn discard_input(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Read); // nothing more comes in
        let mut sink = [0; 16 * 1024];
        while let Ok(1..) | Err(Errno::EINTR) =
            recv(self.socket.as_raw_fd(), &mut sink, MsgFlags::MSG_DONTWAIT)
        {}
    }
}

/// Runs a system call again when a signal interrupted it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// All connections, by id and, while the guest can address them, by address. Ids are never used again.
pub(crate) struct Table {
    entries: HashMap<u64, Entry>,
    ids: HashMap<Key, u64>,
    next_id: u64,
    next_port: u32,
}

/// Host ports for connections the host opens start here, as far as can be from ports people listen on.
const FIRST_PORT: u32 = 1 << 30;

impl Table {
    /// An empty table that gives out ids from `first_id` on.
    pub(crate) fn new(first_id: u64) -> Self {
        Self {
            entries: HashMap::new(),
            ids: HashMap::new(),
            next_id: first_id,
            next_port: FIRST_PORT,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// An address for a connection to `guest_port` that is not in use.
    pub(crate) fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key { guest_port, host_port: self.next_port };
            self.next_port = match self.next_port + 1 {
                port if port < 1 << 31 => port,
                _ => FIRST_PORT,
            };
            if !self.ids.contains_key(&key) {
                return key;
            }
        }
    }

    pub(crate) fn insert(&mut self, id: u64, entry: Entry) {
        self.ids.insert(entry.key, id);
        self.entries.insert(id, entry);
    }

    pub(crate) fn find(&self, key: Key) -> Option<u64> {
        self.ids.get(&key).copied()
    }

    pub(crate) fn get(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// Takes a connection's address away: it lives on until it is delivered.
    pub(crate) fn detach(&mut self, id: u64) {
        if let Some(entry) = self.entries.get(&id)
            && self.ids.get(&entry.key) == Some(&id)
        {
            self.ids.remove(&entry.key);
        }
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Entry> {
        self.detach(id);
        self.entries.remove(&id)
    }

    /// Removes all connections.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Entry> {
        self.ids.clear();
        std::mem::take(&mut self.entries).into_values()
    }
}
