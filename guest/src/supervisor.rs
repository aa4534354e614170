//! What pid 1 does once everything is set up: keep an agent running, and reap.
//!
//! It knows nothing of the bridge, so nothing that a host or a container does can end it, and
//! with it the machine.

use std::io;
use std::time::{Duration, Instant};

use linkspan_guest_sys::{Forked, fork};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// The agent's exit code when the machine is to go off.
pub const POWER_OFF: i32 = 90;

/// An agent that lives shorter than this does not even start properly.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// Runs `agent` in a child, and again each time it crashes; it is told how often that was. `say`
/// gets a line for people. Returns when the agent asks for the end.
pub(crate) fn keep_running(
    agent: impl Fn(u32) -> i32,
    say: impl Fn(&str),
    between: impl Fn(),
) -> io::Result<()> {
    let mut restarts = 0;
    loop {
        let started = Instant::now();
        let child = match fork()? {
            Forked::Child => std::process::exit(agent(restarts)),
            Forked::Parent(child) => child,
        };
        match reap_until(child)? {
            WaitStatus::Exited(_, POWER_OFF) => return Ok(()),
            status => {
                restarts += 1;
                say(&format!("the guest agent ended ({status:?}); starting it again"));
            }
        }
        between();
        if started.elapsed() < SHORT_LIFE {
            // Not a wait for anything: a brake, so that a broken image does not spin.
            std::thread::sleep(SHORT_LIFE);
        }
    }
}

/// Runs `program` in a child, once, and reaps everything until it ends. Returns its exit code, or
/// 128 and the signal that ended it.
pub(crate) fn run_once(program: impl FnOnce() -> i32) -> io::Result<u8> {
    let child = match fork()? {
        Forked::Child => std::process::exit(program()),
        Forked::Parent(child) => child,
    };
    Ok(match reap_until(child)? {
        WaitStatus::Exited(_, code) => code as u8,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as u8,
        _ => 255,
    })
}

fn reap_until(agent: Pid) -> io::Result<WaitStatus> {
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(agent) => return Ok(status),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
