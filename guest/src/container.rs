//! A container, from Create to DeleteContainerState.
//!
//! | state   | entered by                      | allows                                    |
//! |---------|---------------------------------|-------------------------------------------|
//! | created | Create                          | start, delete                             |
//! | running | ExecuteProcess of the init      | exec, signal, resize, shutdown, properties |
//! | stopped | the init's exit                 | wait, delete                              |
//!
//! The state is not stored: it follows from whether the init's pipes are still waiting to be
//! connected, and whether the init has exited.

mod annotations;
mod assigned;
mod bundle;
mod create;
mod device_rules;
mod devices;
mod exec;
mod kind;
mod limits;
mod mounts;
mod namespaces;
mod network_files;
mod pod;
mod prepare;
mod tee;
mod user;
mod workdir;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use linkspan_protocol::message::{
    Notification, NotificationType, ProcessDetails, Properties, PropertyType,
};
use serde_json::Value;
use tokio::sync::watch;

use crate::guest_path::GuestPath;
use crate::process::Process;
use crate::relay::{Delivery, Relay};
use crate::runtime::Job;
use crate::seccomp::Filter;
use crate::stdio::{Pipes, Streams};
use crate::storage::{blocking, remove_tree, unmount_all};
use crate::uvm::Uvm;
use crate::{Error, Result, cgroup, freezer};

pub(crate) use create::create;
pub(crate) use device_rules::DeviceRules;
pub(crate) use pod::Pods;

use kind::Kind;

/// How long a killed init may take to end.
const ENDING: std::time::Duration = std::time::Duration::from_secs(10);

/// One container.
pub(crate) struct Container {
    id: String,
    activity_id: String,
    /// It has been told to end, or is being deleted.
    abandoned: watch::Sender<bool>,
    bundle: GuestPath,
    scratch: Option<GuestPath>,
    root: PathBuf,
    cgroup: PathBuf,
    kind: Kind,
    /// Where its pod's files are.
    pod_root: PathBuf,
    /// The network namespace that it has claimed.
    network: Option<String>,
    /// What its processes are confined by.
    filter: Option<Filter>,
    init: Rc<Process>,
    /// The init's pipes until it is started; with a terminal there are none to keep.
    unstarted: RefCell<Option<Option<Streams<std::os::fd::OwnedFd>>>>,
    execs: RefCell<HashMap<u32, Rc<Process>>>,
    /// What execs take from the init.
    process: Value,
    ending: Cell<NotificationType>,
    notified: Cell<bool>,
}

impl Container {
    /// Where its bundle is.
    pub(crate) fn bundle(&self) -> &Path {
        self.bundle.as_path()
    }

    /// The process of that pid.
    pub(crate) fn process(&self, pid: u32) -> Result<Rc<Process>> {
        if self.init.pid() == pid {
            return Ok(Rc::clone(&self.init));
        }
        self.execs.borrow().get(&pid).cloned().ok_or(Error::NoProcess(pid))
    }

    /// Becomes true when output that its host does not take is to hold up nothing any more.
    pub(crate) fn abandoned(&self) -> watch::Receiver<bool> {
        self.abandoned.subscribe()
    }

    /// Its cgroup, as in `linux.cgroupsPath`.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn is_started(&self) -> bool {
        self.unstarted.borrow().is_none()
    }

    /// Starts the init with its streams on the host's ports.
    pub(crate) async fn start(
        &self,
        uvm: &Uvm,
        ports: Streams<u32>,
        delivery: Delivery,
    ) -> Result<u32> {
        if self.is_started() {
            let state = if self.init.has_exited() { "stopped" } else { "running" };
            return Err(self.refused("start", format!("it is {state}")));
        }
        let host = ports.dial(&uvm.host).await?;
        let Some(pipes) = self.unstarted.borrow_mut().take() else {
            return Err(self.refused("start", "it is being started".to_owned()));
        };
        let relay = match (self.init.terminal(), pipes) {
            (Some(terminal), _) => Relay::terminal(terminal, host, &ports, &delivery),
            (None, pipes) => Relay::pipes(pipes.unwrap_or_default(), host, &ports, &delivery),
        };
        let relay = relay.map_err(|source| Error::Io { what: "relay stdio".to_owned(), source })?;
        self.init.attach(relay);
        let started = uvm.runtime.run(Job::Start { id: self.id.clone() }, None).await;
        if started.is_err() {
            // Its streams are spent: it can only be deleted, for which it has to have ended.
            let _ = self.init.signal(9);
        }
        started.map(|_| self.init.pid())
    }

    fn refused(&self, operation: &'static str, reason: String) -> Error {
        Error::Runtime { operation, id: self.id.clone(), reason }
    }

    /// Sends a signal to one process, and remembers what it means for the init's end.
    pub(crate) fn signal(&self, pid: u32, number: i32) -> Result<()> {
        let process = self.process(pid)?;
        process.signal(number)?;
        if pid == self.init.pid() {
            self.will_end_by(number);
        }
        Ok(())
    }

    /// Signals the init as a shutdown.
    pub(crate) fn shut_down(&self, number: i32) -> Result<()> {
        self.init.signal(number).map_err(|error| match error {
            Error::NoProcess(_) => Error::ContainerNotRunning(self.id.clone()),
            other => other,
        })?;
        self.will_end_by(number);
        self.abandoned.send_replace(true);
        Ok(())
    }

    fn will_end_by(&self, number: i32) {
        match number {
            15 => self.ending.set(NotificationType::GracefulExit),
            9 => {
                self.ending.set(NotificationType::ForcedExit);
                freezer::let_die(&self.cgroup);
            }
            _ => {}
        }
    }

    pub(crate) async fn update(&self, uvm: &Uvm, mut resources: Value) -> Result<()> {
        if let Some(frozen) = freezer::take(&mut resources)? {
            freezer::set(&self.cgroup, frozen).await?;
            if resources.as_object().is_none_or(serde_json::Map::is_empty) {
                return Ok(());
            }
        }
        let job = Job::Update { id: self.id.clone(), resources };
        uvm.runtime.run(job, None).await.map(drop)
    }

    pub(crate) fn properties(&self, types: &[PropertyType]) -> Result<Properties> {
        let mut properties = Properties::default();
        if types.contains(&PropertyType::PROCESS_LIST) {
            let mut pids = cgroup::processes(&self.cgroup)?;
            // Those that have exited and wait to be reported belong to it as well.
            let execs = self.execs.borrow();
            let known = execs.keys().copied().chain([self.init.pid()]);
            pids.extend(known.filter(|pid| Path::new(&format!("/proc/{pid}")).exists()));
            pids.sort_unstable();
            pids.dedup();
            let details = |process_id| ProcessDetails { process_id, ..ProcessDetails::default() };
            properties.process_list = pids.into_iter().map(details).collect();
        }
        if types.contains(&PropertyType::STATISTICS) {
            properties.metrics = Some(Box::new(cgroup::metrics(&self.cgroup)?));
        }
        Ok(properties)
    }

    /// After an answer to a wait: forgets a reported exec, tells of a reported init.
    pub(crate) fn settle(&self, uvm: &Uvm) {
        self.execs.borrow_mut().retain(|_, process| !process.is_settled());
        if self.init.is_settled() && !self.notified.replace(true) {
            let notification = Notification {
                container_id: self.id.as_str().into(),
                activity_id: self.activity_id.clone(),
                kind: self.ending.get(),
                ..Notification::default()
            };
            // Only a stopping agent has nobody to hear it.
            let _ = uvm.notifications.send(notification);
        }
    }

    /// Removes it. A running one is refused and stays as it is.
    pub(crate) async fn delete(&self, uvm: &Uvm) -> Result<()> {
        if self.is_started() && !self.init.has_exited() {
            return Err(Error::ContainerRunning(self.id.clone()));
        }
        uvm.forget(&self.id);
        self.abandoned.send_replace(true);
        self.remove(uvm).await
    }

    /// A killed init may take longer to go than the runtime waits, above all on a busy machine; and
    /// what is in a cgroup keeps that from being removed.
    async fn delete_from_runtime(&self, uvm: &Uvm) -> Result<Option<u32>> {
        let delete = || uvm.runtime.run(Job::Delete { id: self.id.clone() }, None);
        match delete().await {
            Err(Error::Runtime { .. }) => {
                let _ = tokio::time::timeout(ENDING, self.init.ended()).await;
                delete().await
            }
            other => other,
        }
    }

    async fn remove(&self, uvm: &Uvm) -> Result<()> {
        let deleted = self.delete_from_runtime(uvm).await;
        if let Some(network) = &self.network {
            uvm.networks.release(network).await;
        }
        let (bundle, scratch) = (self.bundle.clone(), self.scratch.clone());
        let pod_root = matches!(self.kind, Kind::Sandbox { .. }).then(|| self.pod_root.clone());
        let removed = blocking(move || {
            if let Some(root) = &pod_root {
                pod::unmount_directories(root);
            }
            let removed = remove_directories(bundle.as_path(), scratch.as_ref());
            if let Some(root) = pod_root {
                // A virtual pod's root is not its sandbox's bundle.
                remove_tree(&root)?;
                remove_empty_pod(&bundle);
            }
            removed
        })
        .await;
        match &self.kind {
            Kind::Sandbox { pod, .. } => {
                uvm.pods.leave(pod, None);
                cgroup::remove(&uvm.cgroup.join(pod));
            }
            Kind::Workload { pod } => uvm.pods.leave(pod, Some(&self.id)),
            Kind::Standalone => {}
        }
        match deleted {
            Err(Error::NoContainer(_)) => removed,
            Err(error) => Err(error),
            Ok(_) => removed,
        }
    }

    pub(crate) fn describe(&self) -> String {
        let state = match (self.is_started(), self.init.has_exited()) {
            (_, true) => "stopped",
            (true, false) => "running",
            (false, false) => "created",
        };
        let execs: Vec<_> = self.execs.borrow().keys().map(u32::to_string).collect();
        format!(
            "container {}: {state}, init {}, execs [{}]\n",
            self.id,
            self.init.pid(),
            execs.join(" ")
        )
    }
}

fn remove_directories(bundle: &Path, scratch: Option<&GuestPath>) -> Result<()> {
    if let Some(scratch) = scratch {
        // A bundle that was brought onto the scratch disk is a mount of our own making.
        if !scratch.as_path().starts_with(bundle) {
            unmount_all(bundle)?;
        }
        remove_tree(scratch.as_path())?;
    }
    remove_tree(bundle)
}

/// Some hosts have a directory for each pod. It goes with the last of its bundles.
fn remove_empty_pod(bundle: &GuestPath) {
    if let Some(pod) = bundle.as_path().parent()
        && pod.parent() == Some(Path::new("/run/gcs/pods"))
    {
        let _ = std::fs::remove_dir(pod);
    }
}

/// What to write when the runtime takes a spec without a pipe for the init.
fn new_pipes() -> Result<Pipes> {
    Pipes::new().map_err(|source| Error::Io { what: "make pipes".to_owned(), source })
}
