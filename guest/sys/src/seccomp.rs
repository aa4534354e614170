//! Seccomp filters.

use std::io;

/// Puts this thread, and all that it becomes, under a filter: instructions of 8 bytes as the
/// kernel lays them out, and `SECCOMP_FILTER_FLAG_…`.
///
/// # Errors
/// The kernel's: `EINVAL` for a bad program, `EACCES` without the right to have one.
pub fn load_seccomp(program: &[u64], flags: u32) -> io::Result<()> {
    let len = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the filter is too long"))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program outlives the call, has `len` instructions of the kernel's size, and is
    // aligned better than needed; the kernel only reads it.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER as i32),
            libc::c_long::from(flags),
            &raw const program,
        )
    };
    match loaded {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
