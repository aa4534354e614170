//! The least that can answer a host: a static first process that loads the vsock modules, dials
//! the bridge's port, and answers the first bytes with the time since the kernel's start.
//!
//! What an agent takes beyond this is its own.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use nix::time::{ClockId, clock_gettime};

fn main() {
    if let Err(error) = answer() {
        eprintln!("floor: {error}");
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn answer() -> std::io::Result<()> {
    fs::create_dir_all("/proc")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
    for path in fs::read_to_string("/etc/linkspan/modules/vsock")?.lines() {
        let _ = finit_module(fs::File::open(path)?, c"", ModuleInitFlags::empty());
    }
    let socket: OwnedFd =
        socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(2, 0x4000_0000))?;
    // Any connected stream socket reads and writes alike.
    let mut stream = UnixStream::from(socket);
    let mut buffer = [0; 256];
    let _ = stream.read(&mut buffer)?;
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    write!(stream, "{}.{:09} ", now.tv_sec(), now.tv_nsec())?;
    stream.shutdown(Shutdown::Write)?;
    let _ = stream.read(&mut buffer)?;
    Ok(())
}
