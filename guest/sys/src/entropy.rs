//! Entropy from outside.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; 512],
}

nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 0x03, 8), PoolInfo);

/// Gives the kernel's pool bytes and counts every bit of them.
///
/// # Errors
/// The kernel's; it takes root.
pub fn credit_entropy(bytes: &[u8]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/random")?;
    for chunk in bytes.chunks(512) {
        let len = chunk.len() as libc::c_int;
        let mut info = PoolInfo { entropy_count: len * 8, buf_size: len, buf: [0; 512] };
        info.buf[..chunk.len()].copy_from_slice(chunk);
        // SAFETY: `info` is what RNDADDENTROPY reads: two ints and at least `buf_size` bytes.
        unsafe { add_entropy(random.as_raw_fd(), &info) }?;
    }
    Ok(())
}
