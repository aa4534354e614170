//! The only caller of wait.
//!
//! The agent's children are of two kinds: processes that somebody awaits, and strangers, which
//! containers without a pid namespace of their own or exited helpers leave behind. Both are
//! reaped here, when SIGCHLD says so. A process is only registered once it runs, so while one is
//! on its way ([`Reaper::expect`]) strangers stay zombies: its pid cannot be taken by another,
//! and its exit cannot be lost.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{debug, warn};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Reaps, and tells who waits. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    awaited: RefCell<HashMap<Pid, watch::Sender<Option<Exit>>>>,
    expected: Cell<usize>,
}

/// A child that has not been reaped when this was made: signals reach it or nobody.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    pidfd: OwnedFd,
    pub(crate) exit: watch::Receiver<Option<Exit>>,
}

impl Child {
    /// Sends a signal. `NotFound` when the process has exited.
    pub(crate) fn signal(&self, number: i32) -> io::Result<()> {
        // SAFETY-free route: rustix names the standard signals; others are refused.
        let signal = Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
        match pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Err(rustix::io::Errno::SRCH) => Err(io::ErrorKind::NotFound.into()),
            result => Ok(result?),
        }
    }

    /// Waits for the end.
    pub(crate) async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.expect("waited for"),
            // The reaper is gone, and with it the agent.
            Err(_) => std::future::pending().await,
        }
    }
}

/// While one of these exists, a child may come that is not registered yet.
pub(crate) struct Expectation {
    reaper: Reaper,
}

impl Expectation {
    /// Registers a child that has come.
    pub(crate) fn register(&self, pid: u32) -> io::Result<Child> {
        let number = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        let raw = rustix::process::Pid::from_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        let (sender, exit) = watch::channel(None);
        self.reaper.shared.awaited.borrow_mut().insert(Pid::from_raw(number), sender);
        Ok(Child { pid, pidfd, exit })
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let expected = &self.reaper.shared.expected;
        expected.set(expected.get() - 1);
        self.reaper.reap();
    }
}

impl Reaper {
    /// Reaps whenever a child ends, for ever.
    pub(crate) async fn run(self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            children.recv().await;
        }
    }

    /// Says that a child is about to come.
    pub(crate) fn expect(&self) -> Expectation {
        self.shared.expected.set(self.shared.expected.get() + 1);
        Expectation { reaper: self.clone() }
    }

    fn reap(&self) {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::All, peek) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => {}
                Err(error) => return warn!(%error, "waitid"),
                Ok(status) => {
                    let Some(pid) = status.pid() else { return };
                    let known = self.shared.awaited.borrow().contains_key(&pid);
                    if !known && self.shared.expected.get() > 0 {
                        return self.reap_known();
                    }
                    self.reap_one(pid);
                }
            }
        }
    }

    /// A stranger is in front and may not be touched: look at the others one by one.
    fn reap_known(&self) {
        let pids: Vec<Pid> = self.shared.awaited.borrow().keys().copied().collect();
        pids.into_iter().for_each(|pid| self.reap_one(pid));
    }

    fn reap_one(&self, pid: Pid) {
        let exit = match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => Exit::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal as i32),
            _ => return,
        };
        match self.shared.awaited.borrow_mut().remove(&pid) {
            Some(waiting) => drop(waiting.send(Some(exit))),
            None => debug!(%pid, ?exit, "reaped a stranger"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_runtime<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    // One test, because a process has one reaper and tests share a process.
    #[test]
    fn an_exit_before_registration_is_not_lost_and_a_dead_child_gets_no_signal() {
        in_runtime(async {
            let reaper = Reaper::default();
            let expectation = reaper.expect();
            let pid = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap().id();
            // Let it end first: its pipe-less exit can be seen without reaping it.
            waitid(Id::Pid(Pid::from_raw(pid as i32)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                .unwrap();
            reaper.reap();
            let child = expectation.register(pid).unwrap();
            drop(expectation);
            assert_eq!(child.exited().await, Exit::Code(7));
            assert_eq!(child.signal(15).unwrap_err().kind(), io::ErrorKind::NotFound);

            let expectation = reaper.expect();
            let pid = std::process::Command::new("sleep").arg("1000").spawn().unwrap().id();
            let child = expectation.register(pid).unwrap();
            drop(expectation);
            child.signal(9).unwrap();
            waitid(Id::Pid(Pid::from_raw(pid as i32)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                .unwrap();
            reaper.reap();
            assert_eq!(child.exited().await, Exit::Signal(9));
        });
    }
}
