//! The kernel's network configuration, asked and told over rtnetlink.
//!
//! A socket belongs to the namespace that it was opened in, whoever uses it later. So one is
//! opened by a thread that enters the namespace and ends, and nobody else has to move.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// A network namespace.
#[derive(Debug)]
pub(super) struct NetworkNamespace(OwnedFd);

impl NetworkNamespace {
    /// The one of a process.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self(File::open(Path::new("/proc").join(pid.to_string()).join("ns/net"))?.into()))
    }

    /// This process's own.
    pub(super) fn own() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/ns/net")?.into()))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Does something in it, on a thread of its own.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(64 << 10);
            let thread = thread.spawn_scoped(scope, || {
                move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            })?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a network thread panicked")))
        })
    }

    /// Speaks with it.
    pub(super) fn netlink(&self) -> io::Result<Netlink> {
        let mut socket = self.run(|| Socket::new(NETLINK_ROUTE))?;
        socket.bind_auto()?;
        Ok(Netlink(socket))
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Of the link layer, mostly 6 bytes.
    pub(super) address: Vec<u8>,
    pub(super) mtu: u32,
}

/// A route to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NewRoute {
    /// `None` is everything.
    pub(super) destination: Option<(IpAddr, u8)>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) metric: u32,
    pub(super) table: u32,
    /// The gateway is on the link, whatever its address.
    pub(super) on_link: bool,
    pub(super) link: u32,
}

/// A conversation with the kernel about one namespace.
pub(super) struct Netlink(Socket);

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Netlink {
    /// Speaks with this process's own namespace.
    pub(super) fn own() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }

    /// Tells the kernel something.
    fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        self.receive(|_| {})
    }

    /// Reads answers up to the last.
    fn receive(&mut self, mut take: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                let length = (message.header.length as usize).next_multiple_of(4);
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => take(inner),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(()),
                            Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                        };
                    }
                    _ => {}
                }
                if length == 0 {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        self.send(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let mut links = Vec::new();
        self.receive(|message| {
            let RouteNetlinkMessage::NewLink(message) = message else { return };
            let mut link = Link {
                index: message.header.index,
                name: String::new(),
                address: Vec::new(),
                mtu: 0,
            };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Address(address) => link.address = address,
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    _ => {}
                }
            }
            links.push(link);
        })?;
        Ok(links)
    }

    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    fn set(
        &mut self,
        index: u32,
        up: Option<bool>,
        attributes: Vec<LinkAttribute>,
    ) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        message.attributes = attributes;
        self.tell(RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(super) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        self.set(index, Some(up), Vec::new())
    }

    pub(super) fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.set(index, None, vec![LinkAttribute::Mtu(mtu)])
    }

    /// Moves a link, which has to be down, into another namespace and names it there.
    pub(super) fn hand_over(
        &mut self,
        index: u32,
        to: &NetworkNamespace,
        name: &str,
    ) -> io::Result<()> {
        let attributes = vec![
            LinkAttribute::NetNsFd(to.as_fd().as_raw_fd()),
            LinkAttribute::IfName(name.to_owned()),
        ];
        self.set(index, None, attributes)
    }

    pub(super) fn add_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.scope = AddressScope::Universe;
        message.header.index = link;
        message.attributes = vec![AddressAttribute::Address(address)];
        match address {
            IpAddr::V4(v4) => {
                message.attributes.push(AddressAttribute::Local(address));
                if prefix <= 30 {
                    let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                    let broadcast = Ipv4Addr::from(u32::from(v4) | host);
                    message.attributes.push(AddressAttribute::Broadcast(broadcast));
                }
            }
            // The host has made sure that it is the only one; a container can use it at once.
            IpAddr::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
        }
        self.tell(RouteNetlinkMessage::NewAddress(message), CREATE)
    }

    /// Takes all addresses off a link, and with them their routes.
    pub(super) fn flush(&mut self, link: u32) -> io::Result<()> {
        self.send(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let mut found = Vec::new();
        self.receive(|message| {
            if let RouteNetlinkMessage::NewAddress(message) = message
                && message.header.index == link
            {
                found.push(message);
            }
        })?;
        for message in found {
            self.tell(RouteNetlinkMessage::DelAddress(message), 0)?;
        }
        Ok(())
    }

    pub(super) fn add_route(&mut self, route: &NewRoute) -> io::Result<()> {
        let any = route.destination.map(|(address, _)| address).or(route.gateway);
        let any = any.ok_or(io::ErrorKind::InvalidInput)?;
        let mut message = RouteMessage::default();
        message.header.address_family = family(any);
        message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        message.header.scope = RouteScope::Universe;
        if route.on_link {
            message.header.flags = RouteFlags::Onlink;
        }
        if let Some((address, prefix)) = route.destination {
            message.header.destination_prefix_length = prefix;
            message.attributes.push(RouteAttribute::Destination(address.into()));
        }
        message
            .attributes
            .extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        message.attributes.push(RouteAttribute::Oif(route.link));
        if route.metric != 0 {
            message.attributes.push(RouteAttribute::Priority(route.metric));
        }
        self.tell(RouteNetlinkMessage::NewRoute(message), CREATE)
    }

    /// Lets what comes from an address be routed by a table of its own.
    pub(super) fn add_rule(&mut self, from: IpAddr, table: u8, priority: u32) -> io::Result<()> {
        let message = rule(from, table, priority);
        self.tell(RouteNetlinkMessage::NewRule(message), CREATE)
    }

    pub(super) fn remove_rule(&mut self, from: IpAddr, table: u8, priority: u32) -> io::Result<()> {
        self.tell(RouteNetlinkMessage::DelRule(rule(from, table, priority)), 0)
    }
}

fn rule(from: IpAddr, table: u8, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(from);
    message.header.src_len = bits(from);
    message.header.table = table;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Source(from), RuleAttribute::Priority(priority)];
    message
}
