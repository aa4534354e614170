//! One adapter's interface: into a namespace, configured, and back.

use std::io;
use std::net::IpAddr;

use linkspan_protocol::resource::Network;

use super::netlink::{Netlink, NetworkNamespace, NewRoute};
use crate::error::Context;
use crate::{Error, Result};

/// The table of the first adapter that is routed by its addresses; further ones have the next.
pub(super) const FIRST_TABLE: u8 = 101;
const RULE_PRIORITY: u32 = 5;
const LOW_METRIC: u32 = 500;
/// The kernel's table for all else.
const MAIN_TABLE: u8 = 254;

/// What an adapter is to have, checked before anything is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    overhead: u32,
    addresses: Vec<(IpAddr, u8)>,
    routes: Vec<PlannedRoute>,
    /// Routes by the adapter's addresses in a table of their own.
    table: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PlannedRoute {
    destination: Option<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
    metric: u32,
}

impl Plan {
    /// `table` is for an adapter that is routed by its addresses.
    pub(super) fn of(settings: &Network, table: Option<u8>) -> Result<Self> {
        let mut addresses = Vec::new();
        for config in &settings.ip_configs {
            let (text, prefix) = (&config.ip_address, config.prefix_length);
            let bad = || Error::Argument {
                field: "IPConfigs",
                reason: format!("parsing address {text}/{prefix} failed"),
            };
            let address: IpAddr = text.parse().map_err(|_| bad())?;
            if prefix > if address.is_ipv4() { 32 } else { 128 } {
                return Err(bad());
            }
            addresses.push((address, prefix));
        }
        let mut routes = Vec::new();
        for route in &settings.routes {
            let gateway: Option<IpAddr> = route.next_hop.parse().ok();
            let is_default = matches!(route.destination_prefix.as_str(), "0.0.0.0/0" | "::/0");
            if is_default && gateway.is_some_and(|gateway| gateway.is_unspecified()) {
                continue;
            }
            let gateway = gateway.filter(|gateway| !gateway.is_unspecified());
            let destination = match is_default {
                true => None,
                false => Some(subnet(&route.destination_prefix)?),
            };
            if destination.is_none() && gateway.is_none() {
                let reason = format!("{:?} has neither gateway nor destination", route.next_hop);
                return Err(Error::Argument { field: "Routes", reason });
            }
            let metric = match (route.metric, table) {
                (0, Some(_)) => LOW_METRIC,
                (metric, _) => metric.into(),
            };
            routes.push(PlannedRoute { destination, gateway, metric });
        }
        Ok(Self { overhead: settings.encap_overhead.into(), addresses, routes, table })
    }

    /// The table of its own.
    pub(super) fn table(&self) -> Option<u8> {
        self.table
    }

    /// Whether its addresses come from a DHCP server.
    pub(super) fn needs_dhcp(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Configures an interface by name.
    pub(super) fn apply(&self, netlink: &mut Netlink, name: &str) -> Result<()> {
        let what = || format!("configure interface {name}");
        let link = netlink.link(name).context(what)?;
        let link = link.ok_or(io::ErrorKind::NotFound).context(what)?;
        if self.overhead != 0 {
            let mtu = link.mtu.saturating_sub(self.overhead);
            netlink.set_mtu(link.index, mtu).context(|| format!("set MTU {mtu} of {name}"))?;
        }
        netlink.set_up(link.index, true).context(|| format!("set {name} up"))?;
        for &(address, prefix) in &self.addresses {
            let added = netlink.add_address(link.index, address, prefix);
            added.context(|| format!("add address {address}/{prefix} to {name}"))?;
            if let Some(table) = self.table {
                let added = netlink.add_rule(address, table, RULE_PRIORITY);
                added.context(|| format!("route what comes from {address} by table {table}"))?;
            }
        }
        for route in &self.routes {
            let mut wanted = NewRoute {
                destination: route.destination,
                gateway: route.gateway,
                metric: route.metric,
                table: self.table.unwrap_or(MAIN_TABLE).into(),
                on_link: false,
                link: link.index,
            };
            let mut added = netlink.add_route(&wanted);
            let unreachable = |error: &io::Error| {
                matches!(
                    error.raw_os_error(),
                    Some(nix::libc::ENETUNREACH | nix::libc::EHOSTUNREACH)
                )
            };
            if wanted.gateway.is_some() && added.as_ref().is_err_and(unreachable) {
                // A gateway outside of the subnet: it is reached through this link all the same.
                wanted.on_link = true;
                added = netlink.add_route(&wanted);
            }
            added.context(|| format!("add a route of {name}: {wanted:?}"))?;
        }
        Ok(())
    }

    /// Takes back what does not go with the interface.
    pub(super) fn undo_rules(&self, netlink: &mut Netlink) {
        for &(address, _) in &self.addresses {
            if let Some(table) = self.table {
                let _ = netlink.remove_rule(address, table, RULE_PRIORITY);
            }
        }
    }
}

fn subnet(text: &str) -> Result<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        // The kernel takes no bits of a host here.
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
            _ => return None,
        };
        Some((address, prefix))
    });
    parsed.ok_or_else(|| {
        let reason = format!("parsing route dst address {text} failed");
        Error::Argument { field: "Routes", reason }
    })
}

/// Moves an interface from one namespace to another. Where its name is taken there, it gets
/// another one, which is returned.
pub(super) fn hand_over(
    from: &mut Netlink,
    to: (&NetworkNamespace, &mut Netlink),
    name: &str,
) -> Result<String> {
    let what = || format!("move interface {name} to another network namespace");
    let link = from.link(name).context(what)?;
    let link = link.ok_or(io::ErrorKind::NotFound).context(what)?;
    from.set_up(link.index, false).context(|| format!("set {name} down"))?;
    let taken = to.1.links().context(what)?;
    let free = |name: &str| !taken.iter().any(|link| link.name == name);
    let numbered = || (0..4096).map(|number| format!("eth{number}")).find(|name| free(name));
    let name = if free(name) { name.to_owned() } else { numbered().unwrap_or(name.to_owned()) };
    from.hand_over(link.index, to.0, &name).context(what)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_protocol::resource::{IpConfig, Route};

    fn settings(addresses: &[(&str, u8)], routes: &[(&str, &str, u16)]) -> Network {
        Network {
            ip_configs: addresses
                .iter()
                .map(|(address, prefix)| IpConfig {
                    ip_address: (*address).to_owned(),
                    prefix_length: *prefix,
                })
                .collect(),
            routes: routes
                .iter()
                .map(|(hop, prefix, metric)| Route {
                    next_hop: (*hop).to_owned(),
                    destination_prefix: (*prefix).to_owned(),
                    metric: *metric,
                })
                .collect(),
            ..Network::default()
        }
    }

    #[test]
    fn null_gateways_are_skipped_and_low_metric_is_500() {
        let settings = settings(
            &[("10.0.0.2", 24), ("fd00::2", 64)],
            &[
                ("0.0.0.0", "0.0.0.0/0", 0),
                ("::", "::/0", 0),
                ("10.0.0.1", "0.0.0.0/0", 0),
                ("10.0.0.1", "10.9.8.7/16", 7),
                ("", "192.168.0.0/24", 0),
            ],
        );
        let plan = Plan::of(&settings, Some(FIRST_TABLE)).unwrap();
        let gateway = Some("10.0.0.1".parse().unwrap());
        let route = |destination: Option<(&str, u8)>, gateway, metric| PlannedRoute {
            destination: destination.map(|(address, prefix)| (address.parse().unwrap(), prefix)),
            gateway,
            metric,
        };
        assert_eq!(
            plan.routes,
            [
                route(None, gateway, 500),
                route(Some(("10.9.0.0", 16)), gateway, 7),
                route(Some(("192.168.0.0", 24)), None, 500),
            ]
        );
        assert_eq!(Plan::of(&settings, None).unwrap().routes[0].metric, 0);
    }

    #[test]
    fn what_is_no_address_is_refused_as_it_was_written() {
        for (address, prefix) in [("10.0.0.256", 24), ("10.0.0.1", 33), ("fd00::1", 129), ("", 1)] {
            let error = Plan::of(&settings(&[(address, prefix)], &[]), None).unwrap_err();
            assert!(error.to_string().contains(&format!("{address}/{prefix}")), "{error}");
        }
        for (hop, destination) in [("x", "0.0.0.0/0"), ("10.0.0.1", "10.0.0.0"), ("10.0.0.1", "")] {
            let error = Plan::of(&settings(&[], &[(hop, destination, 0)]), None).unwrap_err();
            assert!(error.to_string().contains("Routes"), "{error}");
        }
    }
}
