//! A vhost-user vsock device that hands its streams to the process it lives in.
//!
//! A guest's `AF_VSOCK` connections normally end in the host's kernel, or in a daemon that turns them into
//! Unix sockets on disk. Here the device is a value: [`Device::new`] starts one thread that serves QEMU over a
//! socket pair, and every connection the guest opens arrives as a connected [`UnixStream`] in a handler of
//! yours. Nothing needs a name in the file system, and when the [`Device`] is dropped nothing of it is left.
//!
//! What happens on one end of a stream happens on the other: a half-close stays a half-close in both
//! directions, a refused port is refused at once, and bytes written before a close arrive before it.
//!
//! ```no_run
//! use linkspan_vsock::{Accept, Device, Options};
//! use std::sync::mpsc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::new(Options::new(3))?;
//! let (sender, streams) = mpsc::channel();
//! device.listen(1024, Accept::Many, move |stream| sender.send(stream).is_ok())?;
//!
//! let socket = device.take_frontend().expect("taken once");
//! // Start QEMU so that it inherits `socket` as descriptor 10, with the arguments
//! //   -object memory-backend-memfd,id=mem0,size=512M,share=on -machine memory-backend=mem0
//! //   -chardev socket,id=vs0,fd=10 -device vhost-user-vsock-pci,chardev=vs0
//! # drop(socket);
//! let stream = streams.recv()?; // the guest connected to port 1024 of CID 2
//! # drop(stream);
//! # Ok(())
//! # }
//! ```
//!
//! | module       | what it holds                                                     |
//! |--------------|-------------------------------------------------------------------|
//! | `packet`     | the 44-byte header on the wire                                    |
//! | `connection` | one connection's rules: credit, half-close, reset. No IO          |
//! | `memory`     | moving bytes between guest memory and sockets, without a copy     |
//! | `ring`       | one virtqueue and its notifications                               |
//! | `frontend`   | what QEMU says over vhost-user: memory, rings, features           |
//! | `registry`   | who listens on which host port                                    |
//! | `export`     | the same device for other processes, as Unix sockets on disk      |
//! | `worker`     | the thread: an epoll loop that joins all of the above             |
//! | `device`     | the handle                                                        |
//!
//! [`UnixStream`]: std::os::unix::net::UnixStream

mod connection;
mod device;
mod error;
mod export;
mod frontend;
mod memory;
mod packet;
mod registry;
mod ring;
mod worker;

pub use device::{Device, Options};
pub use error::{ConnectError, Ended, Error};
pub use registry::{Accept, GuestStream};
