//! The kernel calls of the guest agent that Rust cannot check.
//!
//! UNSAFE, and nothing else is: fork; file descriptors that come with a message; what happens
//! between fork and exec (setsid, the controlling terminal, standard descriptors); the ioctls for
//! entropy, for device-mapper and for bringing an interface up; changing the clock; asking for
//! device programs of cgroups; settings of the allocator; tokio's registration of a descriptor.

#![cfg(target_os = "linux")]

mod cgroup;
mod clock;
mod descriptors;
mod device_mapper;
mod device_program;
mod entropy;
mod fork;
mod interface;
mod memory;
mod register;
mod seccomp;
mod spawn;

pub use cgroup::has_device_programs;
pub use clock::{Adjustment, adjust_clock};
pub use descriptors::{Received, receive, send};
pub use device_mapper::{DeviceMapper, Target};
pub use device_program::{attach_device_program, load_device_program};
pub use entropy::credit_entropy;
pub use fork::{Forked, fork};
pub use interface::bring_up;
pub use memory::return_freed_memory;
pub use register::register;
pub use seccomp::load_seccomp;
pub use spawn::{Stdio, spawn};
