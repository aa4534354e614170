//! The handle to a device.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{ConnectError, Ended, Error};
use crate::export::Export;
use crate::registry::{Accept, GuestStream, Registry};
use crate::worker::{Parts, Worker};

/// How a device is to be. Made by [`Options::new`]; change the fields that matter.
#[derive(Debug, Clone)]
pub struct Options {
    /// The guest's context id, 3 or above.
    pub guest_cid: u64,
    /// Offers the device to other processes too: connections to ports without a listener go to the Unix socket
    /// `<path>_<port>`, and at `<path>` itself a client writes `CONNECT <port>\n` and reads `OK <host port>\n`.
    pub export_path: Option<PathBuf>,
    /// The most connections at a time. Each takes one descriptor here and one with whoever has its stream.
    pub max_connections: usize,
    /// Bytes held for each connection while its stream is not read, beyond what the stream's socket holds.
    /// Connections that come while there are 64 already get no more than 256 KiB, Linux's own measure.
    pub buffer: u32,
    /// How long the guest may take to answer [`Device::connect`].
    pub connect_timeout: Duration,
}

impl Options {
    /// The usual choices, for a guest with this context id.
    pub fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            export_path: None,
            max_connections: 512,
            buffer: 4 * 1024 * 1024,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// A vsock device and the thread that serves it.
///
/// All methods may be called from any thread. Dropping the device closes every stream and joins the thread.
pub struct Device {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    frontend: Mutex<Option<OwnedFd>>,
    /// The device's own end, to wake a thread that waits for QEMU in the middle of a message.
    control: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// Makes a device and starts its thread.
    ///
    /// # Errors
    ///
    /// When the context id is reserved, the export path cannot be bound, or descriptors or threads have run out.
    pub fn new(options: Options) -> Result<Self, Error> {
        if !(3..u64::from(u32::MAX)).contains(&options.guest_cid) {
            return Err(Error::GuestCid(options.guest_cid));
        }
        let create = |what| move |source| Error::Create { what, source };
        let (ours, theirs) = UnixStream::pair().map_err(create("socket pair"))?;
        let control = ours.try_clone().map_err(create("socket pair"))?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|errno| create("event")(errno.into()))?;
        let wake = Arc::new(wake);
        let export = options
            .export_path
            .map(|path| Export::bind(&path).map_err(|source| Error::Export { path, source }));
        let (commands, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(Parts {
            guest_cid: options.guest_cid,
            buffer: options.buffer.max(4096),
            max_connections: options.max_connections,
            connect_timeout: options.connect_timeout,
            frontend: ours,
            wake: Arc::clone(&wake),
            commands: receiver,
            shared: Arc::clone(&shared),
            export: export.transpose()?,
        })
        .map_err(create("event queue"))?;
        let thread = thread::Builder::new()
            .name("vsock".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || serve(worker, &shared)
            })
            .map_err(create("thread"))?;
        Ok(Self {
            shared,
            commands,
            wake,
            frontend: Mutex::new(Some(theirs.into())),
            control,
            thread: Some(thread),
        })
    }

    /// QEMU's end of the vhost-user socket: let QEMU inherit it, as descriptor `n`, and name it with
    /// [`Device::chardev`]. `None` when it was taken before.
    ///
    /// The descriptor closes on exec until it is duplicated for the child. Close it here once QEMU has it, or
    /// the device does not notice QEMU's end.
    pub fn take_frontend(&self) -> Option<OwnedFd> {
        self.frontend.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The value of QEMU's `-chardev` for a device whose socket QEMU inherits as descriptor `fd`.
    pub fn chardev(id: &str, fd: i32) -> String {
        format!("socket,id={id},fd={fd}")
    }

    /// Takes connections of the guest's to `port` of CID 2.
    ///
    /// The handler runs on the device's thread and must not block; it passes the stream on and returns whether it
    /// could. Without it, or when it returns `false`, the guest is refused.
    ///
    /// # Errors
    ///
    /// [`Error::PortTaken`] when the port has a listener.
    pub fn listen(
        &self,
        port: u32,
        accept: Accept,
        handler: impl Fn(GuestStream) -> bool + Send + Sync + 'static,
    ) -> Result<(), Error> {
        match self.shared.registry.add(port, accept, Arc::new(handler)) {
            true => Ok(()),
            false => Err(Error::PortTaken(port)),
        }
    }

    /// Refuses `port` from now on; streams already handed out stay. Returns whether it had a listener.
    pub fn unlisten(&self, port: u32) -> bool {
        self.shared.registry.remove(port)
    }

    /// Connects to `port` in the guest, and waits for the answer.
    ///
    /// # Errors
    ///
    /// Those of [`ConnectError`].
    pub fn connect(&self, port: u32) -> Result<UnixStream, ConnectError> {
        let (sender, receiver) = channel();
        self.connect_with(port, move |answer| drop(sender.send(answer)));
        receiver.recv().unwrap_or(Err(ConnectError::Ended))
    }

    /// Connects to `port` in the guest. `then` gets the answer, on the device's thread, and must not block.
    pub fn connect_with(
        &self,
        port: u32,
        then: impl FnOnce(Result<UnixStream, ConnectError>) + Send + 'static,
    ) {
        let answer = Answer(Some(Box::new(then)));
        // A device that ended drops the command, and with it the answer, which then says so.
        let _ = self.commands.send(Command::Connect { port, answer });
        let _ = self.wake.write(1);
    }

    /// Calls `then` once the device has ended, on its thread, or here and now if it has already. By then every
    /// stream is closed.
    pub fn on_end(&self, then: impl FnOnce(&Ended) + Send + 'static) {
        let mut end = self.shared.end();
        match end.ended.clone() {
            None => end.callbacks.push(Box::new(then)),
            Some(ended) => {
                drop(end);
                then(&ended);
            }
        }
    }

    /// Waits until the device has ended, which is when QEMU closes its socket.
    pub fn wait(&self) -> Ended {
        let mut end = self.shared.end();
        loop {
            if let Some(ended) = &end.ended {
                return ended.clone();
            }
            end = self.shared.signal.wait(end).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How the device ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.shared.end().ended.clone()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        let _ = self.wake.write(1);
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join(); // it catches its panics
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("ended", &self.ended()).finish_non_exhaustive()
    }
}

fn serve(mut worker: Worker, shared: &Shared) {
    let ended = catch_unwind(AssertUnwindSafe(move || worker.run()))
        .unwrap_or_else(|_| Ended::Failed("the device's thread panicked".into()));
    tracing::debug!(?ended, "vsock device ended");
    let callbacks = {
        let mut end = shared.end();
        end.ended = Some(ended.clone());
        std::mem::take(&mut end.callbacks)
    };
    shared.signal.notify_all();
    for callback in callbacks {
        callback(&ended);
    }
}

/// What the owner asks of the device's thread.
pub(crate) enum Command {
    Connect { port: u32, answer: Answer },
    Stop,
}

type Then = Box<dyn FnOnce(Result<UnixStream, ConnectError>) + Send>;

/// Owed to a caller of connect; dropped without having been given it says that the device ended.
pub(crate) struct Answer(Option<Then>);

impl Answer {
    pub(crate) fn give(mut self, answer: Result<UnixStream, ConnectError>) {
        if let Some(then) = self.0.take() {
            then(answer);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(Err(ConnectError::Ended));
        }
    }
}

type EndCallback = Box<dyn FnOnce(&Ended) + Send>;

#[derive(Default)]
struct End {
    ended: Option<Ended>,
    callbacks: Vec<EndCallback>,
}

/// What the handle and the thread share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) registry: Registry,
    end: Mutex<End>,
    signal: Condvar,
}

impl Shared {
    fn end(&self) -> std::sync::MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
