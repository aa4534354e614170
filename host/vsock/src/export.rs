//! The device for other processes, as Unix sockets on disk.
//!
//! With `PATH` configured, a connection of the guest's to a port nobody in this process listens on goes to the
//! socket `PATH_<port>`, if there is one. In the other direction a client connects to `PATH`, writes
//! `CONNECT <port>` and a newline, and reads `OK <host port>` and a newline before the first byte of the guest's,
//! or an end of file if the guest refused.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
};

/// Longer than any valid request line.
const MAX_LINE: usize = 32;

/// Clients that did not finish their request line yet. Further ones are turned away.
const MAX_CLIENTS: usize = 64;

/// What came of a client's request line.
pub(crate) enum Handshake {
    /// There is more to come, or the client was turned away.
    Incomplete,
    /// It wants to be connected to this port of the guest.
    Port(u32, UnixStream),
}

/// The socket at the export path, and clients that have not said yet what they want.
pub(crate) struct Export {
    path: PathBuf,
    listener: UnixListener,
    clients: HashMap<u64, UnixStream>,
}

impl Export {
    /// Binds the socket at `path`.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { path: path.to_owned(), listener, clients: HashMap::new() })
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Connects to the socket for a port of the host's.
    pub(crate) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(Path::new(&path))?)?;
        Ok(UnixStream::from(socket))
    }

    /// The next client, if there is one.
    pub(crate) fn accept(&self) -> Option<UnixStream> {
        loop {
            match self.listener.accept() {
                Ok((client, _)) => return Some(client),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Keeps a client until its request line is there.
    pub(crate) fn greet(&mut self, id: u64, client: UnixStream) {
        if self.clients.len() < MAX_CLIENTS {
            self.clients.insert(id, client);
        }
    }

    /// Looks whether a client's request line is there, and turns it away if the line is none.
    pub(crate) fn hear(&mut self, id: u64) -> Handshake {
        let Some(client) = self.clients.get(&id) else { return Handshake::Incomplete };
        let mut line = [0; MAX_LINE];
        let seen = match recv(
            client.as_raw_fd(),
            &mut line,
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(seen) => seen,
            Err(Errno::EAGAIN | Errno::EINTR) => return Handshake::Incomplete,
            Err(_) => 0,
        };
        let end = line[..seen].iter().position(|&byte| byte == b'\n');
        if end.is_none() && (1..MAX_LINE).contains(&seen) {
            return Handshake::Incomplete;
        }
        let Some(client) = self.clients.remove(&id) else { return Handshake::Incomplete };
        let Some(end) = end else { return Handshake::Incomplete };
        let port = parse(&line[..end]);
        // The line leaves the socket, and what follows it stays.
        let taken = recv(client.as_raw_fd(), &mut line[..=end], MsgFlags::MSG_DONTWAIT);
        match port {
            Some(port) if taken == Ok(end + 1) => Handshake::Port(port, client),
            _ => Handshake::Incomplete,
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // gone already is as good
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?.trim_ascii_end().parse().ok()
}

/// Tells a client that the guest accepted. Returns whether it could be told.
pub(crate) fn confirm(client: &UnixStream, host_port: u32) -> bool {
    let line = format!("OK {host_port}\n");
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(client.as_raw_fd(), line.as_bytes(), flags) == Ok(line.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_request_line_is_taken_when_complete_and_bytes_after_it_stay_in_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let mut export = Export::bind(&path).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let accepted = export.accept().unwrap();
        export.greet(1, accepted);
        client.write_all(b"CONNE").unwrap();
        assert!(matches!(export.hear(1), Handshake::Incomplete));
        client.write_all(b"CT 52\nrest").unwrap();
        let Handshake::Port(52, mut stream) = export.hear(1) else { panic!("no port") };
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[test]
    fn a_line_that_is_no_request_or_does_not_end_turns_the_client_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let mut export = Export::bind(&path).unwrap();
        for (id, line) in [(1, &b"CONNECT many\n"[..]), (2, &[b'x'; MAX_LINE + 1][..])] {
            let mut client = UnixStream::connect(&path).unwrap();
            let accepted = export.accept().unwrap();
            export.greet(id, accepted);
            client.write_all(line).unwrap();
            assert!(matches!(export.hear(id), Handshake::Incomplete));
            // It hangs up; bytes it had not read make that a reset.
            assert!(client.read(&mut [0]).map_or(true, |len| len == 0));
        }
    }

    #[test]
    fn the_socket_leaves_no_trace_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        drop(Export::bind(&path).unwrap());
        assert!(!path.exists());
    }
}
