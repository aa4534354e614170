//! The monitor as commands to await and events to watch.
//!
//! One task owns the socket. Commands go out one at a time, the next when the last is answered:
//! descriptors sent along belong to exactly one command then.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::{Decoder, Event, Message, QmpError, encode};

/// How long QEMU may take for a command. Its main loop is idle as a rule.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Events kept for a watcher that is behind.
const EVENT_BACKLOG: usize = 256;

struct Command {
    name: &'static str,
    arguments: Value,
    descriptor: Option<OwnedFd>,
    answer: oneshot::Sender<Result<Value, QmpError>>,
}

/// A monitor. Clones are the same one.
#[derive(Debug, Clone)]
pub(in super::super) struct Qmp {
    commands: mpsc::UnboundedSender<Command>,
    events: broadcast::Sender<Event>,
    ended: watch::Receiver<bool>,
}

impl Qmp {
    /// Takes over our end of QEMU's monitor socket. It can be used at once; commands wait for the
    /// greeting.
    pub(in super::super) fn new(
        socket: StdUnixStream,
        on_event: impl Fn(&Event) + Send + 'static,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        let (commands, queue) = mpsc::unbounded_channel();
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let (ended_sender, ended) = watch::channel(false);
        let pump = Pump { socket, events: events.clone(), decoder: Decoder::default() };
        tokio::spawn(async move {
            if let Err(error) = pump.run(queue, on_event).await {
                tracing::debug!(%error, "the QEMU monitor has ended");
            }
            ended_sender.send_replace(true);
        });
        Ok(Self { commands, events, ended })
    }

    /// Runs a command; `arguments` may be null.
    pub(in super::super) async fn run(
        &self,
        name: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        self.send(name, arguments, None).await
    }

    /// Runs a command that takes a descriptor along.
    pub(in super::super) async fn run_with(
        &self,
        name: &'static str,
        arguments: Value,
        descriptor: OwnedFd,
    ) -> Result<Value, QmpError> {
        self.send(name, arguments, Some(descriptor)).await
    }

    async fn send(
        &self,
        name: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let (answer, outcome) = oneshot::channel();
        let command = Command { name, arguments, descriptor, answer };
        self.commands.send(command).map_err(|_| QmpError::Closed)?;
        match timeout(ANSWER_TIME, outcome).await {
            Ok(outcome) => outcome.unwrap_or(Err(QmpError::Closed)),
            Err(_) => Err(QmpError::TimedOut(name.into())),
        }
    }

    /// All events from now on.
    pub(in super::super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Waits until QEMU has closed the monitor and all it said has been handled.
    pub(in super::super) async fn ended(&self) {
        let _ = self.ended.clone().wait_for(|&ended| ended).await;
    }
}

struct Pump {
    socket: UnixStream,
    decoder: Decoder,
    events: broadcast::Sender<Event>,
}

impl Pump {
    async fn run(
        mut self,
        mut queue: mpsc::UnboundedReceiver<Command>,
        on_event: impl Fn(&Event),
    ) -> Result<(), QmpError> {
        // Until the greeting has come and the first command, ours, is answered, nothing else goes.
        let mut greeted = false;
        let mut waiting: Option<(u64, Option<Command>)> = None;
        let mut next_id = 1;
        let mut buffer = vec![0; 16 << 10];
        loop {
            tokio::select! {
                ready = self.socket.readable() => {
                    ready.map_err(|_| QmpError::Closed)?;
                    match self.socket.try_read(&mut buffer) {
                        Ok(0) => return Err(QmpError::Closed),
                        Ok(count) => self.decoder.push(&buffer[..count]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(_) => return Err(QmpError::Closed),
                    }
                }
                command = queue.recv(), if greeted && waiting.is_none() => {
                    let Some(mut command) = command else { return Ok(()) };
                    let line = encode(command.name, &command.arguments, next_id);
                    self.write(&line, command.descriptor.take()).await?;
                    waiting = Some((next_id, Some(command)));
                    next_id += 1;
                }
            }
            while let Some(message) = self.decoder.next_message()? {
                match message {
                    Message::Greeting => {
                        self.write(&encode("qmp_capabilities", &Value::Null, 0), None).await?;
                        waiting = Some((0, None));
                        greeted = true;
                    }
                    Message::Event(event) => {
                        tracing::debug!(name = event.name, data = ?event.data, "QEMU event");
                        on_event(&event);
                        let _ = self.events.send(event); // nobody may be watching
                    }
                    Message::Answer { id, outcome } => match waiting.take() {
                        Some((expected, command)) if id == Some(expected) => {
                            let Some(command) = command else { continue };
                            let outcome = outcome.map_err(|reason| QmpError::Refused {
                                command: command.name.into(),
                                reason,
                            });
                            let _ = command.answer.send(outcome); // its caller may have gone
                        }
                        _ => return Err(QmpError::Malformed(format!("an answer with id {id:?}"))),
                    },
                }
            }
        }
    }

    /// Writes a line; the descriptor goes with its first byte.
    async fn write(&self, line: &[u8], descriptor: Option<OwnedFd>) -> Result<(), QmpError> {
        let mut rest = line;
        let mut descriptor = descriptor;
        while !rest.is_empty() {
            self.socket.writable().await.map_err(|_| QmpError::Closed)?;
            let sent = self.socket.try_io(Interest::WRITABLE, || {
                let borrowed = descriptor.as_ref().map(|descriptor| [descriptor.as_fd()]);
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if let Some(borrowed) = &borrowed {
                    control.push(SendAncillaryMessage::ScmRights(borrowed));
                }
                Ok(sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)?)
            });
            match sent {
                Ok(count) => {
                    rest = &rest[count..];
                    descriptor = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(QmpError::Closed),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
