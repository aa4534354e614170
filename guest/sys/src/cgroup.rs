//! What the kernel can do with cgroups of version 2.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_CGROUP_DEVICE: u32 = 6;

/// The member of `bpf_attr` that a query uses.
#[repr(C, align(8))]
struct Query {
    target_fd: u32,
    attach_type: u32,
    rest: [u64; 7],
}

/// Whether programs can decide about devices for this cgroup's processes: without them,
/// containers' devices cannot be kept in bounds.
pub fn has_device_programs(cgroup: impl AsFd) -> bool {
    let target_fd = cgroup.as_fd().as_raw_fd() as u32;
    let query = Query { target_fd, attach_type: BPF_CGROUP_DEVICE, rest: [0; 7] };
    // SAFETY: the call reads and writes a `bpf_attr` of the given size; its pointers are null, so
    // that the kernel counts programs and names none.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw const query, size_of::<Query>())
    };
    let error = io::Error::last_os_error().raw_os_error();
    result == 0 || !matches!(error, Some(libc::ENOSYS | libc::EINVAL))
}
