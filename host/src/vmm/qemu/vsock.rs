//! The machine's vsock device, of either kind.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hyperv_socket::Stream;
use linkspan_vsock::{Device, Options};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::arguments::VsockArguments;
use super::error::QemuError;
use super::vhost::KernelVsock;
use crate::vmm::{Accept, PortListener};

/// Where a guest's connections arrive.
#[derive(Debug)]
pub(super) enum Vsock {
    /// Our own device, in this process.
    User(UserVsock),
    /// The kernel's.
    Kernel(KernelVsock),
}

impl Vsock {
    /// The kernel's device if this host has it and it is free, and nobody wants an export; else
    /// ours.
    pub(super) fn new(guest_cid: u64, export: Option<PathBuf>) -> Result<Self, QemuError> {
        if export.is_none()
            && let Some(kernel) = KernelVsock::open_if_free()
        {
            return Ok(Self::Kernel(kernel));
        }
        UserVsock::new(guest_cid, export).map(Self::User)
    }

    /// What QEMU has to be given, and the descriptor it has to inherit. Once.
    pub(super) fn frontend(&self) -> Result<(VsockArguments, OwnedFd), QemuError> {
        match self {
            Self::User(user) => {
                let taken = || std::io::Error::other("it is taken");
                let create = QemuError::create("vsock socket");
                let socket = user.device.take_frontend().ok_or_else(|| create(taken()))?;
                Ok((VsockArguments::User { socket: socket.as_raw_fd() }, socket))
            }
            Self::Kernel(kernel) => {
                let device = kernel.descriptor()?;
                let cid = u64::from(kernel.cid());
                Ok((VsockArguments::Kernel { device: device.as_raw_fd(), cid }, device))
            }
        }
    }

    pub(super) fn listen(&self, port: u32, accept: Accept) -> Result<PortListener, QemuError> {
        match self {
            Self::User(user) => user.listen(port, accept),
            Self::Kernel(kernel) => kernel.listen(port, accept),
        }
    }

    /// The machine has ended: all listeners learn that nothing will come any more. Returns when
    /// the device has let go of the machine's memory.
    pub(super) async fn close(&self) {
        match self {
            Self::User(user) => user.close().await,
            Self::Kernel(kernel) => kernel.close(),
        }
    }
}

/// A device of [`linkspan_vsock`] with its ports.
#[derive(Debug)]
pub(super) struct UserVsock {
    device: Arc<Device>,
    ports: Arc<Mutex<HashSet<u32>>>,
}

impl UserVsock {
    fn new(guest_cid: u64, export_path: Option<PathBuf>) -> Result<Self, QemuError> {
        let device = Device::new(Options { export_path, ..Options::new(guest_cid) })?;
        Ok(Self { device: Arc::new(device), ports: Arc::default() })
    }

    fn listen(&self, port: u32, accept: Accept) -> Result<PortListener, QemuError> {
        let (sender, incoming) = mpsc::unbounded_channel();
        let open = Arc::new(AtomicBool::new(true));
        let (runtime, still) = (Handle::current(), Arc::clone(&open));
        let (mode, once) = match accept {
            Accept::Once => (linkspan_vsock::Accept::Once, true),
            Accept::Many => (linkspan_vsock::Accept::Many, false),
        };
        let handler = move |guest: linkspan_vsock::GuestStream| {
            if once {
                still.store(false, Ordering::Release); // the device has dropped the port
            }
            let _guard = runtime.enter();
            let stream = Stream::from_fd(guest.stream.into());
            stream.is_ok_and(|stream| sender.send(stream).is_ok())
        };
        self.device
            .listen(port, mode, handler)
            .map_err(|source| QemuError::Listen { port, source })?;
        self.ports().insert(port);
        let (device, ports) = (Arc::downgrade(&self.device), Arc::clone(&self.ports));
        Ok(PortListener::new(port, incoming, Stop { port, open, device, ports }))
    }

    async fn close(&self) {
        let ports = std::mem::take(&mut *self.ports());
        for port in ports {
            self.device.unlisten(port);
        }
        let (sender, ended) = oneshot::channel::<()>();
        self.device.on_end(move |_| drop(sender));
        let _ = ended.await;
    }

    fn ports(&self) -> std::sync::MutexGuard<'_, HashSet<u32>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the listening when dropped, unless the port has been given up and may be another's.
struct Stop {
    port: u32,
    open: Arc<AtomicBool>,
    device: Weak<Device>,
    ports: Arc<Mutex<HashSet<u32>>>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        if self.open.load(Ordering::Acquire)
            && let Some(device) = self.device.upgrade()
        {
            self.ports.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.port);
            device.unlisten(self.port);
        }
    }
}
