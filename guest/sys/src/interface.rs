//! Network interfaces, as far as it goes without netlink.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_readwrite_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// Brings an interface of this network namespace up.
///
/// # Errors
/// The kernel's; `InvalidInput` for a name that no interface can have.
pub fn bring_up(name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an interface name"));
    }
    // SAFETY: an ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: both calls read and write an ifreq; the flags are the member in use.
    unsafe {
        get_flags(socket.as_raw_fd(), &mut request)?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        set_flags(socket.as_raw_fd(), &mut request)?;
    }
    Ok(())
}
