//! Processes that the host knows of.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use linkspan_protocol::message::INFINITE;
use tokio::sync::watch;

use crate::reaper::{Child, Exit};
use crate::relay::Relay;
use crate::terminal::Terminal;
use crate::{Error, Result, tasks};

/// One process, from its start until it has been reported.
pub(crate) struct Process {
    child: Child,
    terminal: Option<Rc<Terminal>>,
    relay: Cell<Option<Relay>>,
    /// The exit code, once the relay has ended.
    code: watch::Sender<Option<u32>>,
    waiters: Cell<usize>,
    reported: Cell<bool>,
}

/// How the exit of a process by a signal is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SignalCode {
    /// As shells do: 128 + signal.
    Shell,
    /// As the reference does for external processes: all ones.
    AllOnes,
}

impl Process {
    /// A process whose streams nobody relays yet.
    pub(crate) fn new(child: Child, terminal: Option<Rc<Terminal>>) -> Rc<Self> {
        Rc::new(Self {
            child,
            terminal,
            relay: Cell::new(Some(Relay::none())),
            code: watch::Sender::new(None),
            waiters: Cell::new(0),
            reported: Cell::new(false),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid
    }

    pub(crate) fn terminal(&self) -> Option<&Rc<Terminal>> {
        self.terminal.as_ref()
    }

    /// Hands over the relay that has to end before the exit is told.
    pub(crate) fn attach(&self, relay: Relay) {
        self.relay.set(Some(relay));
    }

    /// Follows the process to its end; `on_exit` runs between the end and the last output.
    pub(crate) fn supervise(
        self: &Rc<Self>,
        signals: SignalCode,
        on_exit: impl AsyncFnOnce() + 'static,
    ) {
        let process = Rc::clone(self);
        let name = format!("process {}", self.pid());
        tasks::spawn(name, async move {
            let exit = tasks::wait("its exit", process.child.exited()).await;
            tasks::wait("what it leaves to be ended", on_exit()).await;
            if let Some(relay) = process.relay.take() {
                tasks::wait("its output to reach the host", relay.finish()).await;
            }
            let code = match (exit, signals) {
                (Exit::Code(code), _) => code as u32,
                (Exit::Signal(signal), SignalCode::Shell) => 128 + signal as u32,
                (Exit::Signal(_), SignalCode::AllOnes) => u32::MAX,
            };
            process.code.send_replace(Some(code));
        });
    }

    /// Whether it has ended, told or not.
    pub(crate) fn has_exited(&self) -> bool {
        self.child.exit.borrow().is_some()
    }

    /// Waits until it has ended, told or not.
    pub(crate) async fn ended(&self) {
        tasks::wait("its exit", self.child.exited()).await;
    }

    /// Waits until the exit code is to be told.
    pub(crate) async fn wait(self: &Rc<Self>, milliseconds: u32) -> Result<(u32, Waiter)> {
        let waiter = Waiter::new(self);
        let mut code = self.code.subscribe();
        let wait = code.wait_for(Option::is_some);
        let (what, pid) = ("the process's exit", self.pid());
        let code = if milliseconds == INFINITE {
            tasks::wait(what, wait).await
        } else {
            let limit = Duration::from_millis(milliseconds.into());
            let late = |_| Error::WaitTimedOut { pid, milliseconds };
            tasks::wait_at_most(what, limit, wait).await.map_err(late)?
        };
        let code = code.ok().and_then(|code| *code).ok_or(Error::NoProcess(self.pid()))?;
        self.reported.set(true);
        Ok((code, waiter))
    }

    /// Whether the exit code has reached somebody and nobody else waits for it.
    pub(crate) fn is_settled(&self) -> bool {
        self.reported.get() && self.waiters.get() == 0
    }

    /// Sends a signal; an exited process is [`Error::NoProcess`].
    pub(crate) fn signal(&self, number: i32) -> Result<()> {
        self.child.signal(number).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NoProcess(self.pid()),
            std::io::ErrorKind::InvalidInput => Error::Argument {
                field: "Options.Signal",
                reason: format!("{number} is not a signal"),
            },
            _ => Error::Io { what: format!("signal process {}", self.pid()), source: error },
        })
    }
}

/// Counts as a waiter until it is dropped, which is after the answer.
pub(crate) struct Waiter {
    process: Rc<Process>,
}

impl Waiter {
    fn new(process: &Rc<Process>) -> Self {
        process.waiters.set(process.waiters.get() + 1);
        Self { process: Rc::clone(process) }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.process.waiters.set(self.process.waiters.get() - 1);
    }
}
