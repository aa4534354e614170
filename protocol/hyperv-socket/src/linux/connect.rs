//! Dialling, without ever blocking the thread.

use std::io;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use super::Stream;
use crate::address::port_path;
use crate::context::while_doing;
use crate::{Peer, hybrid};

/// Dials `port` of `peer`.
///
/// # Errors
///
/// Over `AF_VSOCK` the kernel's error as it is: `ECONNRESET` or `ECONNREFUSED` if nobody listens,
/// `ETIMEDOUT`, `ENODEV` without a vsock device. Over Unix sockets an error of the same kind that
/// names path and port, with the kernel's as its source;
/// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if the listener's queue is full; and for
/// [`Peer::HybridHost`] those of [`hybrid::dial`]. [`Unsupported`](io::ErrorKind::Unsupported) for
/// [`Peer::HyperV`], which only Windows has.
///
/// # Panics
///
/// If called outside a tokio runtime with IO enabled.
pub async fn connect(peer: &Peer, port: u32) -> io::Result<Stream> {
    match peer {
        Peer::Vsock { cid } => connect_socket(Domain::VSOCK, &SockAddr::vsock(*cid, port)).await,
        Peer::HyperV { .. } => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("connect to {peer} port {port}: only Windows has Hyper-V sockets"),
        )),
        Peer::HybridGuest { path } => {
            let path = port_path(path, port);
            connect_path(&path).await.map_err(|error| {
                while_doing(format!("connect to {} for port {port}", path.display()), error)
            })
        }
        Peer::HybridHost { path } => hybrid_host(path, port).await.map_err(|error| {
            while_doing(format!("connect through {} to port {port}", path.display()), error)
        }),
    }
}

async fn hybrid_host(path: &Path, port: u32) -> io::Result<Stream> {
    let mut stream = connect_path(path).await?;
    hybrid::dial(&mut stream, port).await?;
    Ok(stream)
}

/// Dials the Unix socket at `path`.
pub(crate) async fn connect_unix(path: &Path) -> io::Result<Stream> {
    connect_path(path)
        .await
        .map_err(|error| while_doing(format!("connect to {}", path.display()), error))
}

async fn connect_path(path: &Path) -> io::Result<Stream> {
    let address = SockAddr::unix(path)?;
    connect_socket(Domain::UNIX, &address).await.map_err(|error| match error.kind() {
        // There is nothing to wait on for a Unix socket, and WouldBlock would suggest there is.
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::ResourceBusy, "the listener's queue is full")
        }
        _ => error,
    })
}

async fn connect_socket(domain: Domain, address: &SockAddr) -> io::Result<Stream> {
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    loop {
        match socket.connect(address) {
            Ok(()) => return Stream::from_socket(socket),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EISCONN) => return Stream::from_socket(socket),
                Some(libc::EINPROGRESS | libc::EALREADY) => break,
                _ => return Err(error),
            },
        }
    }
    // Registered only now: an unconnected socket polls as hung up, which would be remembered.
    let stream = Stream::from_socket(socket)?;
    stream.writable().await?;
    match stream.socket().take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}
