//! Descriptors under tokio.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Watches a descriptor that does not block.
///
/// # Errors
/// When it cannot be watched, as a regular file.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
