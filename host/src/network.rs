//! The network of a machine under QEMU: its user network, which needs no rights on this host.
//!
//! ```text
//! container 10.0.2.15 ── adapter ── QEMU: gateway 10.0.2.2, names 10.0.2.3 ── this host's sockets
//! ```
//!
//! Connections go out as this process's; none come in but those to forwarded ports.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use linkspan_protocol::resource::{IpConfig, Network, Route, instance_of};

/// What of a port is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of this host that leads into the guest.
///
/// Read from `[ADDRESS:]HOST:GUEST[/tcp|/udp]`; without an address, all of this host's lead there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortForward {
    /// Where this host listens; `None` is everywhere.
    pub address: Option<Ipv4Addr>,
    /// The port here.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl FromStr for PortForward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |what: &str| format!("{text:?} is not [ADDRESS:]HOST:GUEST[/udp]: {what}");
        let (ports, transport) = match text.rsplit_once('/') {
            None => (text, Transport::Tcp),
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some((_, other)) => return Err(bad(&format!("{other:?} is neither tcp nor udp"))),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(|| bad("two ports are needed"))?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => {
                let parsed = address.parse();
                let parsed = parsed.map_err(|_| bad(&format!("{address:?} is no IPv4 address")))?;
                (Some(parsed), host)
            }
        };
        let port = |port: &str| match port.parse::<u16>() {
            Ok(number @ 1..) => Ok(number),
            _ => Err(bad(&format!("port {port:?} is not 1 to 65535"))),
        };
        Ok(Self { address, host: port(host)?, guest: port(guest)?, transport })
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.transport {
            Transport::Tcp => Ok(()),
            Transport::Udp => f.write_str("/udp"),
        }
    }
}

/// The one adapter of a machine with a user network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserNetwork {
    pub(crate) forwards: Vec<PortForward>,
}

impl UserNetwork {
    /// Locally administered: nobody else's.
    pub(crate) const MAC: &'static str = "02:4c:53:00:00:01";
    const ADDRESS: &'static str = "10.0.2.15";
    const GATEWAY: &'static str = "10.0.2.2";
    const NAMES: &'static str = "10.0.2.3";
    pub(crate) const NAMESPACE: &'static str = "6c696e6b-7370-616e-0000-000000000001";

    /// What the guest is told of the adapter.
    pub(crate) fn adapter() -> Network {
        Network {
            namespace_id: Self::NAMESPACE.to_owned(),
            id: instance_of(Self::MAC).unwrap_or_default(),
            mac_address: Self::MAC.replace(':', "-").to_uppercase(),
            dns_server_list: Self::NAMES.to_owned(),
            ip_configs: vec![IpConfig { ip_address: Self::ADDRESS.to_owned(), prefix_length: 24 }],
            routes: vec![Route {
                next_hop: Self::GATEWAY.to_owned(),
                destination_prefix: "0.0.0.0/0".to_owned(),
                metric: 0,
            }],
            ..Network::default()
        }
    }

    /// QEMU's `-netdev`.
    pub(crate) fn netdev(&self) -> String {
        let mut text = "user,id=net0,ipv6=off".to_owned();
        for forward in &self.forwards {
            let transport = match forward.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            let address = forward.address.map(|address| address.to_string()).unwrap_or_default();
            let (host, guest) = (forward.host, forward.guest);
            text += &format!(",hostfwd={transport}:{address}:{host}-:{guest}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_read_as_it_is_written() {
        for text in ["8080:80", "53:5353/udp", "127.0.0.1:8080:80"] {
            assert_eq!(text.parse::<PortForward>().unwrap().to_string(), text);
        }
        assert_eq!("1:2/tcp".parse::<PortForward>().unwrap().to_string(), "1:2");
        let forwards = ["8080:80", "127.0.0.1:53:5353/udp"].map(|text| text.parse().unwrap());
        let network = UserNetwork { forwards: forwards.to_vec() };
        let expected = "user,id=net0,ipv6=off,hostfwd=tcp::8080-:80,hostfwd=udp:127.0.0.1:53-:5353";
        assert_eq!(network.netdev(), expected);
    }

    #[test]
    fn what_is_no_forward_is_told_with_its_value() {
        for (text, named) in [
            ("80", "two ports"),
            ("0:80", "\"0\""),
            ("80:65536", "\"65536\""),
            ("80:80/sctp", "sctp"),
            ("here:80:80", "\"here\""),
            ("80:80,hostfwd=x", "80,hostfwd=x"),
            ("", "two ports"),
        ] {
            let error = text.parse::<PortForward>().unwrap_err();
            assert!(error.contains(named) && error.contains(text), "{error}");
        }
    }
}
