//! Where output goes, and what becomes of it when the host is lost.
//!
//! | delivery | host                        | after a loss                                          |
//! |----------|-----------------------------|-------------------------------------------------------|
//! | once     | Linkspan's; further processes | none: the process learns that nobody reads           |
//! | replay   | others', a container's init | the port is dialled until it answers; the last 128 KiB are written again |
//! | resume   | Linkspan's, if it asks      | the port is dialled; the host says how much it has    |
//!
//! Replay is what hosts expect of an init's output. It can double what had arrived and lose what
//! was on its way beyond 128 KiB. Resume does neither:
//!
//! ```text
//! host ── u64 count of bytes that it has ──> guest       first, and again as they come;
//!                                                        all ones: it wants no more
//! host <── u32 length, bytes; 0 at the end ── guest      from that count on
//! ```

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use hyperv_socket::{Peer, ReadHalf, Stream, WriteHalf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tracing::debug;

/// What is written again on a new connection.
const REPLAY: usize = 128 << 10;

/// What may wait for the host's word that it has come.
const UNACKNOWLEDGED: usize = 256 << 10;

/// A count that means that the host wants no more.
const ENOUGH: u64 = u64::MAX;

/// How long to wait between two attempts to reach the host. Nobody says when it is back.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a host that is there may leave the output of an exited process waiting.
const PATIENCE: Duration = Duration::from_secs(15);

/// How output is delivered.
#[derive(Clone)]
pub(crate) enum Delivery {
    Once,
    Replay(Recovery),
    Resume(Recovery),
}

/// What it takes to find a lost host again, or to give it up.
#[derive(Clone)]
pub(crate) struct Recovery {
    pub(crate) host: Peer,
    /// Whether the host is connected to the bridge.
    pub(crate) connected: watch::Receiver<bool>,
    /// Whether the container has been told to end, or is being deleted.
    pub(crate) abandoned: watch::Receiver<bool>,
}

impl Recovery {
    async fn dial(&self, port: u32, exited: &watch::Receiver<bool>) -> io::Result<Stream> {
        let dial = async {
            loop {
                match hyperv_socket::connect(&self.host, port).await {
                    Ok(stream) => return stream,
                    Err(error) => debug!(port, %error, "the host does not take output"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            stream = dial => Ok(stream),
            () = self.is_hopeless(exited.clone()) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// The process has exited, and either its container is to go or the host is there and takes
    /// nothing.
    async fn is_hopeless(&self, mut exited: watch::Receiver<bool>) {
        let (mut abandoned, mut connected) = (self.abandoned.clone(), self.connected.clone());
        // Whoever holds the other ends is gone only with the agent.
        let _ = exited.wait_for(|&exited| exited).await;
        let ignored = async {
            loop {
                let _ = connected.wait_for(|&connected| connected).await;
                tokio::select! {
                    () = tokio::time::sleep(PATIENCE) => return,
                    _ = connected.wait_for(|&connected| !connected) => {}
                }
            }
        };
        tokio::select! {
            _ = abandoned.wait_for(|&abandoned| abandoned) => {}
            () = ignored => {}
        }
    }
}

/// An output stream towards the host.
pub(super) struct Outlet {
    port: u32,
    exited: watch::Receiver<bool>,
    way: Way,
}

enum Way {
    Once(Stream),
    Replay(Replay),
    Resume(Box<Resume>),
}

struct Replay {
    recovery: Recovery,
    stream: Stream,
    /// The last that was written.
    recent: VecDeque<u8>,
}

struct Resume {
    recovery: Recovery,
    connection: (ReadHalf, WriteHalf),
    /// What the host has not said that it has.
    kept: VecDeque<u8>,
    /// The host has this many bytes.
    acknowledged: u64,
    /// This many were written, on this connection or one before.
    written: u64,
    /// Whether the host has said on this connection what it has.
    greeted: bool,
}

/// Whether an error is a host that is gone.
fn is_loss(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
    };
    let kinds = [BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof];
    kinds.contains(&error.kind())
}

impl Outlet {
    pub(super) fn new(
        delivery: &Delivery,
        port: u32,
        stream: Stream,
        exited: watch::Receiver<bool>,
    ) -> Self {
        let way = match delivery.clone() {
            Delivery::Once => Way::Once(stream),
            Delivery::Replay(recovery) => {
                Way::Replay(Replay { recovery, stream, recent: VecDeque::new() })
            }
            Delivery::Resume(recovery) => Way::Resume(Box::new(Resume {
                recovery,
                connection: stream.into_split(),
                kept: VecDeque::new(),
                acknowledged: 0,
                written: 0,
                greeted: false,
            })),
        };
        Self { port, exited, way }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (port, exited) = (self.port, &self.exited);
        match &mut self.way {
            Way::Once(stream) => stream.write_all(bytes).await,
            Way::Replay(replay) => replay.write_all(bytes, port, exited).await,
            Way::Resume(resume) => {
                resume.kept.extend(bytes);
                resume.until(UNACKNOWLEDGED, false, port, exited).await
            }
        }
    }

    /// No more comes, and the host is not asked whether it has all, unless it has to say so.
    pub(super) async fn end(self) -> io::Result<()> {
        match self.way {
            Way::Once(_) | Way::Replay(_) => Ok(()),
            Way::Resume(_) => self.finish().await,
        }
    }

    /// No more comes. Returns when the host has all, and has said so.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        let (port, exited) = (self.port, &self.exited);
        match &mut self.way {
            Way::Once(stream) => farewell(stream).await,
            Way::Replay(replay) => loop {
                match farewell(&mut replay.stream).await {
                    // What it had not read is lost to it.
                    Err(error) if is_loss(&error) => replay.again(port, exited).await?,
                    ended => return ended,
                }
            },
            Way::Resume(resume) => resume.until(0, true, port, exited).await,
        }
    }
}

/// The host answers the end with its own: anything it sends here has no meaning.
async fn farewell(stream: &mut Stream) -> io::Result<()> {
    Stream::shutdown(stream, std::net::Shutdown::Write)?;
    let mut byte = [0; 16];
    while stream.read(&mut byte).await? > 0 {}
    Ok(())
}

impl Replay {
    async fn write_all(
        &mut self,
        bytes: &[u8],
        port: u32,
        exited: &watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(rest).await {
                Ok(len) => {
                    self.remember(&rest[..len]);
                    rest = &rest[len..];
                }
                Err(error) if is_loss(&error) => self.again(port, exited).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn remember(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(REPLAY)..];
        let excess = (self.recent.len() + bytes.len()).saturating_sub(REPLAY);
        self.recent.drain(..excess);
        self.recent.extend(bytes);
    }

    async fn again(&mut self, port: u32, exited: &watch::Receiver<bool>) -> io::Result<()> {
        loop {
            self.stream = self.recovery.dial(port, exited).await?;
            debug!(port, bytes = self.recent.len(), "output is written again");
            match self.stream.write_all(self.recent.make_contiguous()).await {
                Err(error) if is_loss(&error) => tokio::time::sleep(PAUSE).await,
                written => return written,
            }
        }
    }
}

impl Resume {
    /// Writes, over any number of connections, until the host has all but `left` bytes; and the
    /// end, if it is the `last` time.
    async fn until(
        &mut self,
        left: usize,
        last: bool,
        port: u32,
        exited: &watch::Receiver<bool>,
    ) -> io::Result<()> {
        loop {
            match self.exchange(left, last).await {
                Err(error) if is_loss(&error) => {}
                ended => return ended,
            }
            self.connection = self.recovery.dial(port, exited).await?.into_split();
            self.greeted = false;
        }
    }

    async fn exchange(&mut self, left: usize, last: bool) -> io::Result<()> {
        if !self.greeted {
            self.listen().await?;
            self.greeted = true;
            // What it has not got comes again.
            self.written = self.acknowledged;
        }
        while (self.written - self.acknowledged) < self.kept.len() as u64 {
            let from = (self.written - self.acknowledged) as usize;
            let (front, back) = self.kept.as_slices();
            let part = match from < front.len() {
                true => &front[from..],
                false => &back[from - front.len()..],
            };
            let len = part.len() as u64;
            self.connection.1.write_all(&(part.len() as u32).to_le_bytes()).await?;
            self.connection.1.write_all(part).await?;
            self.written += len;
        }
        if last {
            self.connection.1.write_all(&[0; 4]).await?;
        }
        while self.kept.len() > left {
            self.listen().await?;
        }
        if last {
            // Its last word may come for the end alone; after it, it closes.
            let mut rest = [0; 64];
            while self.connection.0.read(&mut rest).await? > 0 {}
        }
        Ok(())
    }

    /// Takes a word of the host's.
    async fn listen(&mut self) -> io::Result<()> {
        let mut word = [0; 8];
        self.connection.0.read_exact(&mut word).await?;
        let count = u64::from_le_bytes(word);
        if count == ENOUGH {
            return Err(io::Error::other("the host wants no more output"));
        }
        let fresh = count.checked_sub(self.acknowledged);
        let fresh = fresh.and_then(|fresh| usize::try_from(fresh).ok());
        let Some(fresh) = fresh.filter(|&fresh| fresh <= self.kept.len()) else {
            let text = format!("the host counts {count} bytes of output, which it cannot have");
            return Err(io::Error::other(text));
        };
        self.kept.drain(..fresh);
        self.acknowledged = count;
        Ok(())
    }
}
