//! The agent without a hypervisor: in fresh namespaces of one machine.
//!
//! The calling process stays outside and does nothing but wait for its standard input to end, or
//! for the inside to end; then it ends the inside and removes the cgroups that it made, and
//! the run's directory. So even a host that is killed leaves nothing behind.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use linkspan_guest_sys::{Forked, fork};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::arguments::Arguments;
use crate::cgroup;
use crate::init::{self, Scope};
use crate::supervisor::keep_running;

/// Runs the agent in namespaces until standard input ends or the host asks for the end.
///
/// # Errors
/// When the namespaces cannot be made, which takes root.
pub fn run(arguments: &[String]) -> io::Result<i32> {
    let parsed = Arguments::parse(arguments.iter().cloned()).map_err(io::Error::other)?;
    let outcome = contain(arguments);
    cgroup::remove(&parsed.cgroup);
    if let Some(directory) = &parsed.directory {
        let _ = fs::remove_dir_all(directory);
    }
    outcome
}

fn contain(arguments: &[String]) -> io::Result<i32> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET,
    )?;
    let inside = match fork()? {
        Forked::Child => {
            // Should the outside be killed, the kernel ends the inside.
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            std::process::exit(inside(arguments))
        }
        Forked::Parent(inside) => inside,
    };
    let raw = rustix::process::Pid::from_raw(inside.as_raw()).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    let stdin = io::stdin();
    loop {
        let mut ready = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut byte = [0; 1];
        let ended = !ready[1].revents().is_empty()
            && !matches!(rustix::io::read(stdin.as_fd(), &mut byte), Ok(1..));
        if ended {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
        if ended || !ready[0].revents().is_empty() {
            break;
        }
    }
    Ok(match waitpid(inside, None)? {
        WaitStatus::Exited(_, code) => code,
        _ => 0,
    })
}

fn inside(arguments: &[String]) -> i32 {
    if let Err(error) = mount_own() {
        eprintln!("linkspan-guest: set namespaces up: {error}");
        return 1;
    }
    let _ = linkspan_guest_sys::bring_up("lo");
    let agent = |restarts| {
        let Ok(parsed) = Arguments::parse(arguments.iter().cloned()) else { return 2 };
        init::serve(parsed, Scope::Containers, None, restarts)
    };
    let say = |text: &str| eprintln!("linkspan: {text}");
    let end_containers = || {
        if let Ok(parsed) = Arguments::parse(arguments.iter().cloned()) {
            cgroup::kill(&parsed.cgroup);
        }
    };
    match keep_running(agent, say, end_containers) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("linkspan-guest: {error}");
            1
        }
    }
}

/// Mounts that nobody outside sees. What the host shares (its sockets, links to its disks) lies
/// where it wants; `/run` is the inside's own all the same.
fn mount_own() -> io::Result<()> {
    let (none, private) = (None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC);
    mount(none, "/", none, private, none)?;
    let own = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    for directory in ["/run/linkspan", "/run/gcs", "/run/mounts", "/run/layers"] {
        let path = PathBuf::from(directory);
        fs::create_dir_all(&path)?;
        mount(Some("tmpfs"), &path, Some("tmpfs"), own, Some("mode=0755"))?;
    }
    let flags = own | MsFlags::MS_NOEXEC;
    match mount(Some("proc"), Path::new("/proc"), Some("proc"), flags, none) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
