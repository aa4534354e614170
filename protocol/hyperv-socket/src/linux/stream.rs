//! A connected socket of any family, as a tokio stream.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use libc::MSG_NOSIGNAL;
use socket2::{Domain, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

use super::register::register;

/// One connected stream, whatever its family.
///
/// It owns one descriptor, closed when dropped. Reading and writing never raise `SIGPIPE`.
/// [`AsyncWrite::poll_shutdown`](tokio::io::AsyncWrite::poll_shutdown) shuts down the writing
/// direction: the other side reads the end of the stream and can still write.
#[derive(Debug)]
pub struct Stream {
    socket: AsyncFd<Socket>,
}

impl Stream {
    /// Takes over a connected stream socket of any family, and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is a socket of another type, `ENOTSOCK`
    /// if it is no socket, and what registering it with tokio gives. The descriptor is closed then.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime with IO enabled.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        if socket.r#type()? != Type::STREAM {
            let problem = "take over a socket: it is not a stream socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        socket.set_nonblocking(true)?;
        Self::from_socket(socket)
    }

    /// Two streams connected to each other, over Unix sockets without a name.
    ///
    /// # Errors
    ///
    /// What `socketpair` and registering with tokio give.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime with IO enabled.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (near, far) = Socket::pair(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        Ok((Self::from_socket(near)?, Self::from_socket(far)?))
    }

    /// Sets how many bytes may be under way on a vsock stream in each direction, unread by the
    /// other side. Linux's default is 256 KiB. A stream of another family stays as it is.
    ///
    /// # Errors
    ///
    /// What `setsockopt` gives.
    pub fn set_buffer_size(&self, bytes: u64) -> io::Result<()> {
        match self.socket().domain()? {
            Domain::VSOCK => super::buffer::set_buffer_size(self.as_fd(), bytes),
            _ => Ok(()),
        }
    }

    /// Gives the descriptor out; it stays non-blocking.
    pub fn into_fd(self) -> OwnedFd {
        self.socket.into_inner().into()
    }

    /// Ends one direction, or both, for every holder of the socket. Takes effect at once.
    ///
    /// It hides the method of the same name in tokio's `AsyncWriteExt`, which is the same as
    /// `shutdown(Shutdown::Write)` except that it takes no offence at a connection already gone.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the connection is gone.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.get_ref().shutdown(how)
    }

    /// Waits until there is something to read, or the end. May be wrong: then [`Self::try_io`]
    /// gives [`WouldBlock`](io::ErrorKind::WouldBlock), and the next wait is a real one.
    ///
    /// # Errors
    ///
    /// If the tokio runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await.map(drop)
    }

    /// Waits until something can be written. May be wrong, as [`Self::readable`].
    ///
    /// # Errors
    ///
    /// If the tokio runtime is shutting down.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await.map(drop)
    }

    /// Runs `operation`, a system call on this stream's descriptor such as `splice`, if the stream
    /// is ready for it as far as is known.
    ///
    /// `operation` must give [`WouldBlock`](io::ErrorKind::WouldBlock) only if it was this stream
    /// that was not ready, for that is forgotten until the kernel says otherwise.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if the stream is not ready, and what `operation`
    /// gives.
    pub fn try_io<R>(
        &self,
        interest: Interest,
        operation: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        self.socket.try_io(interest, |_| operation())
    }

    /// The socket must be connected and non-blocking.
    pub(super) fn from_socket(socket: Socket) -> io::Result<Self> {
        Ok(Self { socket: register(socket)? })
    }

    pub(super) fn socket(&self) -> &Socket {
        self.socket.get_ref()
    }

    // In the three below, a transfer shorter than asked for does not mean that the next one would
    // block: hv_sock hands out at most one VMBus packet per call. Only WouldBlock clears readiness.

    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            if let Ok(result) = guard.try_io(|socket| socket.get_ref().read(unfilled)) {
                return Poll::Ready(result.map(|received| buffer.advance(received)));
            }
        }
    }

    pub(crate) fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.socket.poll_write_ready(cx))?;
            let send =
                |socket: &AsyncFd<Socket>| socket.get_ref().send_with_flags(bytes, MSG_NOSIGNAL);
            if let Ok(result) = guard.try_io(send) {
                return Poll::Ready(result);
            }
        }
    }

    pub(crate) fn poll_send_vectored(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.socket.poll_write_ready(cx))?;
            let send = |socket: &AsyncFd<Socket>| {
                socket.get_ref().send_vectored_with_flags(slices, MSG_NOSIGNAL)
            };
            if let Ok(result) = guard.try_io(send) {
                return Poll::Ready(result);
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
