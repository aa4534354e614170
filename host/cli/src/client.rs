//! Asks the monitor of a named utility VM.

use std::io;

use tokio::sync::mpsc;
use tracing::debug;

use crate::attend::{Local, attend};
use crate::control::{Channel, ChannelError, Order, Receiver, Reply, Request};
use crate::error::Error;
use crate::progress::Progress;
use crate::registry::Place;
use crate::relay::Streams;
use crate::signals::Signals;

/// A process that has been started, or a log that is ready.
#[derive(Debug)]
pub(crate) struct Attached {
    channel: Channel,
    /// Its container's id.
    pub(crate) container: String,
    /// Its pid in the guest's root namespace.
    pub(crate) pid: u32,
    streams: Streams,
}

/// Asks for something and waits for the one answer.
pub(crate) async fn ask(place: &Place, request: &Request) -> Result<Reply, Error> {
    let mut channel = place.connect().await?;
    channel.sender.send(request).await.map_err(lost)?;
    receive(&mut channel.receiver).await
}

/// Asks for a process.
pub(crate) async fn start(
    place: &Place,
    request: &Request,
    progress: Progress,
) -> Result<Attached, Error> {
    let mut channel = place.connect().await?;
    channel.sender.send(request).await.map_err(lost)?;
    let bar = progress.layer();
    loop {
        match receive(&mut channel.receiver).await? {
            Reply::Progress { path, bytes, total, entries } => {
                bar.layer_at(&path.display().to_string(), bytes, total, entries);
            }
            Reply::Started { container, pid, stdin, stdout, stderr } => {
                let mut descriptor = |there: bool| match there {
                    true => channel.receiver.descriptor().map(Some).ok_or_else(unexpected),
                    false => Ok(None),
                };
                let streams = Streams {
                    stdin: descriptor(stdin)?,
                    stdout: descriptor(stdout)?,
                    stderr: descriptor(stderr)?,
                };
                return Ok(Attached { channel, container, pid, streams });
            }
            _ => return Err(unexpected()),
        }
    }
}

/// Asks for a log.
pub(crate) async fn log(place: &Place, request: &Request) -> Result<Streams, Error> {
    let mut channel = place.connect().await?;
    channel.sender.send(request).await.map_err(lost)?;
    let Reply::Log = receive(&mut channel.receiver).await? else { return Err(unexpected()) };
    let mut descriptor = || channel.receiver.descriptor().ok_or_else(unexpected);
    Ok(Streams { stdin: None, stdout: Some(descriptor()?), stderr: Some(descriptor()?) })
}

impl Attached {
    /// Attends to it until its end; returns its exit code.
    pub(crate) async fn attend(self, local: Local, signals: &mut Signals) -> Result<u32, Error> {
        let Channel { sender, mut receiver } = self.channel;
        let (orders, mut ordered) = mpsc::unbounded_channel::<Order>();
        let passing = tokio::spawn(async move {
            while let Some(order) = ordered.recv().await {
                if let Err(error) = sender.send(&order).await {
                    return debug!(%error, ?order, "order to a process");
                }
            }
        });
        let exit = async {
            match receive(&mut receiver).await? {
                Reply::Exited { code } => Ok(code),
                _ => Err(unexpected()),
            }
        };
        let outcome = attend(self.streams, local, signals, orders, exit).await;
        // The connection's end is the process's: nothing may hold on to it.
        passing.abort();
        outcome
    }
}

async fn receive(receiver: &mut Receiver) -> Result<Reply, Error> {
    match receiver.receive().await {
        Ok(Reply::Failed(report)) => Err(Error::Remote(report)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(lost(error)),
    }
}

fn lost(error: ChannelError) -> Error {
    let source = match error {
        ChannelError::Closed => io::Error::other("it has ended"),
        error => io::Error::other(error),
    };
    Error::Io { what: "talk to the utility VM's monitor".into(), source }
}

/// An answer to another question.
pub(crate) fn unexpected() -> Error {
    let source = io::Error::other("it answers what was not asked; is it of another version?");
    Error::Io { what: "talk to the utility VM's monitor".into(), source }
}
