//! Names of machines: where to dial, where to listen, who came in.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::VmId;

/// The vsock context id that stands for every one of this machine's; only to listen.
pub const CID_ANY: u32 = u32::MAX;
/// The vsock context id of this machine, seen from itself.
pub const CID_LOCAL: u32 = 1;
/// The vsock context id of the host, seen from its guests.
pub const CID_HOST: u32 = 2;

/// The other machine; a port is given separately. See [`Endpoint`](crate::Endpoint) for both.
///
/// Text forms: `vsock:<cid>`, `hyperv:<vm id>`, `hybrid:<base>` (also `hybrid-guest:<base>`) and
/// `hybrid-host:<base>`.
///
/// ```
/// use hyperv_socket::{CID_HOST, Peer};
///
/// let host: Peer = "vsock:2".parse()?;
/// assert_eq!(host, Peer::Vsock { cid: CID_HOST });
/// assert_eq!(host.to_string(), "vsock:2");
/// # Ok::<(), hyperv_socket::ParseAddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// By context id, over `AF_VSOCK` (Linux).
    Vsock {
        /// Context id: 2 is the host, 3 and up are guests.
        cid: u32,
    },
    /// By partition, over `AF_HYPERV` (Windows).
    HyperV {
        /// The partition.
        vm: VmId,
    },
    /// A guest's way to its host over Unix sockets: port P is the socket `<path>_P`.
    HybridGuest {
        /// The base path.
        path: PathBuf,
    },
    /// A host's way into its guest over a Unix socket: the connection goes to `path` and says
    /// which port it wants.
    HybridHost {
        /// The socket the VMM listens on.
        path: PathBuf,
    },
}

/// Where to listen; a port is given separately.
///
/// Text forms: `vsock:<cid>`, `vsock:any`, `hyperv:<vm id>` and `hybrid:<base>` (also
/// `hybrid-host:<base>`).
///
/// ```
/// use hyperv_socket::{CID_ANY, Local};
///
/// assert_eq!("vsock:any".parse(), Ok(Local::Vsock { cid: CID_ANY }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// `AF_VSOCK` (Linux).
    Vsock {
        /// A context id of this machine, or [`CID_ANY`].
        cid: u32,
    },
    /// `AF_HYPERV` (Windows).
    HyperV {
        /// The partition that may connect: a VM's runtime id or [`VmId::WILDCARD`].
        vm: VmId,
    },
    /// The host's side of connections its guest makes: port P is the Unix socket `<path>_P`.
    HybridHost {
        /// The base path.
        path: PathBuf,
    },
}

/// Who connected. What a family does not tell is `None`; a Unix socket tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerAddr {
    /// The other machine's vsock context id.
    pub cid: Option<u32>,
    /// The port it dialled from.
    pub port: Option<u32>,
    /// The other machine's Hyper-V partition.
    pub vm: Option<VmId>,
}

/// The Unix socket that stands for `port` of the hybrid vsock at `base`: `<base>_<port>`.
#[cfg_attr(windows, allow(dead_code, reason = "Windows has no hybrid sockets yet"))]
pub(crate) fn port_path(base: &Path, port: u32) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid } => write!(f, "vsock:{cid}"),
            Self::HyperV { vm } => write!(f, "hyperv:{vm}"),
            Self::HybridGuest { path } => write!(f, "hybrid:{}", path.display()),
            Self::HybridHost { path } => write!(f, "hybrid-host:{}", path.display()),
        }
    }
}

impl FromStr for Peer {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "vsock:<cid>, hyperv:<vm id>, hybrid:<path> or hybrid-host:<path>";
        let parse = |scheme: &str, rest: &str| match scheme {
            "vsock" => Some(Self::Vsock { cid: rest.parse().ok()? }),
            "hyperv" => Some(Self::HyperV { vm: rest.parse().ok()? }),
            "hybrid" | "hybrid-guest" => Some(Self::HybridGuest { path: path(rest)? }),
            "hybrid-host" => Some(Self::HybridHost { path: path(rest)? }),
            _ => None,
        };
        parse_scheme(text, form, parse)
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid: CID_ANY } => f.write_str("vsock:any"),
            Self::Vsock { cid } => write!(f, "vsock:{cid}"),
            Self::HyperV { vm } => write!(f, "hyperv:{vm}"),
            Self::HybridHost { path } => write!(f, "hybrid:{}", path.display()),
        }
    }
}

impl FromStr for Local {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "vsock:<cid>, vsock:any, hyperv:<vm id> or hybrid:<path>";
        let parse = |scheme: &str, rest: &str| match (scheme, rest) {
            ("vsock", "any") => Some(Self::Vsock { cid: CID_ANY }),
            ("vsock", cid) => Some(Self::Vsock { cid: cid.parse().ok()? }),
            ("hyperv", vm) => Some(Self::HyperV { vm: vm.parse().ok()? }),
            ("hybrid" | "hybrid-host", base) => Some(Self::HybridHost { path: path(base)? }),
            _ => None,
        };
        parse_scheme(text, form, parse)
    }
}

/// Parses `<scheme>:<rest>`; `form` is what to tell a person who got it wrong.
pub(crate) fn parse_scheme<T>(
    text: &str,
    form: &'static str,
    parse: impl FnOnce(&str, &str) -> Option<T>,
) -> Result<T, ParseAddressError> {
    let parsed = text.split_once(':').and_then(|(scheme, rest)| parse(scheme, rest));
    parsed.ok_or_else(|| ParseAddressError { text: text.to_owned(), form })
}

pub(crate) fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseAddressError {
    text: String,
    form: &'static str,
}

impl fmt::Display for ParseAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parse socket address {:?}: expected {}", self.text, self.form)
    }
}

impl Error for ParseAddressError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_reads_back_what_it_prints() {
        for text in [
            "vsock:2",
            "hyperv:a42e7cda-d03f-480c-9cc2-a4de20abb878",
            "hybrid:/run/vm.sock",
            "hybrid-host:/run/a:b",
        ] {
            assert_eq!(text.parse::<Peer>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_local_address_reads_back_what_it_prints() {
        for text in [
            "vsock:any",
            "vsock:3",
            "hyperv:00000000-0000-0000-0000-000000000000",
            "hybrid:/run/vm.sock",
        ] {
            assert_eq!(text.parse::<Local>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn one_hybrid_text_names_both_sides_of_the_same_sockets() {
        let path = PathBuf::from("/run/vm.sock");
        assert_eq!("hybrid:/run/vm.sock".parse(), Ok(Peer::HybridGuest { path: path.clone() }));
        assert_eq!("hybrid:/run/vm.sock".parse(), Ok(Local::HybridHost { path }));
    }

    #[test]
    fn a_text_that_is_no_address_is_refused_with_the_forms_that_are() {
        for text in ["", "vsock", "vsock:", "vsock:-1", "vsock:4294967296", "hyperv:2", "hybrid:"] {
            let error = text.parse::<Peer>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("vsock:<cid>"), "{error}");
        }
    }

    #[test]
    fn a_port_is_appended_to_the_base_path() {
        assert_eq!(port_path(Path::new("/a/vm.sock"), 52), Path::new("/a/vm.sock_52"));
    }
}
