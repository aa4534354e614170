//! The host kernel's vsock device, `/dev/vhost-vsock`.
//!
//! **Not yet tried on a host that has one.** Its ports belong to the host and not to the machine:
//! one listener takes all machines' connections, told apart by their context ids. So within a
//! process the listeners are shared, and a second process that finds the bridge's port taken uses
//! the built-in device in place of this one. A guest whose port nobody wants while another machine
//! of this process listens there sees its connection close in place of a refusal.
#![allow(unsafe_code)]
// UNSAFE: one ioctl, which claims a context id.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use hyperv_socket::{CID_ANY, Listener, Local, Stream};
use linkspan_protocol::port;
use rustix::ioctl::{Setter, ioctl, opcode};
use tokio::sync::mpsc;

use super::error::QemuError;
use crate::vmm::{Accept, PortListener};

const DEVICE: &str = "/dev/vhost-vsock";

/// Context ids to look for a free one among, away from the low ones that people choose by hand.
const CIDS: std::ops::Range<u32> = 0x4c53_0000..0x4c53_1000;

/// Whether the device opens.
pub(super) fn is_there() -> bool {
    File::options().read(true).write(true).open(DEVICE).is_ok()
}

/// A context id of this host, taken as long as this lives.
#[derive(Debug)]
pub(super) struct KernelVsock {
    device: File,
    cid: u32,
    /// Keeps the bridge's port ours, and with it all others from other processes of our kind.
    _bridge: Arc<SharedPort>,
}

impl KernelVsock {
    /// The device, if it can be opened and no other process has the bridge's port.
    pub(super) fn open_if_free() -> Option<Self> {
        let device = File::options().read(true).write(true).open(DEVICE).ok()?;
        let opened = SharedPort::bind(port::BRIDGE).and_then(|bridge| {
            let cid = claim(&device)?;
            Ok(Self { device, cid, _bridge: bridge })
        });
        opened.inspect_err(|error| tracing::info!(%error, "{DEVICE} is not used")).ok()
    }

    pub(super) fn cid(&self) -> u32 {
        self.cid
    }

    /// A copy of the device's descriptor for QEMU.
    pub(super) fn descriptor(&self) -> Result<OwnedFd, QemuError> {
        let copy = self.device.try_clone().map_err(QemuError::create("vsock descriptor"))?;
        Ok(copy.into())
    }

    pub(super) fn listen(&self, port: u32, accept: Accept) -> Result<PortListener, QemuError> {
        let failed = |source| QemuError::ListenKernel { port, source };
        let shared = SharedPort::bind(port).map_err(failed)?;
        let (sender, incoming) = mpsc::unbounded_channel();
        let mut machines = shared.machines();
        if machines.get(&self.cid).is_some_and(|taker| !taker.sender.is_closed()) {
            return Err(failed(io::ErrorKind::AddrInUse.into()));
        }
        machines.insert(self.cid, Taker { accept, sender });
        drop(machines);
        let stop = Stop { cid: self.cid, shared };
        Ok(PortListener::new(port, incoming, stop))
    }

    /// Nothing will come any more.
    pub(super) fn close(&self) {
        let ports = ports();
        for shared in ports.values().filter_map(Weak::upgrade) {
            shared.machines().remove(&self.cid);
        }
    }
}

/// Finds a context id that is free and takes it.
fn claim(device: &File) -> io::Result<u32> {
    /// `VHOST_SET_…` numbers are of this type.
    const GROUP: u8 = 0xaf;
    const SET_GUEST_CID: rustix::ioctl::Opcode = opcode::write::<u64>(GROUP, 0x60);
    let start = std::process::id() % CIDS.len() as u32;
    for step in 0..CIDS.len() as u32 {
        let cid = CIDS.start + (start + step) % CIDS.len() as u32;
        // SAFETY: VHOST_VSOCK_SET_GUEST_CID reads one u64, which the setter holds.
        let result = unsafe { ioctl(device, Setter::<SET_GUEST_CID, u64>::new(u64::from(cid))) };
        match result {
            Ok(()) => return Ok(cid),
            Err(rustix::io::Errno::ADDRINUSE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

#[derive(Debug)]
struct Taker {
    accept: Accept,
    sender: mpsc::UnboundedSender<Stream>,
}

/// One port of the host's, and who wants its connections, by context id.
#[derive(Debug)]
struct SharedPort {
    machines: Mutex<HashMap<u32, Taker>>,
    task: Mutex<Option<tokio::task::AbortHandle>>,
}

static PORTS: LazyLock<Mutex<HashMap<u32, Weak<SharedPort>>>> = LazyLock::new(Mutex::default);

fn ports() -> MutexGuard<'static, HashMap<u32, Weak<SharedPort>>> {
    PORTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedPort {
    fn bind(port: u32) -> io::Result<Arc<Self>> {
        let mut ports = ports();
        if let Some(shared) = ports.get(&port).and_then(Weak::upgrade) {
            return Ok(shared);
        }
        let listener = Listener::bind(&Local::Vsock { cid: CID_ANY }, port)?;
        let shared = Arc::new(Self { machines: Mutex::default(), task: Mutex::default() });
        let task = tokio::spawn(distribute(listener, Arc::downgrade(&shared)));
        *shared.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        ports.retain(|_, shared| shared.strong_count() > 0);
        ports.insert(port, Arc::downgrade(&shared));
        Ok(shared)
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<u32, Taker>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SharedPort {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}

async fn distribute(listener: Listener, shared: Weak<SharedPort>) {
    loop {
        let accepted = listener.accept().await;
        let Some(shared) = shared.upgrade() else { return };
        match accepted {
            Ok((stream, peer)) => {
                let Some(cid) = peer.cid else { continue };
                let mut machines = shared.machines();
                // Whoever is not expected is closed by dropping its stream.
                let Some(taker) = machines.get(&cid) else { continue };
                let once = taker.accept == Accept::Once;
                if taker.sender.send(stream).is_err() || once {
                    machines.remove(&cid);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a vsock connection");
                drop(shared);
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

struct Stop {
    cid: u32,
    shared: Arc<SharedPort>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        let mut machines = self.shared.machines();
        // It may be the next listener's by now.
        if machines.get(&self.cid).is_some_and(|taker| taker.sender.is_closed()) {
            machines.remove(&self.cid);
        }
    }
}
