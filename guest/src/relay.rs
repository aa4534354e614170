//! Bytes between a process and the host.
//!
//! ```text
//! without a terminal                         with one
//!   host ── stdin ──> pipe                     host ── stdin ──> pty
//!   host <─ stdout ── pipe, half-closed        host <─ stdout ── pty
//!   host <─ stderr ── pipe, half-closed
//! ```
//!
//! The exit of a process is told only when its relay has ended, so that all output precedes it.
//! An output stream has ended when every writer is gone *and the host has closed its end*: hosts
//! rely on both. A background child that keeps the pipe open but says nothing does not hold the
//! exit up for ever.

mod outlet;
mod source;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use hyperv_socket::Stream;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tracing::debug;

use self::outlet::Outlet;
pub(crate) use self::outlet::{Delivery, Recovery};
use self::source::{Kind, Source};
use crate::stdio::Streams;
use crate::terminal::Terminal;

/// How long output may stay silent after its process's exit before it counts as ended.
const SILENCE: Duration = Duration::from_secs(10);

/// What input is moved at once: enough that a wake-up is worth its cost.
const CHUNK: usize = 256 << 10;

/// What the host may leave unread before a write has to wait, in bytes: enough that the process, this
/// relay and the host work at the same time.
const UNDER_WAY: u64 = 4 << 20;

/// The relay of one process.
pub(crate) struct Relay {
    stdin: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    exited: watch::Sender<bool>,
}

impl Relay {
    /// Nothing to relay.
    pub(crate) fn none() -> Self {
        Self { stdin: None, outputs: Vec::new(), exited: watch::Sender::new(false) }
    }

    /// Between pipes and the host. A pipe without a stream is closed: the process reads the end
    /// of its input, or cannot write.
    pub(crate) fn pipes(
        pipes: Streams<OwnedFd>,
        host: Streams<Stream>,
        ports: &Streams<u32>,
        delivery: &Delivery,
    ) -> io::Result<Self> {
        let mut relay = Self::none();
        if let (Some(pipe), Some(stream)) = (pipes.stdin, host.stdin) {
            let pipe = linkspan_guest_sys::register(pipe)?;
            relay.stdin = Some(spawn_local(async move {
                let ended = copy_in(stream, &pipe).await;
                debug!(?ended, "stdin");
            }));
        }
        for (name, pipe, stream, port) in [
            ("stdout", pipes.stdout, host.stdout, ports.stdout),
            ("stderr", pipes.stderr, host.stderr, ports.stderr),
        ] {
            let (Some(pipe), Some(stream)) = (pipe, stream) else { continue };
            stream.set_buffer_size(UNDER_WAY)?;
            let (pipe, exited) = (Source::new(Kind::Pipe, pipe)?, relay.exited.subscribe());
            let to = Outlet::new(delivery, port.unwrap_or(0), stream, exited.clone());
            relay.outputs.push(spawn_local(async move {
                let ended = copy_out(pipe, to, exited).await;
                debug!(?ended, "{name}");
            }));
        }
        Ok(relay)
    }

    /// Between a terminal and the host. The host's stderr, if it asked for one, stays unused.
    pub(crate) fn terminal(
        terminal: &Rc<Terminal>,
        host: Streams<Stream>,
        ports: &Streams<u32>,
        delivery: &Delivery,
    ) -> io::Result<Self> {
        let mut relay = Self::none();
        if let Some(stream) = host.stdin {
            let master = linkspan_guest_sys::register(terminal.duplicate()?)?;
            relay.stdin = Some(spawn_local(async move {
                let ended = copy_in(stream, &master).await;
                debug!(?ended, "terminal input");
                // Its end is no end-of-file to the terminal: the process keeps it.
            }));
        }
        if let Some(stream) = host.stdout {
            let master = Source::new(Kind::Terminal, terminal.duplicate()?)?;
            let exited = relay.exited.subscribe();
            let port = ports.stdout.unwrap_or(0);
            let to = Outlet::new(delivery, port, stream, exited.clone());
            relay.outputs.push(spawn_local(async move {
                let ended = copy_out(master, to, exited).await;
                debug!(?ended, "terminal output");
            }));
        }
        Ok(relay)
    }

    /// The process has exited: no more input; the rest of the output, and the host's closing.
    pub(crate) async fn finish(self) {
        if let Some(stdin) = self.stdin {
            stdin.abort();
        }
        self.exited.send_replace(true);
        for output in self.outputs {
            let _ = output.await;
        }
    }
}

async fn copy_in(mut from: Stream, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            let written = to
                .async_io(tokio::io::Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?))
                .await?;
            rest = &rest[written..];
        }
    }
}

async fn copy_out(
    mut from: Source,
    mut to: Outlet,
    exited: watch::Receiver<bool>,
) -> io::Result<()> {
    loop {
        let read = tokio::select! {
            biased;
            read = from.read() => read,
            () = silence_after(exited.clone()) => Ok(&[][..]),
        };
        match read {
            Ok([]) => break,
            // A host that has closed its end is told to the process by dropping the pipe.
            Ok(bytes) => to.write_all(bytes).await?,
            // A terminal whose other side is gone.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => break,
            Err(error) => return Err(error),
        }
    }
    let kind = from.kind();
    drop(from);
    match kind {
        Kind::Pipe => to.finish().await,
        Kind::Terminal => to.end().await,
    }
}

async fn silence_after(mut exited: watch::Receiver<bool>) {
    match exited.wait_for(|&exited| exited).await {
        Ok(_) => tokio::time::sleep(SILENCE).await,
        Err(_) => std::future::pending().await,
    }
}
