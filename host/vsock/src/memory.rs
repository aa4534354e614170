//! Moving bytes between guest memory and sockets.
//!
//! Unsafe for this and nothing else: `sendmsg` and `recvmsg` on guest memory. It cannot be lent out as `&[u8]`,
//! for the guest may change it at any time; the kernel does not mind.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

/// A chain of more descriptors than this is refused: our own guests need 2, and newer kernels some 20.
const MAX_DESCRIPTORS: usize = 256;

/// The most slices one system call takes (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// The buffers of one descriptor chain, in order, as pieces of mapped guest memory.
pub(crate) struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Buffers<'m> {
    /// The device-readable (or device-writable) part of a chain; `None` when a descriptor points outside of
    /// guest memory or there are too many of them.
    pub(crate) fn of_chain(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
        writable: bool,
    ) -> Option<Self> {
        let access = if writable { Permissions::Write } else { Permissions::Read };
        let mut buffers = Self { slices: Vec::with_capacity(2), len: 0 };
        for (seen, descriptor) in chain.enumerate() {
            if seen == MAX_DESCRIPTORS {
                return None;
            }
            if descriptor.is_write_only() != writable || descriptor.len() == 0 {
                continue;
            }
            let len = descriptor.len() as usize;
            for slice in memory.get_slices(descriptor.addr(), len, access).ok()? {
                buffers.push(slice.ok()?);
            }
        }
        (buffers.slices.len() <= MAX_SLICES).then_some(buffers)
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        self.len += slice.len();
        self.slices.push(slice);
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies `bytes` to the front. Returns whether they fitted.
    pub(crate) fn write(&self, mut bytes: &[u8]) -> bool {
        for slice in &self.slices {
            let now = slice.len().min(bytes.len());
            slice.copy_from(&bytes[..now]);
            bytes = &bytes[now..];
            if bytes.is_empty() {
                break;
            }
        }
        bytes.is_empty()
    }

    /// Copies from the front until `bytes` is full. Returns whether there was enough.
    pub(crate) fn read(&self, mut bytes: &mut [u8]) -> bool {
        for slice in &self.slices {
            let now = slice.len().min(bytes.len());
            slice.copy_to(&mut bytes[..now]);
            bytes = &mut bytes[now..];
            if bytes.is_empty() {
                break;
            }
        }
        bytes.is_empty()
    }

    /// The same buffers without their first `skip` bytes, and of the rest no more than `limit` bytes.
    pub(crate) fn window(mut self, mut skip: usize, limit: usize) -> Self {
        let mut window = Self { slices: Vec::with_capacity(self.slices.len()), len: 0 };
        for slice in self.slices.drain(..) {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let len = (slice.len() - skipped).min(limit - window.len);
            if len > 0
                && let Ok(part) = slice.subslice(skipped, len)
            {
                window.push(part);
            }
        }
        window
    }

    /// Appends the part of `other` that [`Buffers::window`] would give.
    pub(crate) fn extend_from(&mut self, other: &Buffers<'m>, mut skip: usize, limit: usize) {
        let end = self.len + limit;
        for slice in &other.slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let len = (slice.len() - skipped).min(end - self.len);
            if len > 0
                && let Ok(part) = slice.subslice(skipped, len)
            {
                self.push(part);
            }
        }
    }

    /// No buffers yet.
    pub(crate) fn empty() -> Self {
        Self { slices: Vec::new(), len: 0 }
    }

    fn message(&self, vectors: &mut Vec<libc::iovec>) -> libc::msghdr {
        vectors.extend(self.slices.iter().take(MAX_SLICES).map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
        // SAFETY: all-zero bytes are a valid `msghdr`: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = vectors.len() as _;
        message
    }

    /// Sends the bytes to a socket, without blocking. Returns how many it took.
    pub(crate) fn send_to(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut vectors = Vec::with_capacity(self.slices.len());
        let message = self.message(&mut vectors);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the vectors point into mapped guest memory, which `self` borrows; the kernel only reads it.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }

    /// Receives bytes from a socket, without blocking. Returns how many; 0 is the end of file.
    pub(crate) fn receive_from(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut vectors = Vec::with_capacity(self.slices.len());
        let mut message = self.message(&mut vectors);
        // SAFETY: the vectors point into mapped guest memory, which `self` borrows and nothing in this process
        // holds a Rust reference to; no ancillary data is asked for.
        let received =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        if received < 0 { Err(io::Error::last_os_error()) } else { Ok(received as usize) }
    }
}
