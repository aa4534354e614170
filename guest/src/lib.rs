//! The guest agent of a utility VM.
//!
//! One binary, four roles, one process each:
//!
//! ```text
//! pid 1   init or loopback   mounts, modules, reaping; starts the agent again when it dies
//!  └─ agent                  the bridge: one thread, a task per request
//!      └─ zygote             forks a worker for each runtime job, so that the agent never forks
//!          └─ worker         libcontainer: makes a container or joins one, answers, ends
//! ```
//!
//! Pid 1 holds no state and parses nothing that a host sends, so nothing can bring the machine
//! down with it. The agent is the subreaper of its containers and the only one to reap them.

#![cfg(target_os = "linux")]

pub mod agent;
pub mod arguments;
mod boot_command;
mod cgroup;
mod clock;
mod container;
mod dispatch;
mod error;
mod fault;
mod freezer;
mod guest_path;
mod headroom;
pub mod init;
mod kmsg;
pub mod log;
pub mod loopback;
mod modules;
mod mountinfo;
mod network;
mod oom;
mod process;
mod reaper;
mod relay;
mod resource;
mod runtime;
mod seccomp;
mod stdio;
mod storage;
mod supervisor;
mod tasks;
mod terminal;
mod threads;
pub mod tools;
mod uvm;
pub mod vsock_exec;

pub use error::Error;

/// What the agent's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names this process, for whoever lists processes.
pub(crate) fn name_process(name: &std::ffi::CStr) {
    // Nothing depends on it.
    let _ = rustix::thread::set_name(name);
}
