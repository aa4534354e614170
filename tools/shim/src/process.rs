//! One process of a container, from Create or Exec to Delete.
//!
//! ```text
//! Created ──start──> Running ──its end──> Stopped
//!    └────────────kill, or a failed start──────┘
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::types::task::Status;
use linkspan_host::{Child, ProcessHandle};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::error::Error;
use crate::stdio::{Local, Paths, Relay};

/// The exit status of a process that nobody has seen end.
pub(crate) const UNKNOWN: u32 = 255;

/// How long a killed process's output may find no taker before it is given up.
const UNTAKEN: Duration = Duration::from_secs(2);

/// How long what a lost guest wrote last may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(crate) const KILL: u32 = 9;

/// By default these end nothing: `CHLD`, `CONT`, `STOP`, `TSTP`, `TTIN`, `TTOU`, `URG`, `WINCH`.
const HARMLESS: [u32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];

/// Whether a signal ends a process that has set nothing else up.
///
/// # Errors
/// When there is no such signal. 0 is one that does nothing.
pub(crate) fn is_deadly(signal: u32) -> Result<bool, Error> {
    match signal {
        0 => Ok(false),
        1..=64 => Ok(!HARMLESS.contains(&signal)),
        _ => Err(Error::input("signal", format!("{signal} is not in 0 to 64"))),
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

impl Exit {
    fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Stopped(Exit),
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created => "not started",
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
        }
    }

    pub(crate) fn status(self) -> Status {
        match self {
            Self::Created => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Stopped(_) => Status::STOPPED,
        }
    }

    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            _ => None,
        }
    }
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    /// For people: its container's id, or its own.
    name: String,
    pub(crate) paths: Paths,
    pid: AtomicU32,
    phase: watch::Sender<Phase>,
    /// Held while it is started, killed before that, or deleted.
    pub(crate) changing: tokio::sync::Mutex<()>,
    handle: OnceLock<ProcessHandle>,
    relay: OnceLock<Relay>,
    /// Rows and columns that were wished for before there was a terminal.
    size: Mutex<Option<(u16, u16)>>,
    /// Its input was ended, perhaps before it ran.
    input_ended: AtomicBool,
}

impl Process {
    pub(crate) fn new(name: &str, paths: Paths, pid: u32) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            paths,
            pid: AtomicU32::new(pid),
            phase: watch::Sender::new(Phase::Created),
            changing: tokio::sync::Mutex::default(),
            handle: OnceLock::new(),
            relay: OnceLock::new(),
            size: Mutex::default(),
            input_ended: AtomicBool::new(false),
        })
    }

    /// Its pid in the utility VM; 0 where it is not known yet.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Refuses what only a process that has not been started allows.
    pub(crate) fn is_to_start(&self) -> Result<(), Error> {
        match self.phase() {
            Phase::Created => Ok(()),
            other => Err(self.refuse("start", other)),
        }
    }

    pub(crate) fn refuse(&self, verb: &'static str, phase: Phase) -> Error {
        Error::State { verb, id: self.name.clone(), state: phase.name() }
    }

    /// It runs. Its end is told to `ended` once all its output has been written; `began` is called
    /// before that can be.
    pub(crate) async fn started(
        self: &Arc<Self>,
        mut child: Child,
        local: Local,
        began: impl FnOnce(),
        ended: impl FnOnce(Exit) + Send + 'static,
    ) -> Result<u32, Error> {
        let handle = child.handle().clone();
        let relay = match local.relay(&mut child) {
            Ok(relay) => relay,
            Err(error) => {
                let _ = handle.kill().await;
                return Err(error);
            }
        };
        self.pid.store(handle.pid(), Ordering::Relaxed);
        // Set once: starting it twice is refused before this.
        let _ = (self.handle.set(handle.clone()), self.relay.set(relay));
        if self.input_ended.load(Ordering::SeqCst) {
            self.close_stdin();
        }
        self.phase.send_replace(Phase::Running);
        let size = self.size().take();
        if let Some((rows, columns)) = size
            && let Err(error) = handle.resize(rows, columns).await
        {
            debug!(name = self.name, %error, "resize");
        }
        began();
        let this = Arc::clone(self);
        let pid = handle.pid();
        tokio::spawn(async move {
            let outcome = handle.wait().await;
            if let Some(relay) = this.relay.get() {
                match outcome {
                    Ok(_) => relay.finished().await,
                    // The guest is lost: its end of the sockets may never be closed.
                    Err(_) => {
                        let _ = tokio::time::timeout(LAST_WORDS, relay.finished()).await;
                        relay.stop();
                    }
                }
            }
            let status = outcome.map_or_else(
                |error| {
                    warn!(name = this.name, %error, "its end was not seen");
                    UNKNOWN
                },
                linkspan_host::ExitStatus::code,
            );
            let exit = Exit::now(status);
            ended(exit);
            this.phase.send_replace(Phase::Stopped(exit));
        });
        Ok(pid)
    }

    /// It will never run.
    pub(crate) fn never_ran(&self, status: u32) -> Exit {
        let exit = Exit::now(status);
        self.phase.send_replace(Phase::Stopped(exit));
        exit
    }

    /// Waits for its end; may be called by many, and again.
    pub(crate) async fn wait(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        match phase.wait_for(|phase| phase.exit().is_some()).await {
            Ok(phase) => phase.exit().unwrap_or(Exit::now(UNKNOWN)),
            Err(_) => Exit::now(UNKNOWN),
        }
    }

    /// Sends it a signal. 0 only asks whether it runs.
    ///
    /// # Errors
    /// `NotFound` when it has ended.
    pub(crate) async fn signal(self: &Arc<Self>, number: u32) -> Result<(), Error> {
        let gone = || Error::NotFound { what: "running process", id: self.name.clone() };
        let (Phase::Running, Some(handle)) = (self.phase(), self.handle.get()) else {
            return Err(gone());
        };
        if number == 0 {
            return if handle.has_ended() { Err(gone()) } else { Ok(()) };
        }
        let wanted = i32::try_from(number)
            .map_err(|_| Error::input("signal", format!("{number} is no signal")))?;
        let lives = handle.signal(wanted).await?;
        // Also of one that has ended by itself: what holds its end up is the same.
        if number == KILL {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                if tokio::time::timeout(UNTAKEN, this.wait()).await.is_err()
                    && let Some(relay) = this.relay.get()
                {
                    relay.stop();
                }
            });
        }
        lives.then_some(()).ok_or_else(gone)
    }

    /// Changes the size of its terminal, now or when it has one.
    pub(crate) async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        match (self.phase(), self.handle.get()) {
            (Phase::Running, Some(handle)) => Ok(handle.resize(rows, columns).await?),
            (Phase::Created, _) => {
                *self.size() = Some((rows, columns));
                Ok(())
            }
            (other, _) => Err(self.refuse("resize the terminal of", other)),
        }
    }

    /// Ends its input.
    pub(crate) fn close_stdin(&self) {
        self.input_ended.store(true, Ordering::SeqCst);
        if let Some(relay) = self.relay.get() {
            relay.close_stdin();
        }
    }

    fn size(&self) -> MutexGuard<'_, Option<(u16, u16)>> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_numbers_up_to_64_and_some_end_nothing() {
        assert!([1, 9, 15, 34, 64].iter().all(|&signal| is_deadly(signal).unwrap()));
        assert!([0, 17, 18, 28].iter().all(|&signal| !is_deadly(signal).unwrap()));
        let error = is_deadly(u32::MAX).unwrap_err().to_string();
        assert!(error.contains("signal") && error.contains("4294967295"), "{error}");
    }

    #[tokio::test]
    async fn one_that_never_ran_has_ended_for_all_who_wait() {
        let process = Process::new("x", Paths::default(), 0);
        let waiting = tokio::spawn({
            let process = Arc::clone(&process);
            async move { process.wait().await }
        });
        let exit = process.never_ran(UNKNOWN);
        assert_eq!(waiting.await.unwrap(), exit);
        assert!(process.is_to_start().unwrap_err().to_string().contains("stopped"));
        assert!(matches!(process.signal(0).await, Err(Error::NotFound { .. })));
    }
}
