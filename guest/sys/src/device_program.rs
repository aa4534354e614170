//! Programs that decide which devices a cgroup's processes may use.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The members of `bpf_attr` that loading uses.
#[repr(C, align(8))]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    rest: [u64; 6],
}

/// Those that attaching uses.
#[repr(C, align(8))]
struct Attach {
    cgroup: u32,
    program: u32,
    kind: u32,
    flags: u32,
    rest: [u64; 6],
}

/// Loads a program: instructions of 8 bytes as the kernel lays them out.
///
/// # Errors
/// The kernel's: `EINVAL` or `EACCES` for a program that it does not trust, `ENOSYS` without BPF.
pub fn load_device_program(program: &[u64]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count,
        instructions: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        rest: [0; 6],
    };
    // SAFETY: the call reads a `bpf_attr` of the given size; both its pointers live as long as the
    // call, and the instructions are as many as it says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    match i32::try_from(result) {
        // SAFETY: just opened, and owned by nobody else.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a program decide for a cgroup, an open directory, beside those that do already.
///
/// # Errors
/// The kernel's.
pub fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let attach = Attach {
        cgroup: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        rest: [0; 6],
    };
    // SAFETY: the call reads a `bpf_attr` of the given size, without pointers.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
