//! Network namespaces, as hosts name them, and the adapters in them.
//!
//! ```text
//! Add (adapter)       ─> record ──────────────┐
//! Create (container)  ─> claims the record ───┴─> interfaces move into the container's namespace
//! Add, Remove (later) ─> that one adapter comes or goes; all others stay as they are
//! Delete (container)  ─> the record is free again, or gone if no adapter is left in it
//! ```
//!
//! A record belongs to the id of the namespace, and a container has at most one. A container whose
//! spec names no namespace has none.

mod dhcp;
mod dns;
mod interface;
mod locate;
mod netlink;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use linkspan_protocol::resource::Network;
use tracing::{info, warn};

use self::interface::{FIRST_TABLE, Plan};
use self::netlink::{Netlink, NetworkNamespace};
use crate::error::Context;
use crate::storage::{Devices, blocking};
use crate::{Error, Result};

/// All records, by id in lower case.
#[derive(Default)]
pub(crate) struct Networks {
    records: RefCell<HashMap<String, Record>>,
    /// Held while interfaces are moved: two of them must not want the same name.
    moving: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Record {
    adapters: Vec<Adapter>,
    /// The container that has it.
    owner: Option<String>,
    place: Place,
    /// Rewritten when adapters change.
    resolv_conf: Option<PathBuf>,
}

struct Adapter {
    settings: Network,
    connected: Option<Connected>,
}

#[derive(Clone)]
struct Connected {
    interface: String,
    plan: Plan,
    /// Servers that DHCP has named.
    servers: Vec<String>,
}

/// Where a record's interfaces belong.
#[derive(Clone, Default)]
enum Place {
    /// Nowhere yet.
    #[default]
    Unknown,
    /// In this process's own namespace.
    Own,
    /// In a container's.
    Container(Arc<NetworkNamespace>),
}

/// A record that is a container's. Given up when it is dropped, unless it is kept.
pub(crate) struct Claim<'a> {
    networks: &'a Networks,
    key: String,
    kept: bool,
}

impl Claim<'_> {
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn keep(mut self) -> String {
        self.kept = true;
        std::mem::take(&mut self.key)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.networks.give_up(&self.key);
        }
    }
}

impl Networks {
    /// Adds an adapter. If a container has the namespace already, it has the adapter when this
    /// returns.
    pub(crate) async fn add(&self, devices: &Devices, settings: Network) -> Result<()> {
        let key = settings.namespace_id.to_lowercase();
        let id = settings.id.clone();
        // What is wrong with it is said before anything is waited for.
        Plan::of(&settings, None)?;
        {
            let mut records = self.records.borrow_mut();
            let record = records.entry(key.clone()).or_default();
            if record.adapters.iter().any(|adapter| adapter.settings.id.eq_ignore_ascii_case(&id)) {
                let reason = format!("adapter with id: {id:?} already present in namespace");
                return Err(Error::Argument { field: "ID", reason });
            }
            record.adapters.push(Adapter { settings: settings.clone(), connected: None });
            if let Err(error) = record.resolv_conf() {
                record.adapters.pop();
                return Err(error);
            }
        }
        let added = async {
            locate::locate(devices, &settings).await?;
            if self.is_placed(&key) {
                self.connect_one(devices, &key, &id).await?;
                self.write_resolv_conf(&key)?;
            }
            Ok(())
        };
        let added = added.await;
        if added.is_err() {
            self.forget_adapter(&key, &id);
        }
        added
    }

    /// Takes an adapter away. What is not there is no error.
    pub(crate) async fn remove(&self, settings: Network) -> Result<()> {
        let key = settings.namespace_id.to_lowercase();
        let place = self.records.borrow().get(&key).map(|record| record.place.clone());
        let Some(place) = place else {
            warn!(namespace = key, "an adapter of an unknown network namespace is removed");
            return Ok(());
        };
        let Some(adapter) = self.forget_adapter(&key, &settings.id) else { return Ok(()) };
        if let Some(connected) = adapter.connected {
            let _moving = self.moving.lock().await;
            // An interface that the host has taken away already is gone with all that it had.
            if let Err(error) = disconnect(place, connected).await {
                info!(%error, adapter = settings.id, "an adapter's interface is left as it is");
            }
        }
        self.write_resolv_conf(&key)?;
        let mut records = self.records.borrow_mut();
        if records.get(&key).is_some_and(Record::is_spare) {
            records.remove(&key);
        }
        Ok(())
    }

    /// Makes a namespace a container's. One that is not known is `None`, or is made.
    pub(crate) fn claim(&self, id: &str, owner: &str, make: bool) -> Result<Option<Claim<'_>>> {
        let key = id.to_lowercase();
        let mut records = self.records.borrow_mut();
        if make {
            records.entry(key.clone()).or_default();
        }
        let Some(record) = records.get_mut(&key) else { return Ok(None) };
        if let Some(other) = &record.owner {
            let reason = format!("network namespace {id:?} belongs to container {other} already");
            return Err(Error::Argument { field: "networkNamespace", reason });
        }
        record.owner = Some(owner.to_owned());
        Ok(Some(Claim { networks: self, key, kept: false }))
    }

    /// The text of a namespace's resolv.conf.
    pub(crate) fn resolv_conf(&self, key: &str) -> Result<String> {
        self.records.borrow().get(key).map_or(Ok(String::new()), Record::resolv_conf)
    }

    /// Connects a namespace's adapters with a container, `pid` being one of its processes, or with
    /// this machine's own network. `resolv_conf` is the file that follows the adapters from now on.
    pub(crate) async fn connect(
        &self,
        devices: &Devices,
        key: &str,
        pid: Option<u32>,
        resolv_conf: Option<PathBuf>,
    ) -> Result<()> {
        let place = match pid {
            None => Place::Own,
            Some(pid) => {
                let namespace = NetworkNamespace::of(pid);
                let what = || format!("open the network namespace of process {pid}");
                Place::Container(Arc::new(namespace.context(what)?))
            }
        };
        let ids: Vec<String> = {
            let mut records = self.records.borrow_mut();
            let Some(record) = records.get_mut(key) else { return Ok(()) };
            record.place = place;
            record.resolv_conf = resolv_conf;
            record.adapters.iter().map(|adapter| adapter.settings.id.clone()).collect()
        };
        for id in ids {
            self.connect_one(devices, key, &id).await?;
        }
        self.write_resolv_conf(key)
    }

    /// Ends a container's hold on a namespace.
    pub(crate) async fn release(&self, key: &str) {
        let (place, connected) = {
            let mut records = self.records.borrow_mut();
            let Some(record) = records.get_mut(key) else { return };
            let connected: Vec<Connected> =
                record.adapters.iter_mut().filter_map(|adapter| adapter.connected.take()).collect();
            (std::mem::take(&mut record.place), connected)
        };
        self.give_up(key);
        let _moving = self.moving.lock().await;
        for connected in connected {
            if let Err(error) = disconnect(place.clone(), connected).await {
                info!(%error, namespace = key, "an interface is left as it is");
            }
        }
    }

    fn give_up(&self, key: &str) {
        let mut records = self.records.borrow_mut();
        if let Some(record) = records.get_mut(key) {
            record.owner = None;
            record.place = Place::Unknown;
            record.resolv_conf = None;
            if record.is_spare() {
                records.remove(key);
            }
        }
    }

    fn is_placed(&self, key: &str) -> bool {
        let records = self.records.borrow();
        records.get(key).is_some_and(|record| !matches!(record.place, Place::Unknown))
    }

    fn forget_adapter(&self, key: &str, id: &str) -> Option<Adapter> {
        let mut records = self.records.borrow_mut();
        let adapters = &mut records.get_mut(key)?.adapters;
        let at =
            adapters.iter().position(|adapter| adapter.settings.id.eq_ignore_ascii_case(id))?;
        Some(adapters.remove(at))
    }

    async fn connect_one(&self, devices: &Devices, key: &str, id: &str) -> Result<()> {
        let _moving = self.moving.lock().await;
        let (place, settings, plan) = {
            let records = self.records.borrow();
            let Some(record) = records.get(key) else { return Ok(()) };
            let Some(at) = record.position(id) else { return Ok(()) };
            if record.adapters[at].connected.is_some() {
                return Ok(());
            }
            let settings = record.adapters[at].settings.clone();
            let plan = Plan::of(&settings, record.table(at))?;
            (record.place.clone(), settings, plan)
        };
        let name = locate::locate(devices, &settings).await?;
        let planned = plan.clone();
        let what = format!("failed to configure adapter aid: {}, if id: {name}", settings.id);
        let connected = blocking(move || connect(&place, &name, planned)).await;
        let connected = connected.map_err(|error| match error {
            Error::Io { what: inner, source } => {
                Error::Io { what: format!("{what}: {inner}"), source }
            }
            other => other,
        })?;
        let mut records = self.records.borrow_mut();
        if let Some(record) = records.get_mut(key)
            && let Some(at) = record.position(id)
        {
            record.adapters[at].connected = Some(connected);
        }
        Ok(())
    }

    fn write_resolv_conf(&self, key: &str) -> Result<()> {
        let records = self.records.borrow();
        let Some(record) = records.get(key) else { return Ok(()) };
        let Some(path) = &record.resolv_conf else { return Ok(()) };
        // In place: containers have it mounted.
        fs::write(path, record.resolv_conf()?).context(|| format!("write {}", path.display()))
    }

    pub(crate) fn describe(&self) -> Vec<String> {
        let records = self.records.borrow();
        let line = |(key, record): (&String, &Record)| {
            let owner = record.owner.as_deref().unwrap_or("nobody");
            format!("network namespace {key}: {} adapters, of {owner}\n", record.adapters.len())
        };
        records.iter().map(line).collect()
    }
}

impl Record {
    fn position(&self, id: &str) -> Option<usize> {
        self.adapters.iter().position(|adapter| adapter.settings.id.eq_ignore_ascii_case(id))
    }

    /// Whether nothing would be lost with it.
    fn is_spare(&self) -> bool {
        self.owner.is_none() && self.adapters.is_empty()
    }

    fn resolv_conf(&self) -> Result<String> {
        let learnt: Vec<String> = self
            .adapters
            .iter()
            .filter_map(|adapter| adapter.connected.as_ref())
            .flat_map(|connected| connected.servers.iter().cloned())
            .collect();
        dns::resolv_conf(self.adapters.iter().map(|adapter| &adapter.settings), &learnt)
    }

    /// The table of an adapter that is routed by its addresses; each has its own.
    fn table(&self, at: usize) -> Option<u8> {
        let by_address = |at: usize| {
            let settings = &self.adapters[at].settings;
            if settings.policy_based_routing { at > 0 } else { settings.enable_low_metric }
        };
        if !by_address(at) {
            return None;
        }
        let taken: Vec<u8> = self
            .adapters
            .iter()
            .filter_map(|adapter| adapter.connected.as_ref()?.plan.table())
            .collect();
        (FIRST_TABLE..253).find(|table| !taken.contains(table))
    }
}

/// Brings an interface to its place and configures it. After a failure it is where it was.
fn connect(place: &Place, name: &str, plan: Plan) -> Result<Connected> {
    let speak = || "speak with the kernel about interfaces".to_owned();
    let mut own = Netlink::own().context(speak)?;
    let Place::Container(namespace) = place else {
        plan.apply(&mut own, name)?;
        let servers = lease(&plan, None, &mut own, name)?;
        return Ok(Connected { interface: name.to_owned(), plan, servers });
    };
    let mut theirs = namespace.netlink().context(speak)?;
    let moved = interface::hand_over(&mut own, (namespace, &mut theirs), name)?;
    let configured = plan
        .apply(&mut theirs, &moved)
        .and_then(|()| lease(&plan, Some(namespace), &mut theirs, &moved));
    match configured {
        Ok(servers) => Ok(Connected { interface: moved, plan, servers }),
        Err(error) => {
            plan.undo_rules(&mut theirs);
            if let Ok(home) = NetworkNamespace::own() {
                let _ = interface::hand_over(&mut theirs, (&home, &mut own), &moved);
            }
            Err(error)
        }
    }
}

/// Asks a DHCP server for what the host has not said. Returns its name servers.
fn lease(
    plan: &Plan,
    namespace: Option<&NetworkNamespace>,
    netlink: &mut Netlink,
    name: &str,
) -> Result<Vec<String>> {
    if !plan.needs_dhcp() {
        return Ok(Vec::new());
    }
    let what = || format!("get an address for {name} by DHCP");
    let link = netlink.link(name).context(what)?;
    let link = link.ok_or(std::io::ErrorKind::NotFound).context(what)?;
    let open = || dhcp::Client::open(name);
    let client = match namespace {
        Some(namespace) => namespace.run(open),
        None => open(),
    };
    let lease = client.and_then(|client| client.ask(&link.address)).context(what)?;
    let address = std::net::IpAddr::V4(lease.address);
    netlink.add_address(link.index, address, lease.prefix).context(what)?;
    if let Some(gateway) = lease.routers.first() {
        let route = netlink::NewRoute {
            destination: None,
            gateway: Some((*gateway).into()),
            metric: 0,
            table: plan.table().unwrap_or(254).into(),
            on_link: false,
            link: link.index,
        };
        netlink.add_route(&route).context(what)?;
    }
    Ok(lease.servers.iter().map(ToString::to_string).collect())
}

/// Takes an interface's configuration off, and brings it back to this process's namespace.
async fn disconnect(place: Place, connected: Connected) -> Result<()> {
    blocking(move || {
        let what = || format!("take interface {} back", connected.interface);
        let mut own = Netlink::own().context(what)?;
        match place {
            Place::Container(namespace) => {
                let mut theirs = namespace.netlink().context(what)?;
                connected.plan.undo_rules(&mut theirs);
                let home = NetworkNamespace::own().context(what)?;
                let to = (&home, &mut own);
                interface::hand_over(&mut theirs, to, &connected.interface).map(drop)
            }
            Place::Own | Place::Unknown => {
                connected.plan.undo_rules(&mut own);
                let Some(link) = own.link(&connected.interface).context(what)? else {
                    return Ok(());
                };
                own.flush(link.index).context(what)?;
                own.set_up(link.index, false).context(what)
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(adapters: &[(bool, bool)]) -> Record {
        let adapter = |&(policy_based_routing, enable_low_metric): &(bool, bool)| Adapter {
            settings: Network { policy_based_routing, enable_low_metric, ..Network::default() },
            connected: None,
        };
        Record { adapters: adapters.iter().map(adapter).collect(), ..Record::default() }
    }

    #[test]
    fn all_but_the_first_adapter_are_routed_by_their_addresses_if_so_asked() {
        let policy = record(&[(true, true), (true, false)]);
        assert_eq!([policy.table(0), policy.table(1)], [None, Some(101)]);
        let own = record(&[(false, true), (false, false)]);
        assert_eq!([own.table(0), own.table(1)], [Some(101), None]);
    }

    #[test]
    fn a_namespace_is_one_containers_and_free_after_it() {
        let networks = Networks::default();
        assert!(networks.claim("A", "one", false).unwrap().is_none());
        let claim = networks.claim("A", "one", true).unwrap().unwrap();
        assert_eq!(claim.key(), "a");
        let error = networks.claim("a", "two", true).err().unwrap().to_string();
        assert!(error.contains("container one"), "{error}");
        drop(claim);
        assert!(networks.claim("a", "two", false).unwrap().is_none(), "nothing is left of it");
        networks.claim("a", "two", true).unwrap().unwrap().keep();
        assert!(networks.claim("a", "three", true).is_err());
        networks.give_up("a");
        assert!(networks.claim("a", "three", true).is_ok());
    }
}
