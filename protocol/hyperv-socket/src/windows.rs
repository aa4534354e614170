//! `AF_HYPERV` sockets on Windows: the types, so that programs compile; the calls come later.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::path::Path;
use std::task::{Context, Poll};

use tokio::io::{Interest, ReadBuf};

use crate::context::while_doing;
use crate::{Local, Peer, PeerAddr};

/// One connected stream, whatever its family.
///
/// None can be made on Windows yet: [`connect`] and [`Listener::bind`] fail.
#[derive(Debug)]
pub struct Stream {
    never: Infallible,
}

impl Stream {
    /// Two streams connected to each other.
    ///
    /// # Errors
    ///
    /// Always [`Unsupported`](io::ErrorKind::Unsupported) for now.
    pub fn pair() -> io::Result<(Self, Self)> {
        Err(unsupported("make a pair of streams".to_owned()))
    }

    /// Ends one direction, or both, for every holder of the socket.
    ///
    /// # Errors
    ///
    /// If the connection is gone.
    pub fn shutdown(&self, _how: Shutdown) -> io::Result<()> {
        match self.never {}
    }

    /// Waits until there is something to read, or the end.
    ///
    /// # Errors
    ///
    /// If the tokio runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        match self.never {}
    }

    /// Waits until something can be written.
    ///
    /// # Errors
    ///
    /// If the tokio runtime is shutting down.
    pub async fn writable(&self) -> io::Result<()> {
        match self.never {}
    }

    /// Runs `operation` on this stream's socket if the stream is ready for it.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if it is not, and what `operation` gives.
    pub fn try_io<R>(
        &self,
        _interest: Interest,
        _operation: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        match self.never {}
    }

    pub(crate) fn poll_receive(
        &self,
        _cx: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.never {}
    }

    pub(crate) fn poll_send(&self, _cx: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match self.never {}
    }

    pub(crate) fn poll_send_vectored(
        &self,
        _cx: &mut Context<'_>,
        _slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.never {}
    }
}

/// A socket that accepts [`Stream`]s.
#[derive(Debug)]
pub struct Listener {
    never: Infallible,
}

impl Listener {
    /// Listens on `port` of `local`.
    ///
    /// # Errors
    ///
    /// Always [`Unsupported`](io::ErrorKind::Unsupported) for now.
    pub fn bind(local: &Local, port: u32) -> io::Result<Self> {
        Err(unsupported(format!("listen on {local} port {port}")))
    }

    /// Listens on the plain Unix socket `path`.
    ///
    /// # Errors
    ///
    /// Always [`Unsupported`](io::ErrorKind::Unsupported) for now.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        Err(unsupported(format!("listen on {}", path.display())))
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// What `accept` gives.
    pub async fn accept(&self) -> io::Result<(Stream, PeerAddr)> {
        match self.never {}
    }
}

/// Dials `port` of `peer`.
///
/// # Errors
///
/// Always [`Unsupported`](io::ErrorKind::Unsupported) for now.
pub async fn connect(peer: &Peer, port: u32) -> io::Result<Stream> {
    Err(unsupported(format!("connect to {peer} port {port}")))
}

pub(crate) async fn connect_unix(path: &Path) -> io::Result<Stream> {
    Err(unsupported(format!("connect to {}", path.display())))
}

fn unsupported(action: String) -> io::Error {
    let problem = "this version of hyperv-socket has no sockets on Windows yet";
    while_doing(action, io::Error::new(io::ErrorKind::Unsupported, problem))
}
