//! Where output comes from.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{SpliceFlags, splice};
use tokio::io::unix::AsyncFd;

use crate::stdio::{PIPE_BYTES, pipe};

/// What is read at once. A program that fills it has a lot to say.
const CHUNK: usize = 64 << 10;

/// A program that says less than this at once has no longer a lot to say.
const LITTLE: usize = 32 << 10;

/// The reading end of an output.
pub(super) struct Source {
    fd: AsyncFd<OwnedFd>,
    kind: Kind,
    buffer: Vec<u8>,
    aside: Option<Aside>,
    /// Bytes that the last read gave.
    last: usize,
}

/// What an output comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Gives all that it has, and its end is the stream's.
    Pipe,
    /// Gives what its line discipline likes to; its stream stays for input.
    Terminal,
}

impl Source {
    pub(super) fn new(kind: Kind, fd: OwnedFd) -> io::Result<Self> {
        let fd = linkspan_guest_sys::register(fd)?;
        Ok(Self { fd, kind, buffer: vec![0; CHUNK], aside: None, last: 0 })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Reads what is there; nothing at the end.
    pub(super) async fn read(&mut self) -> io::Result<&[u8]> {
        if self.aside.is_some() && self.last < LITTLE {
            self.aside = None;
        } else if self.aside.is_none() && self.last == CHUNK && self.kind == Kind::Pipe {
            // Without it things go on as before.
            self.aside = Aside::new().ok();
        }
        loop {
            let mut ready = self.fd.readable().await?;
            let read = ready.try_io(|fd| match &mut self.aside {
                Some(aside) => aside.take(fd.get_ref()),
                None => Ok(rustix::io::read(fd.as_fd(), self.buffer.as_mut_slice())?),
            });
            let Ok(read) = read else { continue };
            self.last = read?;
            // A pipe that gives less than it was asked for is empty: spare the call that finds it so.
            let short = self.aside.is_none() && 0 < self.last && self.last < CHUNK;
            if short && self.kind == Kind::Pipe {
                ready.clear_ready();
            }
            break;
        }
        let buffer = self.aside.as_ref().map_or(&self.buffer, |aside| &aside.buffer);
        Ok(&buffer[..self.last])
    }
}

/// A pipe of our own. What waits in a process's pipe is moved here page by page, without a copy,
/// and read then: whoever reads or writes a pipe has its lock for as long as that copies, so this
/// is what lets the process write while we copy.
struct Aside {
    read: OwnedFd,
    write: OwnedFd,
    buffer: Vec<u8>,
}

impl Aside {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe()?;
        Ok(Self { read, write, buffer: vec![0; PIPE_BYTES] })
    }

    /// Takes what is there into the buffer. Returns how much, in bytes.
    fn take(&mut self, from: &OwnedFd) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let moved = splice(from, None, &self.write, None, self.buffer.len(), flags)?;
        let mut len = 0;
        while len < moved {
            len += rustix::io::read(&self.read, &mut self.buffer[len..moved])?;
        }
        Ok(moved)
    }
}
