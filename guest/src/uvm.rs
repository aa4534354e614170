//! What this utility VM holds: containers by id, external processes by pid. Passed around, never
//! static.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use hyperv_socket::Peer;
use linkspan_protocol::message::Notification;
use tokio::sync::{mpsc, watch};

use crate::container::{Container, DeviceRules, Pods};
use crate::headroom::Headroom;
use crate::network::Networks;
use crate::oom::OomWatch;
use crate::process::Process;
use crate::reaper::Reaper;
use crate::runtime::Runtime;
use crate::storage::{Devices, Mounted};
use crate::{Error, Result, tasks, threads};

pub(crate) struct Uvm {
    /// Where stdio is dialled.
    pub(crate) host: Peer,
    pub(crate) runtime: Runtime,
    pub(crate) reaper: Reaper,
    pub(crate) devices: Devices,
    pub(crate) mounted: Mounted,
    pub(crate) pods: Pods,
    pub(crate) networks: Networks,
    pub(crate) device_rules: DeviceRules,
    /// Prefix of all containers' cgroups, such as `/pods`.
    pub(crate) cgroup: PathBuf,
    /// What waits to be said to the host.
    pub(crate) notifications: mpsc::UnboundedSender<Notification>,
    /// Whether a host is connected, and has negotiated.
    pub(crate) connected: watch::Sender<bool>,
    /// What containers together may have.
    pub(crate) headroom: Headroom,
    /// Tells when a container has not enough.
    oom: OomWatch,
    /// A security policy has been taken.
    pub(crate) has_policy: Cell<bool>,
    /// True once pid 1 has loaded all modules.
    ready: watch::Receiver<bool>,
    /// When the first host was answered, since the kernel's start.
    negotiated: Cell<Option<Duration>>,
    containers: RefCell<HashMap<String, Slot>>,
    external: RefCell<HashMap<u32, Rc<Process>>>,
}

/// How long the modules may take. What misses one then says so.
const MODULES: Duration = Duration::from_secs(60);

enum Slot {
    Creating,
    Made(Rc<Container>),
}

/// Keeps an id for a container that is being made; frees it unless that succeeds.
pub(crate) struct Reservation<'a> {
    uvm: &'a Uvm,
    id: String,
}

impl Uvm {
    #[expect(clippy::too_many_arguments, reason = "called once")]
    pub(crate) fn new(
        host: Peer,
        runtime: Runtime,
        devices: Devices,
        cgroup: PathBuf,
        notifications: mpsc::UnboundedSender<Notification>,
        ready: watch::Receiver<bool>,
        headroom: Headroom,
        oom: OomWatch,
    ) -> Self {
        let (reaper, mounted, pods, networks, device_rules, has_policy, negotiated) =
            Default::default();
        let (containers, external) = Default::default();
        Self {
            host,
            runtime,
            reaper,
            devices,
            mounted,
            pods,
            networks,
            device_rules,
            cgroup,
            notifications,
            has_policy,
            ready,
            connected: watch::Sender::new(false),
            headroom,
            oom,
            negotiated,
            containers,
            external,
        }
    }

    /// Waits until storage can be mounted.
    pub(crate) async fn ready(&self) {
        // If its sender is gone, whatever is missing will be said by what misses it.
        let mut ready = self.ready.clone();
        let loaded = ready.wait_for(|&ready| ready);
        let _ = tasks::wait_at_most("kernel modules", MODULES, loaded).await;
    }

    pub(crate) fn reserve(&self, id: &str) -> Result<Reservation<'_>> {
        let mut containers = self.containers.borrow_mut();
        if containers.contains_key(id) {
            return Err(Error::ContainerExists(id.to_owned()));
        }
        containers.insert(id.to_owned(), Slot::Creating);
        Ok(Reservation { uvm: self, id: id.to_owned() })
    }

    /// Whether a container has this bundle, or is being made and may get it.
    pub(crate) fn has_bundle(&self, bundle: &Path) -> bool {
        self.containers.borrow().iter().any(|(id, slot)| match slot {
            Slot::Creating => bundle.ends_with(id),
            Slot::Made(container) => container.bundle() == bundle,
        })
    }

    pub(crate) fn container(&self, id: &str) -> Result<Rc<Container>> {
        match self.containers.borrow().get(id) {
            Some(Slot::Made(container)) => Ok(Rc::clone(container)),
            Some(Slot::Creating) => Err(Error::ContainerCreating(id.to_owned())),
            None => Err(Error::NoContainer(id.to_owned())),
        }
    }

    pub(crate) fn forget(&self, id: &str) {
        self.containers.borrow_mut().remove(id);
        self.oom.forget(id);
    }

    pub(crate) fn add_external(&self, process: Rc<Process>) {
        self.external.borrow_mut().insert(process.pid(), process);
    }

    pub(crate) fn external(&self, pid: u32) -> Result<Rc<Process>> {
        self.external.borrow().get(&pid).cloned().ok_or(Error::NoProcess(pid))
    }

    /// Drops the records of external processes that have been reported.
    pub(crate) fn settle_external(&self) {
        self.external.borrow_mut().retain(|_, process| !process.is_settled());
    }

    /// Remembers when the first host was answered.
    pub(crate) fn note_negotiation(&self) {
        if self.negotiated.get().is_none() {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            self.negotiated.set(Duration::try_from(now).ok());
        }
    }

    /// What the agent is doing, as text.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("linkspan-guest {}\n", env!("CARGO_PKG_VERSION"));
        if let Some(since) = self.negotiated.get() {
            text += &format!("negotiated {} us after the kernel's start\n", since.as_micros());
        }
        let mut containers: Vec<_> = self
            .containers
            .borrow()
            .iter()
            .map(|(id, slot)| match slot {
                Slot::Creating => format!("container {id}: being created\n"),
                Slot::Made(container) => container.describe(),
            })
            .collect();
        containers.extend(self.pods.describe());
        containers.extend(self.networks.describe());
        containers.sort();
        text.extend(containers);
        for pid in self.external.borrow().keys() {
            text += &format!("external process {pid}\n");
        }
        text += &tasks::describe();
        text += &threads::describe();
        truncate(&mut text, STACKS);
        text
    }
}

/// Most bytes of a description: in JSON it has to fit a response, where a byte may take two.
const STACKS: usize = 30_000;

fn truncate(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push_str("\n(cut off)\n");
    }
}

impl Reservation<'_> {
    pub(crate) fn fill(self, container: Rc<Container>) {
        self.uvm.oom.watch(&self.id, container.cgroup());
        self.uvm.headroom.look_at_agent();
        self.uvm.containers.borrow_mut().insert(self.id.clone(), Slot::Made(container));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut containers = self.uvm.containers.borrow_mut();
        if let Some(Slot::Creating) = containers.get(&self.id) {
            containers.remove(&self.id);
        }
    }
}
