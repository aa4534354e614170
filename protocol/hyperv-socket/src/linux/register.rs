//! A socket made known to tokio's reactor.
#![allow(unsafe_code)]
// UNSAFE: one call, whose contract is that the descriptor stays open while registered.

use std::io;

use socket2::Socket;
use tokio::io::unix::AsyncFd;

/// Registers `socket`, which must be non-blocking, for reading and writing.
///
/// On failure it is closed.
pub(super) fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: `Socket` owns its descriptor, always gives the same one, and closes it only when
    // dropped, which `AsyncFd` does after it has deregistered it.
    let registered = unsafe { AsyncFd::register(socket) };
    Ok(registered?)
}
