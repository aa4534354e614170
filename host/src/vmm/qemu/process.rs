//! One QEMU process, or a helper of it, that cannot outlive us.
//!
//! The kernel's parent-death signal is tied to the *thread* that forked, and tokio's threads come
//! and go. So each process has a keeper: a thread that starts it, waits for it and does nothing
//! else. When we die, by whatever signal, the keeper dies and QEMU with it.
#![allow(unsafe_code)]
// UNSAFE: prctl, getppid, fcntl, unshare and mount between fork and exec.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::error::QemuError;

/// How much of standard error is kept, in bytes.
const STDERR_KEPT: usize = 8 << 10;

/// A process. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    handle: OwnedFd,
    status: watch::Receiver<Option<ExitStatus>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_ended: watch::Receiver<bool>,
}

impl Process {
    /// Starts `program`, which inherits `descriptors` under the numbers they have here. They are
    /// closed here once it runs.
    pub(super) async fn spawn(
        program: PathBuf,
        arguments: Vec<OsString>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, QemuError> {
        Self::spawn_on(program, arguments, descriptors, None).await
    }

    /// As [`spawn`](Self::spawn); the process sees the directory `fixed` read-only.
    pub(super) async fn spawn_on(
        program: PathBuf,
        arguments: Vec<OsString>,
        descriptors: Vec<OwnedFd>,
        fixed: Option<CString>,
    ) -> Result<Self, QemuError> {
        let (started_sender, started) = oneshot::channel();
        let (status_sender, status) = watch::channel(None);
        thread::Builder::new()
            .name("qemu-keeper".into())
            .spawn({
                let program = program.clone();
                move || {
                    let keep = start(program, arguments, descriptors, fixed);
                    let mut child = match keep {
                        Ok((child, handle)) => {
                            let mut child = child;
                            let stderr = child.stderr.take();
                            if started_sender.send(Ok((child.id(), handle, stderr))).is_err() {
                                let _ = child.kill(); // whoever wanted it has gone
                            }
                            child
                        }
                        Err(error) => {
                            let _ = started_sender.send(Err(error));
                            return;
                        }
                    };
                    // It fails only if somebody else has reaped our child; gone it is either way.
                    let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(-1));
                    status_sender.send_replace(Some(status));
                }
            })
            .map_err(QemuError::create("keeper thread"))?;
        let (pid, handle, stderr) = started
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the keeper thread has ended")))
            .map_err(|source| QemuError::Run { path: program, source })?;

        let kept = Arc::new(Mutex::new(Vec::new()));
        let (stderr_done, stderr_ended) = watch::channel(false);
        if let Some(stderr) = stderr {
            let pipe = pipe::Receiver::from_owned_fd(stderr.into())
                .map_err(QemuError::create("standard error pipe"))?;
            tokio::spawn(keep_tail(pipe, Arc::clone(&kept), stderr_done));
        }
        Ok(Self { pid, handle, status, stderr: kept, stderr_ended })
    }

    /// The process id, for people: signals go by descriptor.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the end. The process has been reaped then.
    pub(super) async fn ended(&self) -> ExitStatus {
        self.watch().await
    }

    /// As [`ended`](Self::ended), without keeping the process alive.
    pub(super) fn watch(&self) -> impl Future<Output = ExitStatus> + use<> {
        let mut status = self.status.clone();
        async move {
            let ended = status.wait_for(Option::is_some).await;
            ended.ok().and_then(|status| *status).unwrap_or_else(|| ExitStatus::from_raw(-1))
        }
    }

    /// Kills it; harmless when it has ended.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// The end of what it wrote on standard error; all of it if it has ended.
    pub(super) async fn stderr(&self) -> String {
        if self.status.borrow().is_some() {
            let mut ended = self.stderr_ended.clone();
            let all = ended.wait_for(|&ended| ended);
            // A child of its own could hold the pipe open.
            let _ = timeout(Duration::from_millis(500), all).await;
        }
        let kept = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        super::console::harmless(&kept).trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a process ended, for people.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("QEMU exited with code {code}"),
        (None, Some(9)) => "QEMU was killed (signal 9)".into(),
        (None, Some(signal)) => format!("QEMU was ended by signal {signal}"),
        (None, None) => "QEMU ended".into(),
    }
}

fn start(
    program: PathBuf,
    arguments: Vec<OsString>,
    descriptors: Vec<OwnedFd>,
    fixed: Option<CString>,
) -> io::Result<(Child, OwnedFd)> {
    let us = Pid::from_raw(std::process::id().cast_signed());
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .process_group(0) // a terminal's Ctrl-C is for us to handle
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != us {
            return Err(Errno::SRCH.into()); // we died before the signal was set
        }
        for descriptor in &descriptors {
            fcntl_setfd(descriptor.as_fd(), FdFlags::empty())?;
        }
        if let Some(fixed) = &fixed {
            let fixed = fixed.as_c_str();
            // SAFETY: the file descriptor table, whose unsharing could surprise, is not unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount_bind(fixed, fixed)?;
            mount_remount(fixed, MountFlags::BIND | MountFlags::RDONLY, c"")?;
        }
        Ok(())
    };
    // SAFETY: `prepare` makes a few kinds of system calls and nothing else: it takes no locks and
    // does not allocate, its error values included.
    unsafe { command.pre_exec(prepare) };
    let mut child = command.spawn()?;
    let pid = Pid::from_child(&child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => Ok((child, handle)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error.into())
        }
    }
}

async fn keep_tail(mut pipe: pipe::Receiver, kept: Arc<Mutex<Vec<u8>>>, done: watch::Sender<bool>) {
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let bytes = &buffer[..count];
        tracing::debug!(text = %super::console::harmless(bytes).trim_end(), "QEMU's standard error");
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let excess = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..excess);
    }
    done.send_replace(true);
}
