//! The process that workers are forked from.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use linkspan_guest_sys::{Forked, fork, receive, send};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, memfd_create};

use super::{Job, OciRuntime, Refusal, Reply, libcontainer_runtime::Libcontainer};

/// Longest reply in bytes; a runtime's message is cut to fit.
pub(super) const REPLY_LIMIT: usize = 16 << 10;

/// Forks the zygote. To be called while this process has one thread and nothing open.
pub(crate) fn start() -> io::Result<OwnedFd> {
    let (ours, theirs) = packet_pair()?;
    match fork()? {
        Forked::Parent(_) => Ok(ours),
        Forked::Child => {
            drop(ours);
            crate::name_process(c"linkspan-zygote");
            // What goes wrong here is told to the agent; its log is not ours to write.
            crate::log::silence();
            let _ = rustix::process::set_parent_process_death_signal(Some(
                rustix::process::Signal::KILL,
            ));
            let result = serve(&theirs, &Libcontainer);
            std::process::exit(i32::from(result.is_err()));
        }
    }
}

/// A pair of sockets that keep messages apart and do not block.
pub(super) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// A file without a name that holds `bytes`.
pub(super) fn sealed_in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("job", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

fn serve(socket: &OwnedFd, runtime: &impl OciRuntime) -> io::Result<()> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&children), None)?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // A worker's reply socket is kept until its end, to answer for one that could not.
    let mut workers: HashMap<Pid, OwnedFd> = HashMap::new();
    loop {
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        reap(&mut workers);
        let mut byte = [0; 1];
        let mut message = match receive(socket, &mut byte) {
            Ok(message) if message.len == 0 => return Ok(()),
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if message.fds.len() < 2 {
            continue;
        }
        let stdio = message.fds.split_off(2).try_into().ok();
        let [payload, reply] = message.fds.try_into().expect("two are left");
        match fork() {
            Ok(Forked::Child) => {
                let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&children), None);
                workers.clear();
                crate::headroom::unprotect();
                answer(&reply, &work(payload, stdio, runtime));
                std::process::exit(0);
            }
            Ok(Forked::Parent(pid)) => drop(workers.insert(pid, reply)),
            Err(error) => {
                answer(&reply, &Err(Refusal::Other(format!("fork a worker: {error}"))));
            }
        }
    }
}

fn reap(workers: &mut HashMap<Pid, OwnedFd>) {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        let Some(pid) = status.pid() else { return };
        let Some(reply) = workers.remove(&pid) else { continue };
        if !matches!(status, WaitStatus::Exited(_, 0)) {
            answer(&reply, &Err(Refusal::Other(format!("the runtime worker ended: {status:?}"))));
        }
    }
}

fn work(payload: OwnedFd, stdio: Option<[OwnedFd; 3]>, runtime: &impl OciRuntime) -> Reply {
    let mut text = Vec::new();
    let job = File::from(payload)
        .read_to_end(&mut text)
        .map_err(|error| error.to_string())
        .and_then(|_| serde_json::from_slice::<Job>(&text).map_err(|error| error.to_string()))
        .map_err(|error| Refusal::Other(format!("read the job: {error}")))?;
    runtime.run(job, stdio)
}

fn answer(socket: &OwnedFd, reply: &Reply) {
    let mut bytes = serde_json::to_vec(reply).unwrap_or_default();
    if bytes.len() > REPLY_LIMIT {
        let cut = Refusal::Other("the runtime failed with a message too long to pass on".into());
        bytes = serde_json::to_vec(&Reply::Err(cut)).unwrap_or_default();
    }
    // The agent may have given up on it.
    let _ = send(socket, &bytes, &[]);
}
