//! The kernel's word that devices come and go.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// A subscription to the kernel's device events. What happens after it was made is not missed.
pub(crate) struct DeviceEvents {
    socket: AsyncFd<OwnedFd>,
}

impl DeviceEvents {
    pub(crate) fn subscribe() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self { socket: linkspan_guest_sys::register(socket)? })
    }

    /// Something has changed; what, one finds by looking.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        // Only that it came counts, so that it may be cut off.
        let mut byte = [0; 1];
        loop {
            let mut ready = self.socket.readable().await?;
            let mut heard = false;
            // A disk is announced by several words at once: one look is enough for them all.
            while let Ok(received) =
                ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), &mut byte, MsgFlags::empty())?))
            {
                match received {
                    Ok(_) => heard = true,
                    // A full socket means that there was much to hear.
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => heard = true,
                    Err(error) => return Err(error),
                }
            }
            if heard {
                return Ok(());
            }
        }
    }
}
