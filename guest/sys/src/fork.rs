//! fork(2), for programs that have one thread.

use std::io;

use nix::unistd::{ForkResult, Pid};

/// Which of the two one is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's pid.
    Parent(Pid),
}

/// Makes a second process that goes on from here.
///
/// # Errors
/// The kernel's; or `InvalidInput` when this process has more than one thread, because the
/// child's memory could then be in any state.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        let why = "fork needs a process with one thread";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    // SAFETY: there is one thread, so that no lock is held by one that the child lacks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Forked::Child),
        ForkResult::Parent { child } => Ok(Forked::Parent(child)),
    }
}
