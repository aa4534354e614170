//! A process's sockets on this process's standard streams.

use std::io;
use std::os::fd::OwnedFd;

use linkspan_host::relay::{self, Ends};
use tokio::sync::oneshot;

/// The sockets of a process's standard streams, as far as they are connected.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The output directions that still run.
#[derive(Debug)]
pub(crate) struct Outputs(Vec<oneshot::Receiver<()>>);

impl Streams {
    /// Starts to relay them to this process's own.
    pub(crate) fn relay(self) -> io::Result<Outputs> {
        use rustix::stdio::{stderr, stdin, stdout};
        if let Some(socket) = self.stdin {
            relay::spawn("stdin", move || relay::input(stdin(), &socket, None))?;
        }
        let mut outputs = Vec::new();
        if let Some(socket) = self.stdout {
            let work = move || relay::output(&socket, stdout(), Ends::default());
            outputs.push(relay::spawn("stdout", work)?);
        }
        if let Some(socket) = self.stderr {
            let work = move || relay::output(&socket, stderr(), Ends::default());
            outputs.push(relay::spawn("stderr", work)?);
        }
        Ok(Outputs(outputs))
    }
}

impl Outputs {
    /// Waits until all output has been written, or cannot be any more.
    pub(crate) async fn finished(&mut self) {
        while let Some(last) = self.0.last_mut() {
            let _ = last.await;
            self.0.pop();
        }
    }
}
