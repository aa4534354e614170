//! Listening sockets, and the files that Unix ones leave behind.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf, absolute};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Stream;
use super::register::register;
use crate::address::port_path;
use crate::context::while_doing;
use crate::{Local, PeerAddr};

/// Connections that may wait to be accepted. A full queue is an error to who dials a Unix socket.
const BACKLOG: i32 = 128;

/// A socket that accepts [`Stream`]s.
///
/// Dropping it stops listening; a Unix listener then removes its socket file, unless another file
/// has taken the path since.
#[derive(Debug)]
pub struct Listener {
    // Dropped first: until the file is gone, nobody shall find it refusing.
    _file: Option<SocketFile>,
    socket: AsyncFd<Socket>,
}

impl Listener {
    /// Listens on `port` of `local`.
    ///
    /// A Unix socket file that nobody listens on any more is replaced. To find out, a connection is
    /// made to it, which a live listener sees as one that closes at once.
    ///
    /// # Errors
    ///
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if somebody listens there, or if something other
    /// than a socket has the path; [`Unsupported`](io::ErrorKind::Unsupported) for
    /// [`Local::HyperV`], which only Windows has; and what the kernel gives. Errors name the
    /// address and the port; the kernel's is their source.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime with IO enabled.
    pub fn bind(local: &Local, port: u32) -> io::Result<Self> {
        let listener = match local {
            Local::Vsock { cid } => Self::bind_vsock(*cid, port),
            Local::HyperV { .. } => Err(io::ErrorKind::Unsupported.into()),
            Local::HybridHost { path } => Self::bind_path(&port_path(path, port)),
        };
        listener.map_err(|error| while_doing(format!("listen on {local} port {port}"), error))
    }

    /// Listens on the plain Unix socket `path`, as a VMM does for the connections of its host (see
    /// [`accept_hybrid`](crate::accept_hybrid)).
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime with IO enabled.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        Self::bind_path(path)
            .map_err(|error| while_doing(format!("listen on {}", path.display()), error))
    }

    /// Waits for the next connection. Dropping the future loses none.
    ///
    /// # Errors
    ///
    /// What `accept` gives, such as `EMFILE`; a connection that was gone before it could be
    /// accepted is skipped.
    pub async fn accept(&self) -> io::Result<(Stream, PeerAddr)> {
        loop {
            match self.socket.async_io(Interest::READABLE, Socket::accept).await {
                Ok((socket, address)) => {
                    socket.set_nonblocking(true)?;
                    let (cid, port) = address.as_vsock_address().unzip();
                    return Ok((Stream::from_socket(socket)?, PeerAddr { cid, port, vm: None }));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn bind_vsock(cid: u32, port: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::VSOCK, Type::STREAM.nonblocking(), None)?;
        socket.bind(&SockAddr::vsock(cid, port))?;
        Self::listen(socket, None)
    }

    fn bind_path(path: &Path) -> io::Result<Self> {
        let address = SockAddr::unix(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        match socket.bind(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_if_stale(path, &address)?;
                socket.bind(&address)?;
            }
            result => result?,
        }
        let file = SocketFile::at(path)?;
        Self::listen(socket, Some(file))
    }

    fn listen(socket: Socket, file: Option<SocketFile>) -> io::Result<Self> {
        socket.listen(BACKLOG)?;
        Ok(Self { _file: file, socket: register(socket)? })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Removes the socket file at `path` if nobody listens on it.
fn remove_if_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !found.file_type().is_socket() {
        let problem = format!("{} exists and is not a socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, problem));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            drop(SocketFile { path: path.to_owned(), inode: inode(&found) });
            Ok(())
        }
        // Connected, or its queue is full: either way somebody is there.
        Ok(()) => Err(already_served(path)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(already_served(path)),
        Err(error) => Err(error),
    }
}

fn already_served(path: &Path) -> io::Error {
    let problem = format!("somebody else listens on {}", path.display());
    io::Error::new(io::ErrorKind::AddrInUse, problem)
}

/// A socket file, removed when dropped; known by its inode, so that a successor at the same path
/// is left alone.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: absolute(path)?, inode: inode(&fs::symlink_metadata(path)?) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let current = fs::symlink_metadata(&self.path);
        if current.is_ok_and(|current| inode(&current) == self.inode) {
            // Nobody to tell; the next listener on the path finds the file stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and inode number.
fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
