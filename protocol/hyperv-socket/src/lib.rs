//! One stream and listener for tokio over AF_HYPERV, AF_VSOCK and hybrid-vsock Unix sockets.
//!
//! A virtual machine and its host talk over sockets whose family depends on who looks: a Windows
//! host sees `AF_HYPERV` with a pair of GUIDs, a Linux guest or host sees `AF_VSOCK` with a context
//! id and a port, and VMMs such as Firecracker and Cloud Hypervisor show the host plain Unix
//! sockets ("hybrid vsock"). A program that speaks some protocol over them should not care, so it
//! names the other machine with a [`Peer`], adds a 32-bit port, and gets a [`Stream`].
//!
//! | [`Peer`] or [`Local`] | text form      | [`connect`] with port P           | [`Listener::bind`] with port P |
//! |-----------------------|----------------|-----------------------------------|--------------------------------|
//! | `Vsock`               | `vsock:2`      | `AF_VSOCK`, that CID, port P      | the same                       |
//! | `HyperV`              | `hyperv:<vm>`  | `AF_HYPERV`, service GUID of P    | the same                       |
//! | `HybridGuest`         | `hybrid:/base` | the Unix socket `/base_P`         |                                |
//! | `HybridHost`          | see below      | `/base`, then says `CONNECT P`    | the Unix socket `/base_P`      |
//!
//! The text form `hybrid:/base` always stands for the files `/base_P`: it parses to
//! [`Peer::HybridGuest`] for the side that dials and to [`Local::HybridHost`] for the side that
//! listens. A host that dials into a guest uses [`Peer::HybridHost`], `hybrid-host:/base`.
//!
//! ```
//! use std::net::Shutdown;
//!
//! use hyperv_socket::{Listener, Local, Peer, connect};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let base = directory.path().join("vm.sock").display().to_string();
//! // The host listens, as Firecracker's would, at `<base>_1024` ...
//! let local: Local = format!("hybrid:{base}").parse()?;
//! let listener = Listener::bind(&local, 1024)?;
//!
//! // ... the guest's side dials; in a real guest the peer is "vsock:2" ...
//! let peer: Peer = format!("hybrid:{base}").parse()?;
//! let mut guest = connect(&peer, 1024).await?;
//! let (mut host, _) = listener.accept().await?;
//!
//! // ... and a half-close ends one direction only.
//! guest.write_all(b"ping").await?;
//! guest.shutdown(Shutdown::Write)?;
//! let mut request = String::new();
//! host.read_to_string(&mut request).await?;
//! host.write_all(b"pong").await?;
//! drop(host);
//! let mut reply = String::new();
//! guest.read_to_string(&mut reply).await?;
//! assert_eq!((request.as_str(), reply.as_str()), ("ping", "pong"));
//! # Ok(())
//! # }
//! ```
//!
//! # Platforms
//!
//! Linux is complete. On Windows the crate compiles and [`sockaddr`] has the address layout, but
//! the socket calls themselves are not written yet: [`connect`] and [`Listener::bind`] answer with
//! [`std::io::ErrorKind::Unsupported`].

mod address;
mod context;
mod endpoint;
pub mod hybrid;
mod id;
pub mod sockaddr;
mod split;

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod sys;
#[cfg(windows)]
#[path = "windows.rs"]
mod sys;

pub use address::{CID_ANY, CID_HOST, CID_LOCAL, Local, ParseAddressError, Peer, PeerAddr};
pub use endpoint::Endpoint;
pub use hybrid::accept_hybrid;
pub use id::{ServiceId, VmId};
pub use split::{ReadHalf, ReadRef, ReuniteError, WriteHalf, WriteRef};
pub use sys::{Listener, Stream, connect};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
