//! The kernel's word that devices come and go.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;

/// A subscription to the kernel's device events. What happens after it was made is not missed.
pub(crate) struct DeviceEvents {
    socket: AsyncFd<OwnedFd>,
}

impl DeviceEvents {
    pub(crate) fn subscribe() -> io::Result<Self> {
        Ok(Self { socket: linkspan_guest_sys::register(subscription()?)? })
    }

    /// Something has changed; what, one finds by looking.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            // A disk is announced by several words at once: one look is enough for them all.
            if drain(ready.get_inner())? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// The same for a thread that may wait.
pub(crate) struct BlockingDeviceEvents(OwnedFd);

impl BlockingDeviceEvents {
    pub(crate) fn subscribe() -> io::Result<Self> {
        Ok(Self(subscription()?))
    }

    /// Waits until something has changed, or for so long.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<()> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => drain(&self.0).map(drop),
            Err(error) => Err(error.into()),
        }
    }
}

fn subscription() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(socket)
}

/// Takes all that was said, and whether that was anything.
fn drain(socket: &impl AsRawFd) -> io::Result<bool> {
    let mut heard = false;
    // Only that it came counts, so that it may be cut off.
    let mut byte = [0; 1];
    loop {
        match recv(socket.as_raw_fd(), &mut byte, MsgFlags::empty()) {
            // A full socket means that there was much to hear.
            Ok(_) | Err(Errno::ENOBUFS) => heard = true,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(heard),
            Err(error) => return Err(error.into()),
        }
    }
}
