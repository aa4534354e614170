//! The bridge's one loop: bytes to the server, a task per request, answers to bytes.
//!
//! Everything here runs on one thread, so nothing needs a lock and a request costs no more than
//! its work. What blocks goes to a thread of its own (`storage::blocking`) or to a worker process
//! (`runtime`).

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use hyperv_socket::Peer;
use linkspan_protocol::message::{Capabilities, ContainerId, Notification, NotificationType};
use linkspan_protocol::{Fault, HResult, Incoming, JsonString, MessageType, Server, ServerOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tracing::{debug, error, info, warn};

use crate::Error;
use crate::dispatch::{After, dispatch};
use crate::headroom::Headroom;
use crate::log::{self, Target};
use crate::oom::{OomKill, OomWatch};
use crate::runtime::Runtime;
use crate::storage::Devices;
use crate::uvm::Uvm;
use crate::{clock, kmsg, tasks};

/// What the agent has to know.
#[derive(Debug)]
pub struct Options {
    /// Where the host is.
    pub host: Peer,
    /// Its port for the bridge.
    pub port: u32,
    /// Serve the bridge on standard input and output in place of the port.
    pub use_stdio: bool,
    /// How disks are found: in this directory, or (`None`) through sysfs.
    pub disks: Option<PathBuf>,
    /// Prefix of all containers' cgroups.
    pub cgroup: PathBuf,
    /// The machine is the agent's own, and its memory to be shared out.
    pub memory: Option<MemoryShares>,
    /// Where the log goes.
    pub log: Target,
    /// Kernel messages up to this priority are logged.
    pub kmsg_level: Option<u8>,
    /// Follow the hypervisor's clock.
    pub time_sync: bool,
    /// Ends when pid 1 has loaded the modules that storage needs.
    pub ready: Option<OwnedFd>,
    /// How often pid 1 has had to start the agent again.
    pub restarts: u32,
}

/// How a machine's memory is shared out; see `headroom.rs`.
#[derive(Clone, Copy, Debug)]
pub struct MemoryShares {
    /// What containers cannot have, in bytes.
    pub reserve: u64,
    /// What the agent should not exceed, in bytes.
    pub warning: u64,
}

/// How a stopped agent leaves the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The host has asked for the utility VM to go off.
    PowerOff,
    /// The only connection that there can be has ended.
    Disconnected,
}

/// Serves hosts until one asks for the end.
///
/// # Errors
/// Only what makes it impossible to begin; a lost connection is made anew.
pub fn run(options: Options) -> io::Result<End> {
    linkspan_guest_sys::return_freed_memory();
    if options.restarts > 0 {
        crate::storage::clear();
        crate::runtime::clear();
    }
    let headroom = match options.memory {
        Some(shares) => Headroom::of_machine(&options.cgroup, shares.reserve, shares.warning),
        None => {
            crate::cgroup::make(&options.cgroup);
            Headroom::unlimited()
        }
    };
    // Before anything is open, and with one thread.
    crate::name_process(c"linkspan-agent");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let runtime = Runtime::new(crate::runtime::start_zygote()?);
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_stack_size(256 << 10)
        .thread_keep_alive(Duration::from_secs(2))
        .build()?;
    let ended = LocalSet::new().block_on(&executor, serve(options, runtime, headroom));
    // A thread that reads standard input, or a disk, is not waited for.
    executor.shutdown_background();
    ended
}

type Connection = (Pin<Box<dyn AsyncRead>>, Pin<Box<dyn AsyncWrite>>);

/// What all of a connection's tasks share.
struct Bridge {
    server: RefCell<Server>,
    /// There is something to write.
    outgoing: Notify,
    /// Something has been written.
    written: Notify,
    /// Requests that are being worked on.
    working: Cell<usize>,
    uvm: Uvm,
    /// Set when the utility VM is to go off.
    end: watch::Sender<bool>,
}

/// Most bytes that wait for a host that reads slowly. Beyond them no further request is begun.
const BACKLOG: usize = 1 << 20;

/// Most requests that are worked on at once. A host waits for each of its processes with one.
const WORKING: usize = 2048;

impl Bridge {
    /// Waits until the host has read enough to be heard again.
    async fn room_to_read(&self) {
        self.room(Server::backlog).await;
    }

    /// Waits until the host has read enough to be told more. What is held for its return counts.
    async fn room_to_work(&self) {
        self.room(|server| server.backlog() + server.held()).await;
    }

    async fn room(&self, bytes: impl Fn(&Server) -> usize) {
        loop {
            let written = self.written.notified();
            if bytes(&self.server.borrow()) < BACKLOG {
                return;
            }
            tasks::wait("the host to read what it was told", written).await;
        }
    }
}

async fn serve(options: Options, runtime: Runtime, headroom: Headroom) -> io::Result<End> {
    let (sender, notifications) = mpsc::unbounded_channel();
    let devices = options.disks.map_or(Devices::Sysfs, Devices::Directory);
    let ready = readiness(options.ready)?;
    let (kills, killed) = mpsc::unbounded_channel();
    let uvm = Uvm::new(
        options.host.clone(),
        runtime,
        devices,
        options.cgroup,
        sender,
        ready,
        headroom,
        OomWatch::new(kills),
    );
    let mut capabilities = Capabilities::linux();
    capabilities.guest_defined_capabilities.linkspan_restarts = options.restarts;
    capabilities.guest_defined_capabilities.linkspan_stdio = true;
    let server = Server::new(ServerOptions { capabilities, ..ServerOptions::default() });
    let bridge = Rc::new(Bridge {
        server: RefCell::new(server),
        outgoing: Notify::new(),
        written: Notify::new(),
        working: Cell::new(0),
        uvm,
        end: watch::Sender::new(false),
    });
    tasks::spawn("reaper", bridge.uvm.reaper.clone().run());
    tasks::spawn("notifications", pass_on(Rc::clone(&bridge), notifications));

    tasks::spawn("processes killed for want of memory", pass_on_kills(Rc::clone(&bridge), killed));
    tasks::spawn("log", log::deliver(options.host.clone(), options.log));
    let mut end = bridge.end.subscribe();
    let mut housekeeping = Some((options.kmsg_level, options.time_sync));
    loop {
        let connection = tokio::select! {
            connection = connect(&options.host, options.port, options.use_stdio) => connection,
            _ = end.wait_for(|&end| end) => return Ok(End::PowerOff),
        };
        info!("connected to the host");
        // The host's first answer comes first.
        if let Some((kmsg_level, time_sync)) = housekeeping.take() {
            tasks::spawn("kernel messages", keep_house(Rc::clone(&bridge), kmsg_level, time_sync));
        }
        tokio::select! {
            ended = exchange(&bridge, connection) => warn!(?ended, "lost the host"),
            _ = end.wait_for(|&end| end) => return Ok(End::PowerOff),
        }
        if options.use_stdio {
            return Ok(End::Disconnected);
        }
    }
}

/// Cares for a machine's clock and for what its kernel says, once the first host is served.
async fn keep_house(bridge: Rc<Bridge>, kmsg_level: Option<u8>, time_sync: bool) {
    bridge.uvm.ready().await;
    if time_sync {
        tasks::spawn("clock", clock::follow());
    }
    if bridge.uvm.headroom.is_machine() {
        tasks::spawn("memory that is plugged in", follow_memory(Rc::clone(&bridge)));
    }
    // They are logged at this level, and reading them for nobody costs as well.
    if let Some(level) = kmsg_level.filter(|_| tracing::enabled!(tracing::Level::INFO))
        && let Err(error) = kmsg::forward(level).await
    {
        warn!(%error, "the kernel's messages are not logged");
    }
}

/// Gives containers memory that is plugged in later.
async fn follow_memory(bridge: Rc<Bridge>) {
    let Ok(mut events) = crate::storage::DeviceEvents::subscribe() else { return };
    while events.next().await.is_ok() {
        if let Err(error) = bridge.uvm.headroom.apply() {
            warn!(%error, "containers' memory is not limited");
        }
    }
}

/// Turns the end of pid 1's pipe into a flag.
fn readiness(pipe: Option<OwnedFd>) -> io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(pipe.is_none());
    if let Some(pipe) = pipe {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let pipe = linkspan_guest_sys::register(pipe)?;
        spawn_local(async move {
            let read = pipe
                .async_io(tokio::io::Interest::READABLE, |fd| {
                    Ok(rustix::io::read(fd, &mut [0; 1])?)
                })
                .await;
            debug!(?read, "all modules are loaded");
            sender.send_replace(true);
        });
    }
    Ok(receiver)
}

async fn pass_on(bridge: Rc<Bridge>, mut notifications: mpsc::UnboundedReceiver<Notification>) {
    while let Some(notification) = notifications.recv().await {
        bridge.server.borrow_mut().notify(&notification);
        bridge.outgoing.notify_one();
    }
}

/// Only Linkspan's own host can hear of it: others would take it for a container's end.
async fn pass_on_kills(bridge: Rc<Bridge>, mut kills: mpsc::UnboundedReceiver<OomKill>) {
    while let Some(OomKill { container, count }) = kills.recv().await {
        let notification = Notification {
            container_id: ContainerId(container),
            kind: NotificationType::LinkspanOomKill,
            result_info: Some(JsonString(serde_json::json!({"OomKills": count}))),
            ..Notification::default()
        };
        bridge.server.borrow_mut().notify_linkspan(&notification);
        bridge.outgoing.notify_one();
    }
}

/// Dials until it succeeds: the host may be away, and nobody says when it is back.
async fn connect(host: &Peer, port: u32, use_stdio: bool) -> Connection {
    if use_stdio {
        return stdio();
    }
    let mut pause = Duration::from_millis(5);
    loop {
        match hyperv_socket::connect(host, port).await {
            Ok(stream) => {
                let (read, write) = stream.into_split();
                return (Box::pin(read), Box::pin(write));
            }
            Err(error) => debug!(%error, port, "the host does not answer"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Standard input and output. Pipes are watched like all else; for others there are threads.
fn stdio() -> Connection {
    use tokio::net::unix::pipe;
    let duplicate = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(io::Error::from);
    let read = duplicate(rustix::stdio::stdin()).and_then(pipe::Receiver::from_owned_fd);
    let write = duplicate(rustix::stdio::stdout()).and_then(pipe::Sender::from_owned_fd);
    match (read, write) {
        (Ok(read), Ok(write)) => (Box::pin(read), Box::pin(write)),
        _ => (Box::pin(tokio::io::stdin()), Box::pin(tokio::io::stdout())),
    }
}

async fn exchange(bridge: &Rc<Bridge>, (read, write): Connection) -> io::Result<()> {
    // A frame is in flight from when it leaves the server until the last byte is written.
    let in_flight = RefCell::new(None);
    let ended = tokio::select! {
        ended = receive(bridge, read) => ended,
        ended = transmit(bridge, write, &in_flight) => ended,
    };
    bridge.server.borrow_mut().disconnect(in_flight.into_inner());
    bridge.uvm.connected.send_replace(false);
    ended
}

async fn receive(bridge: &Rc<Bridge>, mut read: Pin<Box<dyn AsyncRead>>) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        bridge.room_to_read().await;
        let len = read.read(&mut buffer).await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut server = bridge.server.borrow_mut();
        server
            .handle_input(&buffer[..len])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        while let Some(incoming) = server.poll_request() {
            let name =
                RequestName(incoming.ticket.message_type(), incoming.envelope.container_id.clone());
            tasks::spawn(name, answer(Rc::clone(bridge), incoming));
        }
        if server.is_negotiated() {
            bridge.uvm.note_negotiation();
            bridge.uvm.connected.send_if_modified(|connected| !std::mem::replace(connected, true));
        }
        drop(server);
        bridge.outgoing.notify_one();
    }
}

async fn transmit(
    bridge: &Bridge,
    mut write: Pin<Box<dyn AsyncWrite>>,
    in_flight: &RefCell<Option<Vec<u8>>>,
) -> io::Result<()> {
    loop {
        let next = bridge.server.borrow_mut().poll_transmit();
        let Some(frame) = next else {
            bridge.outgoing.notified().await;
            continue;
        };
        in_flight.replace(Some(frame.clone()));
        write.write_all(&frame).await?;
        write.flush().await?;
        in_flight.replace(None);
        bridge.written.notify_waiters();
    }
}

/// Counts as a request until it is dropped.
struct Working<'a>(&'a Bridge);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.set(self.0.working.get() - 1);
    }
}

/// How a request is called in a description of what is going on.
struct RequestName(MessageType, ContainerId);

impl fmt::Display for RequestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {} of {:?}", self.0, self.1.as_str())
    }
}

/// Turns a panic of a future into its failure.
struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, ()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // What the future shares with others is changed in whole steps only.
        let poll = AssertUnwindSafe(|| self.0.as_mut().poll(context));
        match std::panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(())),
        }
    }
}

/// Works on one request, whatever becomes of the connection that it came on. Even a defect of
/// ours is an answer, not the end of the agent.
async fn answer(bridge: Rc<Bridge>, incoming: Incoming) {
    let Incoming { ticket, envelope, request } = incoming;
    let message_type = ticket.message_type();
    let target = envelope.container_id.clone();
    debug!(%message_type, %target, "request");
    let work = async {
        if bridge.working.get() >= WORKING {
            return Err(Error::Busy(WORKING));
        }
        bridge.working.set(bridge.working.get() + 1);
        let _working = Working(&bridge);
        bridge.room_to_work().await;
        dispatch(&bridge.uvm, envelope, request).await
    };
    let outcome = match CatchPanic(Box::pin(work)).await {
        Ok(outcome) => outcome.map_err(Fault::from),
        Err(()) => {
            // The hook has logged what it was.
            error!(%message_type, "a request made the agent panic");
            let text = format!("defect in the guest agent: {message_type} made it panic");
            Err(Fault::new(HResult::FAIL, text))
        }
    };
    let (outcome, after) = match outcome {
        Ok((answer, after)) => (Ok(answer), after),
        Err(fault) => {
            warn!(%message_type, %target, %fault, "request failed");
            (Err(fault), After::Nothing)
        }
    };
    if matches!(after, After::PowerOff) {
        // Hosts expect no answer to this one.
        bridge.end.send_replace(true);
        return;
    }
    bridge.server.borrow_mut().respond(ticket, outcome);
    bridge.outgoing.notify_one();
    after.settle(&bridge.uvm);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_failure_of_its_request_alone() {
        let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
        executor.block_on(async {
            let defect = async {
                tokio::task::yield_now().await;
                panic!("a defect");
            };
            assert_eq!(CatchPanic(Box::pin(defect)).await, Err::<(), ()>(()));
            assert_eq!(CatchPanic(Box::pin(async { 7 })).await, Ok(7));
        });
    }
}
