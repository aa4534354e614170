//! Programs outside of containers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where a program's standard streams go.
#[derive(Debug)]
pub enum Stdio {
    /// To these; a missing one is closed in the program.
    Descriptors([Option<OwnedFd>; 3]),
    /// All to a terminal, which becomes the controlling one.
    Terminal(OwnedFd),
}

/// Starts a program in a session of its own, and in the cgroups whose `cgroup.procs` are given,
/// as killable as any for want of memory. Returns its pid. Whoever reaps this process's
/// children learns of its end.
///
/// # Errors
/// The kernel's, of the exec as well.
pub fn spawn(command: &mut Command, stdio: Stdio, cgroups: &[OwnedFd]) -> io::Result<u32> {
    for set in [Command::stdin, Command::stdout, Command::stderr] {
        set(command, std::process::Stdio::null());
    }
    let raw = match &stdio {
        Stdio::Descriptors(fds) => fds.each_ref().map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd)),
        Stdio::Terminal(fd) => [Some(fd.as_raw_fd()); 3],
    };
    let terminal = matches!(stdio, Stdio::Terminal(_));
    let cgroups: Vec<_> = cgroups.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure makes system calls only, on descriptors that `stdio` keeps open until
    // the program runs.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            // Neither is worth not running the program.
            for &cgroup in &cgroups {
                libc::write(cgroup, c"0".as_ptr().cast(), 1);
            }
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
            if score >= 0 {
                libc::write(score, c"0".as_ptr().cast(), 1);
                libc::close(score);
            }
            for (standard, fd) in raw.into_iter().enumerate() {
                let standard = standard as libc::c_int;
                let result = match fd {
                    Some(fd) => libc::dup2(fd, standard),
                    None => libc::close(standard),
                };
                if result < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            // Signals that the agent ignores or blocks are the program's own affair.
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            Ok(())
        });
    }
    // The handle would reap the child; its pid is all that is wanted.
    let child = command.spawn()?;
    Ok(child.id())
}
