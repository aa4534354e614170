//! Messages with file descriptors, over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors that one message may carry.
const MOST: usize = 8;

/// A message that came in.
#[derive(Debug)]
pub struct Received {
    /// Bytes in the buffer; 0 at the end of the stream.
    pub len: usize,
    /// The descriptors, in the sender's order, each close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Sends bytes and descriptors as one message.
///
/// # Errors
/// The kernel's; `InvalidInput` for more than eight descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many file descriptors"));
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let fd = socket.as_fd().as_raw_fd();
    Ok(sendmsg::<()>(fd, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives one message.
///
/// # Errors
/// The kernel's; `InvalidData` when the message did not fit the buffer.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(buffer)];
    let fd = socket.as_fd().as_raw_fd();
    let message = recvmsg::<()>(fd, &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let (len, flags) = (message.bytes, message.flags);
    let mut fds = Vec::new();
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = item {
            for fd in raw {
                // SAFETY: the kernel has just put it into this process's table for this message,
                // so that nothing else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message was cut off"));
    }
    Ok(Received { len, fds })
}
