//! What can go wrong, and how a device ends.

use std::io;
use std::path::PathBuf;

/// Why a device could not be made, or a port not be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 0, 1 and 2 are the hypervisor's, the local machine's and the host's; the highest 32-bit one means any.
    #[error("use context id {0} for a guest: it has to be between 3 and 4294967294")]
    GuestCid(u64),
    /// A descriptor the device needs could not be made.
    #[error("create the device's {what}")]
    Create {
        /// Which one.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The socket at the export path could not be bound.
    #[error("listen on {}", path.display())]
    Export {
        /// The configured path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody listens on that port of this device already, or the port means "any".
    #[error("listen on vsock port {0}: the port is taken")]
    PortTaken(u32),
}

/// Why a connection to the guest did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens on that port in the guest.
    #[error("connect to the guest: it refused")]
    Refused,
    /// The guest's driver is not running (yet).
    #[error("connect to the guest: its vsock driver is not running")]
    NotRunning,
    /// The guest did not answer in [`Options::connect_timeout`](crate::Options::connect_timeout).
    #[error("connect to the guest: it did not answer in time")]
    TimedOut,
    /// The device has as many connections as it may.
    #[error("connect to the guest: the device has its maximum of connections")]
    TooMany,
    /// The process or the system is out of descriptors or memory.
    #[error("connect to the guest: create a socket pair: {0}")]
    Socket(io::ErrorKind),
    /// The device ended, or the guest restarted, before there was an answer.
    #[error("connect to the guest: the device ended")]
    Ended,
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::Refused => io::ErrorKind::ConnectionRefused,
            ConnectError::NotRunning => io::ErrorKind::NotConnected,
            ConnectError::TimedOut => io::ErrorKind::TimedOut,
            ConnectError::TooMany => io::ErrorKind::QuotaExceeded,
            ConnectError::Socket(kind) => kind,
            ConnectError::Ended => io::ErrorKind::ConnectionAborted,
        };
        io::Error::new(kind, error)
    }
}

/// How a device ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// QEMU closed its end: it exited, or the device was unplugged.
    HungUp,
    /// The [`Device`](crate::Device) was dropped.
    Dropped,
    /// Something failed; the text says what.
    Failed(String),
}
