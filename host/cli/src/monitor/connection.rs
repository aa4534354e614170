//! One client of a monitor.

use std::os::fd::AsFd;
use std::sync::Arc;

use linkspan_host::Child;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::Monitor;
use super::containers::Entry;
use super::log::{Log, Origin, Position};
use crate::attend::{streams, take_orders};
use crate::control::{Channel, ChannelError, NewContainer, Order, Reply, Request, Sender};
use crate::error::{Context, Error};

/// Answers its request.
pub(super) async fn attend(monitor: &Arc<Monitor>, mut channel: Channel) {
    let request = match channel.receiver.receive().await {
        Ok(request) => request,
        Err(ChannelError::Closed) => return,
        Err(error) => return warn!(%error, "request"),
    };
    debug!(?request, "request");
    let sender = channel.sender.clone();
    let reply = match answer(monitor, request, channel).await {
        Ok(Some(reply)) => reply,
        Ok(None) => return,
        Err(error) => Reply::Failed(error.report()),
    };
    if let Err(error) = sender.send(&reply).await {
        debug!(%error, "the client does not wait for its answer");
    }
}

/// The last reply, unless it has been sent or nobody wants it.
async fn answer(
    monitor: &Arc<Monitor>,
    request: Request,
    channel: Channel,
) -> Result<Option<Reply>, Error> {
    let containers = &monitor.containers;
    Ok(Some(match request {
        Request::Inspect => Reply::Uvm(Box::new(monitor.about())),
        Request::List => Reply::Containers { containers: containers.list() },
        Request::Stop { force } => {
            let mut ended = monitor.ended.subscribe();
            // One is stopping it already if this is full or closed.
            let _ = monitor.stop.try_send(force);
            let _ = ended.wait_for(|&ended| ended).await;
            Reply::Done
        }
        Request::Run(new) => return run(monitor, new, channel).await,
        Request::Exec { container, process } => {
            let entry = containers.get(&container)?;
            let child = entry.exec(&process).await?;
            return Ok(accompany(channel, entry.id(), child).await.map(exited));
        }
        Request::Signal { container, number } => {
            containers.get(&container)?.signal(number).await?;
            Reply::Done
        }
        Request::Remove { container, force } => {
            let entry = containers.get(&container)?;
            entry.init()?;
            if entry.is_running() && !force {
                let reason = format!("{container:?} is running; kill it first, or use --force");
                return Err(Error::input("CONTAINER", reason));
            }
            containers.remove(&entry).await?;
            Reply::Done
        }
        Request::Wait { container } => {
            let code = containers.get(&container)?.exited().await;
            Reply::Exited { code }
        }
        Request::Statistics { container } => {
            let statistics = containers.get(&container)?.statistics().await?;
            Reply::Statistics { statistics }
        }
        Request::Log { container: Some(container), follow } => {
            let entry = containers.get(&container)?;
            send_log(&channel.sender, entry.log()?, follow).await?;
            return Ok(None);
        }
        Request::Log { container: None, follow } => {
            let log = Log::new(0, super::log::KEPT);
            let console = monitor.guest.vmm().console_tail();
            log.append(Origin::Stdout, console.as_bytes());
            if !console.is_empty() && !console.ends_with('\n') {
                log.append(Origin::Stdout, b"\n");
            }
            if follow {
                let reason = "follows a container's log only; name one";
                return Err(Error::input("--follow", reason));
            }
            send_log(&channel.sender, &log, false).await?;
            return Ok(None);
        }
    }))
}

fn exited(outcome: Result<u32, Error>) -> Reply {
    match outcome {
        Ok(code) => Reply::Exited { code },
        Err(error) => Reply::Failed(error.report()),
    }
}

async fn run(
    monitor: &Arc<Monitor>,
    new: NewContainer,
    channel: Channel,
) -> Result<Option<Reply>, Error> {
    let (detach, remove) = (new.detach, new.remove);
    let (sender, mut reports) = mpsc::channel(1);
    let progress = move |at: linkspan_host::LayerProgress<'_>| {
        let (path, bytes, total, entries) = (at.path.to_owned(), at.bytes, at.total, at.entries);
        // One that is not taken at once is not worth waiting.
        let _ = sender.try_send(Reply::Progress { path, bytes, total, entries });
    };
    // A task of its own: once begun it comes to an end, whatever becomes of the client.
    let making = {
        let monitor = Arc::clone(monitor);
        tokio::spawn(async move { monitor.containers.run(new, progress).await })
    };
    while let Some(report) = reports.recv().await {
        // That the client has gone shows soon enough.
        let _ = channel.sender.send(&report).await;
    }
    let panicked = |error: tokio::task::JoinError| Error::Io {
        what: "make a container".into(),
        source: error.into(),
    };
    let (entry, child) = making.await.map_err(panicked)??;
    if detach {
        let (container, pid) = (entry.id().to_owned(), child.pid());
        if remove {
            let monitor = Arc::clone(monitor);
            tokio::spawn(async move {
                entry.exited().await;
                discard(&monitor, &entry).await;
            });
        }
        let (stdin, stdout, stderr) = (false, false, false);
        return Ok(Some(Reply::Started { container, pid, stdin, stdout, stderr }));
    }
    let outcome = accompany(channel, entry.id(), child).await;
    if matches!(outcome, Some(Ok(_))) {
        entry.exited().await;
    }
    discard(monitor, &entry).await;
    Ok(outcome.map(exited))
}

async fn discard(monitor: &Monitor, entry: &Entry) {
    if let Err(error) = monitor.containers.remove(entry).await {
        warn!(container = entry.id(), %error, "remove");
    }
}

/// Hands a process's sockets to the client and takes its orders until the process ends; `None`
/// when the client went first. Its process goes with it.
async fn accompany(
    mut channel: Channel,
    container: &str,
    mut child: Child,
) -> Option<Result<u32, Error>> {
    let process = child.handle().clone();
    let sockets = streams(&mut child);
    let started = Reply::Started {
        container: container.to_owned(),
        pid: process.pid(),
        stdin: sockets.stdin.is_some(),
        stdout: sockets.stdout.is_some(),
        stderr: sockets.stderr.is_some(),
    };
    let descriptors: Vec<_> = [&sockets.stdin, &sockets.stdout, &sockets.stderr]
        .into_iter()
        .flatten()
        .map(AsFd::as_fd)
        .collect();
    let sent = channel.sender.send_with(&started, &descriptors).await;
    drop(descriptors);
    drop(sockets);
    let orders = take_orders(process.clone());
    let ended = async { Ok(process.wait().await?.code()) };
    tokio::pin!(ended);
    let gone = match sent {
        Err(error) => error,
        Ok(()) => loop {
            tokio::select! {
                outcome = &mut ended => return Some(outcome),
                order = channel.receiver.receive::<Order>() => match order {
                    Ok(order) => drop(orders.send(order)),
                    Err(error) => break error,
                },
            }
        },
    };
    debug!(container, pid = process.pid(), %gone, "the client has gone");
    if let Err(error) = process.kill().await {
        warn!(container, pid = process.pid(), %error, "kill a process without its client");
    }
    None
}

/// Hands the client two sockets and writes the log into them.
async fn send_log(client: &Sender, log: &Log, follow: bool) -> Result<(), Error> {
    let pair = || UnixStream::pair().context(|| "make a pair of sockets".into());
    let ((mut stdout, stdout_end), (mut stderr, stderr_end)) = (pair()?, pair()?);
    let ends = [stdout_end.as_fd(), stderr_end.as_fd()];
    if client.send_with(&Reply::Log, &ends).await.is_err() {
        return Ok(());
    }
    drop((stdout_end, stderr_end));
    let mut position = Position::default();
    loop {
        // A reader that has gone is noticed where nothing is written, too.
        let (mut nothing, mut nothing_else) = ([0], [0]);
        let part = tokio::select! {
            part = log.next(&mut position, follow) => part,
            _ = tokio::io::AsyncReadExt::read(&mut stdout, &mut nothing) => return Ok(()),
            _ = tokio::io::AsyncReadExt::read(&mut stderr, &mut nothing_else) => return Ok(()),
        };
        let Some((origin, bytes)) = part else { return Ok(()) };
        let to = match origin {
            Origin::Stdout => &mut stdout,
            Origin::Stderr => &mut stderr,
        };
        if to.write_all(&bytes).await.is_err() {
            return Ok(());
        }
    }
}
