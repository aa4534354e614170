//! A machine and a port in one text, for command lines and configuration files.

use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, io};

use crate::address::{parse_scheme, path};
use crate::{ParseAddressError, Peer, Stream, connect, sys};

/// One service to dial: a port of a [`Peer`], or a Unix socket of its own.
///
/// Text forms: a peer's with `:<port>` after it, or `unix:<path>`.
///
/// ```
/// use hyperv_socket::{Endpoint, Peer};
///
/// let bridge: Endpoint = "vsock:2:1073741824".parse()?;
/// assert_eq!(bridge, Endpoint::Port { peer: Peer::Vsock { cid: 2 }, port: 0x4000_0000 });
/// # Ok::<(), hyperv_socket::ParseAddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A port of another machine.
    Port {
        /// The machine.
        peer: Peer,
        /// Its port.
        port: u32,
    },
    /// A plain Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
}

impl Endpoint {
    /// Connects to the service.
    ///
    /// # Errors
    ///
    /// As [`connect`].
    pub async fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Port { peer, port } => connect(peer, *port).await,
            Self::Unix { path } => sys::connect_unix(path).await,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { peer, port } => write!(f, "{peer}:{port}"),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_scheme(text, "unix:<path> or <peer>:<port>", |scheme, rest| {
            if scheme == "unix" {
                return Some(Self::Unix { path: path(rest)? });
            }
            let (peer, port) = text.rsplit_once(':')?;
            Some(Self::Port { peer: peer.parse().ok()?, port: port.parse().ok()? })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_reads_back_what_it_prints() {
        for text in [
            "vsock:2:1073741824",
            "hyperv:a42e7cda-d03f-480c-9cc2-a4de20abb878:1",
            "hybrid:/run/vm.sock:109",
            "hybrid-host:/run/vm.sock:564",
            "unix:/run/a:1",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_endpoint_without_a_port_is_refused() {
        for text in ["vsock:2", "hybrid:/run/vm.sock", "unix:", "tcp:1:2"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
