//! How much a vsock socket holds.
#![allow(unsafe_code)]
// UNSAFE: one call, with a pointer to a local of the length that is given.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

// <linux/vm_sockets.h>
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;

/// Sets the size of the socket's buffer, and first the limit on it, in bytes.
pub(super) fn set_buffer_size(socket: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
        // SAFETY: `bytes` is alive during the call, which reads no more than its size.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::AF_VSOCK,
                option,
                (&raw const bytes).cast(),
                size_of::<u64>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
