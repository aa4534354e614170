//! The device's thread: an epoll loop between QEMU's socket, the two rings and the host sockets.
//!
//! Host sockets are watched edge-triggered, and what was seen is remembered in their [`Entry`]: a socket is read
//! when it may have bytes *and* the guest has credit *and* the ring has room, whichever comes last. Room to write
//! is watched only while bytes wait for it.

mod from_guest;
mod table;
mod to_guest;

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use crate::connection::{Connection, HostStep};
use crate::device::{Answer, Command, Shared};
use crate::error::{ConnectError, Ended};
use crate::export::{Export, Handshake};
use crate::frontend::{Frontend, SharedFrontend};
use crate::packet::{HOST_CID, Header, Operation, STREAM};
use table::{Entry, Key, Table, Waiter};

const TOKEN_FRONTEND: u64 = 0;
const TOKEN_WAKE: u64 = 1;
const TOKEN_RX: u64 = 2;
const TOKEN_TX: u64 = 3;
const TOKEN_EXPORT: u64 = 4;
const FIRST_ID: u64 = 16;

/// Resets to packets of no connection that wait for room in the ring. More than these are not sent.
const MAX_REPLIES: usize = 1024;

/// With this many connections, a further one gets a buffer of at most [`CROWD_BUFFER`] bytes: a guest
/// that opens all it can is not to fill the host's memory.
const CROWD: usize = 64;
const CROWD_BUFFER: u32 = 256 << 10;

/// What a worker is made from.
pub(crate) struct Parts {
    pub(crate) guest_cid: u64,
    pub(crate) buffer: u32,
    pub(crate) max_connections: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) frontend: UnixStream,
    pub(crate) wake: Arc<EventFd>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) export: Option<Export>,
}

/// The state of the device's thread.
pub(crate) struct Worker {
    guest_cid: u64,
    buffer: u32,
    max_connections: usize,
    connect_timeout: Duration,
    epoll: Arc<Epoll>,
    requests: BackendReqHandler<Mutex<Frontend>>,
    frontend: SharedFrontend,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    export: Option<Export>,
    table: Table,
    /// Connections with something for the guest, in turn.
    ready: VecDeque<u64>,
    replies: VecDeque<Header>,
    /// Connections the host asked for, oldest first, and until when the guest may answer.
    asked: VecDeque<(Instant, u64)>,
    tx_pending: bool,
    /// The guest has no buffer for us until it kicks.
    rx_blocked: bool,
}

impl Worker {
    /// Makes a worker that is ready to [`run`](Worker::run).
    pub(crate) fn new(parts: Parts) -> std::io::Result<Self> {
        let epoll = Arc::new(Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)?);
        let input = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(&parts.frontend, input(TOKEN_FRONTEND))?;
        epoll.add(&*parts.wake, input(TOKEN_WAKE))?;
        if let Some(export) = &parts.export {
            let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(export.listener(), EpollEvent::new(edge, TOKEN_EXPORT))?;
        }
        let frontend = Frontend::new(parts.guest_cid, Arc::clone(&epoll), [TOKEN_RX, TOKEN_TX])?;
        let frontend = Arc::new(Mutex::new(frontend));
        Ok(Self {
            guest_cid: parts.guest_cid,
            buffer: parts.buffer,
            max_connections: parts.max_connections,
            connect_timeout: parts.connect_timeout,
            epoll,
            requests: BackendReqHandler::from_stream(parts.frontend, Arc::clone(&frontend)),
            frontend,
            wake: parts.wake,
            commands: parts.commands,
            shared: parts.shared,
            export: parts.export,
            table: Table::new(FIRST_ID),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            asked: VecDeque::new(),
            tx_pending: false,
            rx_blocked: false,
        })
    }

    /// Serves until QEMU or the owner ends it.
    pub(crate) fn run(&mut self) -> Ended {
        let frontend = Arc::clone(&self.frontend);
        let mut events = vec![EpollEvent::empty(); 64];
        loop {
            let seen = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(seen) => seen,
                Err(Errno::EINTR) => 0,
                Err(error) => return Ended::Failed(format!("wait for events: {error}")),
            };
            for event in &events[..seen] {
                if let Err(ended) = self.dispatch(event.data(), event.events()) {
                    return ended;
                }
            }
            self.expire();
            let mut frontend = frontend.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::take(&mut frontend.restarted) {
                self.forget_connections();
            }
            if self.tx_pending {
                self.serve_tx(&mut frontend);
            }
            self.serve_rx(&mut frontend);
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let for_guest = !self.ready.is_empty() || !self.replies.is_empty();
        if self.tx_pending || for_guest && !self.rx_blocked {
            return EpollTimeout::ZERO;
        }
        let Some((deadline, _)) = self.asked.front() else { return EpollTimeout::NONE };
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
    }

    fn dispatch(&mut self, token: u64, events: EpollFlags) -> Result<(), Ended> {
        match token {
            TOKEN_FRONTEND => self.serve_frontend()?,
            TOKEN_WAKE => self.serve_commands()?,
            TOKEN_RX => self.rx_blocked = false,
            TOKEN_TX => self.tx_pending = true,
            TOKEN_EXPORT => self.serve_export(),
            id if self.table.get(id).is_some() => self.serve_socket(id, events),
            id => self.serve_handshake(id),
        }
        Ok(())
    }

    fn serve_frontend(&mut self) -> Result<(), Ended> {
        match self.requests.handle_request() {
            Ok(()) | Err(VhostError::SocketRetry(_)) => {}
            Err(error) => {
                self.serve_commands()?; // an owner that stops the device also shuts its socket down
                return Err(match error {
                    VhostError::Disconnected
                    | VhostError::SocketBroken(_)
                    | VhostError::PartialMessage => Ended::HungUp,
                    error => Ended::Failed(format!("serve QEMU's request: {error}")),
                });
            }
        }
        // Rings may have come or changed: look at both.
        self.tx_pending = true;
        self.rx_blocked = false;
        Ok(())
    }

    fn serve_commands(&mut self) -> Result<(), Ended> {
        let _ = self.wake.read(); // it was readable, and what counts is in the channel
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop => return Err(Ended::Dropped),
                Command::Connect { port, answer } => self.connect(port, answer),
            }
        }
        Ok(())
    }

    /// Asks the guest for a connection on behalf of a caller.
    fn connect(&mut self, port: u32, answer: Answer) {
        match UnixStream::pair() {
            Ok((ours, theirs)) => self.request(port, ours, Waiter::Caller(answer, theirs)),
            Err(error) => answer.give(Err(ConnectError::Socket(error.kind()))),
        }
    }

    fn request(&mut self, port: u32, socket: UnixStream, waiter: Waiter) {
        let running = {
            let frontend = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
            frontend.is_running()
        };
        let refusal = if !running {
            Some(ConnectError::NotRunning)
        } else if self.table.len() >= self.max_connections {
            Some(ConnectError::TooMany)
        } else {
            None
        };
        if let Some(error) = refusal {
            return give_up(waiter, error);
        }
        let key = self.table.free_key(port);
        match self.insert(key, Connection::requested(self.buffer()), socket, waiter) {
            Ok(id) => self.asked.push_back((Instant::now() + self.connect_timeout, id)),
            Err((error, waiter)) => give_up(waiter, ConnectError::Socket(error.kind())),
        }
    }

    /// What may wait for the stream of the next connection, in bytes.
    fn buffer(&self) -> u32 {
        if self.table.len() < CROWD { self.buffer } else { self.buffer.min(CROWD_BUFFER) }
    }

    /// Takes a connection in.
    fn insert(
        &mut self,
        key: Key,
        connection: Connection,
        socket: UnixStream,
        waiter: Waiter,
    ) -> Result<u64, (std::io::Error, Waiter)> {
        let id = self.table.new_id();
        if let Err(error) = self.epoll.add(&socket, EpollEvent::new(socket_events(false), id)) {
            return Err((error.into(), waiter));
        }
        self.table.insert(id, Entry::new(key, connection, socket, waiter));
        self.settle(id);
        Ok(id)
    }

    fn expire(&mut self) {
        while let Some(&(deadline, id)) = self.asked.front() {
            let waits = self.table.get(id).is_some_and(|entry| !entry.connection.is_established());
            if waits && deadline > Instant::now() {
                break;
            }
            self.asked.pop_front();
            if waits {
                self.abandon(id, ConnectError::TimedOut, true);
            }
        }
    }

    fn serve_socket(&mut self, id: u64, events: EpollFlags) {
        let Some(entry) = self.table.get(id) else { return };
        let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | gone) {
            entry.readable = true;
            entry.ending |= events.intersects(EpollFlags::EPOLLRDHUP | gone);
        }
        if events.intersects(gone) {
            entry.host_is_gone();
        } else if events.contains(EpollFlags::EPOLLOUT) {
            entry.flush();
        }
        self.settle(id);
    }

    /// Does what follows from a connection's state, after any change to it.
    fn settle(&mut self, id: u64) {
        let Some(entry) = self.table.get(id) else { return };
        while let Some(step) = entry.connection.poll_host() {
            // A socket whose other end is gone cannot be shut down, nor needs to be.
            match step {
                HostStep::ShutdownWrite => drop(entry.socket.shutdown(Shutdown::Write)),
                HostStep::ShutdownRead => drop(entry.socket.shutdown(Shutdown::Read)),
                HostStep::Finish => return self.finish(id),
            }
        }
        let waits = !entry.backlog.is_empty();
        if waits != entry.watches_room {
            let mut event = EpollEvent::new(socket_events(waits), id);
            entry.watches_room = waits;
            if self.epoll.modify(&entry.socket, &mut event).is_err() {
                entry.host_is_gone();
            }
        }
        if entry.readable && entry.connection.window() == 0 {
            entry.connection.starved();
        }
        let speaks =
            entry.connection.owes_control() || entry.readable && entry.connection.window() > 0;
        if speaks && !entry.queued {
            entry.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Ends a connection that ran its course.
    fn finish(&mut self, id: u64) {
        let Some(entry) = self.table.remove(id) else { return };
        entry.discard_input();
        if !entry.connection.guest_reset() {
            self.reply(reset_of(self.guest_cid, entry.key));
        }
    }

    /// Ends a connection before its time.
    fn abandon(&mut self, id: u64, error: ConnectError, tell_guest: bool) {
        let Some(entry) = self.table.remove(id) else { return };
        if tell_guest {
            self.reply(reset_of(self.guest_cid, entry.key));
        }
        give_up(entry.waiter, error);
    }

    fn reply(&mut self, header: Header) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(header);
        }
    }

    fn forget_connections(&mut self) {
        for entry in self.table.drain() {
            give_up(entry.waiter, ConnectError::Ended);
        }
        self.ready.clear();
        self.replies.clear();
        self.asked.clear();
    }

    fn serve_export(&mut self) {
        let Some(export) = &mut self.export else { return };
        while let Some(client) = export.accept() {
            let id = self.table.new_id();
            let event = EpollEvent::new(socket_events(false), id);
            if self.epoll.add(&client, event).is_ok() {
                export.greet(id, client);
            }
        }
    }

    fn serve_handshake(&mut self, id: u64) {
        let Some(export) = &mut self.export else { return };
        match export.hear(id) {
            Handshake::Incomplete => {}
            Handshake::Port(port, client) => {
                let _ = self.epoll.delete(client.as_fd()); // it comes back as a connection's
                self.request(port, client, Waiter::Client);
            }
        }
    }
}

/// What is watched on a host socket.
fn socket_events(room: bool) -> EpollFlags {
    let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    if room { events | EpollFlags::EPOLLOUT } else { events }
}

fn give_up(waiter: Waiter, error: ConnectError) {
    if let Waiter::Caller(answer, _) = waiter {
        answer.give(Err(error));
    }
}

fn reset_of(guest_cid: u64, key: Key) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: key.host_port,
        dst_port: key.guest_port,
        len: 0,
        kind: STREAM,
        operation: Operation::RESET,
        flags: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    }
}
