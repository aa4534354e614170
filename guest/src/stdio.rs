//! A process's streams: the host's ports, the process's pipes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use hyperv_socket::{Peer, Stream};
use linkspan_protocol::message::{ProcessParameters, VsockStdio};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::error::Context;
use crate::{Result, tasks};

/// One of something for each standard stream.
#[derive(Debug)]
pub(crate) struct Streams<T> {
    pub(crate) stdin: Option<T>,
    pub(crate) stdout: Option<T>,
    pub(crate) stderr: Option<T>,
}

impl<T> Default for Streams<T> {
    fn default() -> Self {
        Self { stdin: None, stdout: None, stderr: None }
    }
}

/// The ports to dial: those whose stream is wanted.
pub(crate) fn ports(parameters: &ProcessParameters, stdio: Option<VsockStdio>) -> Streams<u32> {
    let stdio = stdio.unwrap_or_default();
    Streams {
        stdin: parameters.create_std_in_pipe.then_some(stdio.stdin),
        stdout: parameters.create_std_out_pipe.then_some(stdio.stdout),
        stderr: parameters.create_std_err_pipe.then_some(stdio.stderr),
    }
}

/// How long a host may take to accept. A vsock gives up sooner, so this is for one that neither
/// accepts nor refuses.
const DIAL: Duration = Duration::from_secs(30);

impl Streams<u32> {
    /// Dials stdin, stdout, stderr in this order, which hosts may rely on. After a failure none
    /// stays connected.
    pub(crate) async fn dial(&self, host: &Peer) -> Result<Streams<Stream>> {
        let mut streams = Streams::default();
        for (name, port, slot) in [
            ("stdin", self.stdin, &mut streams.stdin),
            ("stdout", self.stdout, &mut streams.stdout),
            ("stderr", self.stderr, &mut streams.stderr),
        ] {
            let Some(port) = port else { continue };
            let dial = hyperv_socket::connect(host, port);
            let stream = tasks::wait_at_most("connection to the host's port", DIAL, dial).await?;
            *slot = Some(stream.context(|| format!("connect {name} to the host's port {port}"))?);
        }
        Ok(streams)
    }
}

/// The two sides of a process's three pipes.
pub(crate) struct Pipes {
    /// The agent's, which do not block.
    pub(crate) ours: Streams<OwnedFd>,
    /// The process's, until it has been made.
    pub(crate) theirs: Option<[OwnedFd; 3]>,
}

/// Enough that a writer is not woken for every few pages; the kernel gives it on demand.
pub(crate) const PIPE_BYTES: usize = 1 << 20;

impl Pipes {
    pub(crate) fn new() -> io::Result<Self> {
        let ((stdin_read, stdin_write), (stdout_read, stdout_write), (stderr_read, stderr_write)) =
            (pipe()?, pipe()?, pipe()?);
        for fd in [&stdin_write, &stdout_read, &stderr_read] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let ours = Streams {
            stdin: Some(stdin_write),
            stdout: Some(stdout_read),
            stderr: Some(stderr_read),
        };
        Ok(Self { ours, theirs: Some([stdin_read, stdout_write, stderr_write]) })
    }

    pub(crate) fn theirs(&self) -> Option<[BorrowedFd<'_>; 3]> {
        self.theirs.as_ref().map(|theirs| theirs.each_ref().map(AsFd::as_fd))
    }

    /// The process has them: ours would keep it from seeing the end of its input.
    pub(crate) fn into_ours(self) -> Streams<OwnedFd> {
        self.ours
    }
}

/// A pipe with room for [`PIPE_BYTES`]: its read end, and its write end.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // A user over its limit gets the default size, which works as well.
    let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
    Ok((read, write))
}
