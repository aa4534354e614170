//! As much of DHCP as it takes to get an address.
//!
//! ```text
//! discover ─> offer ─> request ─> acknowledgement
//! ```
//!
//! All are broadcast: there is no address yet to answer to. The lease is not renewed; it is meant
//! for networks that a host sets up for this machine alone. RFC 2131, RFC 2132.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(30);

const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Up to the options: BOOTP's fixed fields and the cookie.
const FIXED: usize = 240;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACKNOWLEDGEMENT: u8 = 5;
const REFUSAL: u8 = 6;

/// A socket of the namespace that it was opened in.
pub(super) struct Client(UdpSocket);

/// What a server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) routers: Vec<Ipv4Addr>,
    pub(super) servers: Vec<Ipv4Addr>,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    kind: u8,
    server: Option<Ipv4Addr>,
    lease: Lease,
}

impl Client {
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_broadcast(&socket, true)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind_to_device(&socket, interface)?;
        bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)))?;
        Ok(Self(socket.into()))
    }

    /// Asks for a lease, again and again until the limit.
    pub(super) fn ask(&self, hardware: &[u8]) -> io::Result<Lease> {
        let hardware: [u8; 6] = hardware.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = Instant::now() + LIMIT;
        let transaction = u32::from_be_bytes([hardware[2], hardware[3], hardware[4], hardware[5]])
            ^ std::process::id();
        let discover = message(transaction, hardware, DISCOVER, &[]);
        let offer = self.exchange(&discover, transaction, OFFER, end)?;
        let mut chosen = vec![50, 4];
        chosen.extend(offer.lease.address.octets());
        if let Some(server) = offer.server {
            chosen.extend([54, 4]);
            chosen.extend(server.octets());
        }
        let request = message(transaction, hardware, REQUEST, &chosen);
        Ok(self.exchange(&request, transaction, ACKNOWLEDGEMENT, end)?.lease)
    }

    /// Sends until the answer comes, at longer and longer intervals.
    fn exchange(&self, message: &[u8], id: u32, wanted: u8, end: Instant) -> io::Result<Answer> {
        let mut pause = Duration::from_millis(500);
        let mut buffer = [0; 1500];
        while Instant::now() < end {
            self.0.send_to(message, (Ipv4Addr::BROADCAST, 67))?;
            let again = (Instant::now() + pause).min(end);
            loop {
                let left = again.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.0.set_read_timeout(Some(left))?;
                let len = match self.0.recv(&mut buffer) {
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                match parse(&buffer[..len], id) {
                    Some(answer) if answer.kind == wanted => return Ok(answer),
                    Some(answer) if answer.kind == REFUSAL => {
                        return Err(io::Error::other("the DHCP server refuses"));
                    }
                    _ => {}
                }
            }
            pause = (pause * 2).min(Duration::from_secs(8));
        }
        let text = format!("no DHCP server has answered within {} s", LIMIT.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    }
}

fn bind_to_device(socket: &rustix::fd::OwnedFd, interface: &str) -> io::Result<()> {
    nix::sys::socket::setsockopt(
        socket,
        nix::sys::socket::sockopt::BindToDevice,
        &interface.into(),
    )?;
    Ok(())
}

fn message(transaction: u32, hardware: [u8; 6], kind: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; FIXED];
    // A request, on Ethernet, whose addresses have 6 bytes.
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&transaction.to_be_bytes());
    bytes[10] = 0x80; // Answers are to be broadcast.
    bytes[28..34].copy_from_slice(&hardware);
    bytes[236..].copy_from_slice(&COOKIE);
    bytes.extend([53, 1, kind]);
    bytes.extend(options);
    // Mask, routers, name servers.
    bytes.extend([55, 3, 1, 3, 6, 255]);
    bytes
}

fn parse(bytes: &[u8], transaction: u32) -> Option<Answer> {
    let fixed = bytes.get(..FIXED)?;
    if fixed[0] != 2 || fixed[4..8] != transaction.to_be_bytes() || fixed[236..] != COOKIE {
        return None;
    }
    let address = |bytes: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?));
    let mut answer = Answer {
        kind: 0,
        server: None,
        lease: Lease {
            address: address(&fixed[16..20])?,
            prefix: 24,
            routers: Vec::new(),
            servers: Vec::new(),
        },
    };
    let mut rest = &bytes[FIXED..];
    while let Some((&code, tail)) = rest.split_first() {
        rest = match code {
            0 => tail,
            255 => break,
            _ => {
                let (&len, tail) = tail.split_first()?;
                let value = tail.get(..len.into())?;
                let all = || value.chunks_exact(4).filter_map(address).collect();
                match code {
                    1 => answer.lease.prefix = u32::from(address(value)?).leading_ones() as u8,
                    3 => answer.lease.routers = all(),
                    6 => answer.lease.servers = all(),
                    53 => answer.kind = *value.first()?,
                    54 => answer.server = address(value),
                    _ => {}
                }
                &tail[len.into()..]
            }
        };
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Vec<u8> {
        let mut bytes = message(7, [2, 0, 0, 0, 0, 1], OFFER, &[]);
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&[10, 0, 2, 15]);
        bytes.truncate(FIXED);
        bytes.extend([53, 1, OFFER, 0, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 2, 2]);
        bytes.extend([
            6, 8, 10, 0, 2, 3, 10, 0, 2, 4, 54, 4, 10, 0, 2, 2, 51, 4, 0, 1, 81, 128, 255,
        ]);
        bytes
    }

    #[test]
    fn an_offer_is_read_and_no_cut_of_it_is_a_panic() {
        let answer = parse(&offer(), 7).unwrap();
        assert_eq!((answer.kind, answer.server), (OFFER, Some(Ipv4Addr::new(10, 0, 2, 2))));
        assert_eq!(answer.lease.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(answer.lease.prefix, 24);
        assert_eq!(answer.lease.routers, [Ipv4Addr::new(10, 0, 2, 2)]);
        assert_eq!(answer.lease.servers.len(), 2);
        assert_eq!(parse(&offer(), 8), None, "somebody else's");
        for len in 0..offer().len() {
            let _ = parse(&offer()[..len], 7);
        }
    }
}
