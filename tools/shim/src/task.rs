//! One container, as containerd knows it: a task.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use containerd_shim_protos::events::task::{
    TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::topics;
use containerd_shim_protos::types::task::Status;
use linkspan_host::{Container, Stdio};
use serde_json::Value;
use tokio::sync::RwLock;
use tracing::{info, warn};

use crate::bundle::Bundle;
use crate::error::Error;
use crate::events::Events;
use crate::process::{self, Exit, Phase, Process};
use crate::stdio::{Owner, Paths};
use crate::{mounts, spec, timestamp};

/// What a shell says of a process that was killed.
const SIGNALLED: u32 = 128;

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    namespace: String,
    events: Events,
    /// `None` once it is deleted.
    container: RwLock<Option<Container>>,
    pub(crate) init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    paused: AtomicBool,
}

/// A further process of a task.
#[derive(Debug)]
struct Exec {
    process: Arc<Process>,
    document: Value,
}

impl Task {
    /// A task of a container that has been made.
    pub(crate) fn new(
        id: &str,
        namespace: &str,
        bundle: Bundle,
        events: Events,
        container: Container,
        init: Arc<Process>,
    ) -> Self {
        Self {
            id: id.to_owned(),
            bundle,
            namespace: namespace.to_owned(),
            events,
            container: RwLock::new(Some(container)),
            init,
            execs: Mutex::default(),
            paused: AtomicBool::new(false),
        }
    }

    /// One of its processes: the init where the id is empty.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Error> {
        match exec {
            "" => Ok(Arc::clone(&self.init)),
            exec => Ok(Arc::clone(&self.exec(exec)?.process)),
        }
    }

    /// What containerd calls the state of one of its processes.
    pub(crate) fn status(&self, process: &Process) -> Status {
        match process.phase() {
            Phase::Running if self.paused.load(Ordering::SeqCst) => Status::PAUSED,
            phase => phase.status(),
        }
    }

    /// Starts its init.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<u32, Error> {
        let init = &self.init;
        let _changing = init.changing.lock().await;
        init.is_to_start()?;
        let outcome = self.start_init().await;
        if outcome.is_err() {
            init.never_ran(process::UNKNOWN);
        }
        outcome
    }

    async fn start_init(self: &Arc<Self>) -> Result<u32, Error> {
        let init = &self.init;
        let starting = Instant::now();
        let local = init.paths.open(self.owner()).await?;
        let child = {
            let container = self.container.read().await;
            container.as_ref().ok_or_else(|| self.gone())?.start(init.paths.wanted()).await?
        };
        let pid = child.pid();
        info!(container = self.id, pid, start_ms = starting.elapsed().as_millis(), "started");
        let began = || {
            let event = TaskStart { container_id: self.id.clone(), pid, ..TaskStart::default() };
            self.events.publish(topics::TASK_START_EVENT_TOPIC, &event);
            self.watch_memory();
        };
        let this = Arc::clone(self);
        let ended = move |exit| this.ended(this.id.clone(), pid, exit);
        init.started(child, local, began, ended).await
    }

    /// Prepares a further process.
    pub(crate) fn add_exec(&self, id: &str, document: Value, paths: Paths) -> Result<(), Error> {
        self.is_running("exec in")?;
        let mut document = document;
        let Some(process) = document.as_object_mut() else {
            return Err(Error::input("spec", "is no OCI process object"));
        };
        spec::adapt_process(process);
        let name = format!("{}/{id}", self.id);
        let exec = Arc::new(Exec { process: Process::new(&name, paths, 0), document });
        let mut execs = self.execs();
        if execs.contains_key(id) {
            return Err(Error::Exists { what: "process", id: name });
        }
        execs.insert(id.to_owned(), exec);
        drop(execs);
        let event = TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: id.to_owned(),
            ..TaskExecAdded::default()
        };
        self.events.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Starts one that was prepared.
    pub(crate) async fn start_exec(self: &Arc<Self>, id: &str) -> Result<u32, Error> {
        let exec = self.exec(id)?;
        let process = &exec.process;
        let _changing = process.changing.lock().await;
        process.is_to_start()?;
        self.is_running("exec in")?;
        let outcome = self.start_added(id, &exec).await;
        if outcome.is_err() {
            process.never_ran(process::UNKNOWN);
        }
        outcome
    }

    async fn start_added(self: &Arc<Self>, id: &str, exec: &Exec) -> Result<u32, Error> {
        let process = &exec.process;
        let local = process.paths.open(self.owner()).await?;
        let wanted: Stdio = process.paths.wanted();
        let child = {
            let container = self.container.read().await;
            let container = container.as_ref().ok_or_else(|| self.gone())?;
            container.exec_document(exec.document.clone(), wanted).await?
        };
        let (pid, exec_id) = (child.pid(), id.to_owned());
        let event = TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: exec_id.clone(),
            pid,
            ..TaskExecStarted::default()
        };
        let began = || self.events.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        let this = Arc::clone(self);
        let ended = move |exit| this.ended(exec_id, pid, exit);
        process.started(child, local, began, ended).await
    }

    /// Sends a signal to one of its processes. One that never ran has ended then, unless the
    /// signal would do nothing.
    pub(crate) async fn kill(&self, exec: &str, signal: u32) -> Result<(), Error> {
        let process = self.process(exec)?;
        let deadly = process::is_deadly(signal)?;
        if process.phase() == Phase::Created {
            let _changing = process.changing.lock().await;
            if process.phase() == Phase::Created {
                if !deadly {
                    return Ok(());
                }
                let exit = process.never_ran(SIGNALLED + signal);
                let id = if exec.is_empty() { &self.id } else { exec };
                self.ended(id.to_owned(), process.pid(), exit);
                return Ok(());
            }
        }
        process.signal(signal).await
    }

    /// Holds it still.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        self.is_running("pause")?;
        self.container.read().await.as_ref().ok_or_else(|| self.gone())?.pause().await?;
        self.paused.store(true, Ordering::SeqCst);
        let event = TaskPaused { container_id: self.id.clone(), ..TaskPaused::default() };
        self.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Lets it go on.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        if !self.paused.load(Ordering::SeqCst) {
            return Err(self.init.refuse("resume", self.init.phase()));
        }
        self.container.read().await.as_ref().ok_or_else(|| self.gone())?.resume().await?;
        self.paused.store(false, Ordering::SeqCst);
        let event = TaskResumed { container_id: self.id.clone(), ..TaskResumed::default() };
        self.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Changes its limits: an OCI resources object.
    pub(crate) async fn update(&self, mut resources: Value) -> Result<(), Error> {
        let Some(fields) = resources.as_object_mut() else {
            return Err(Error::input("resources", "are no OCI resources object"));
        };
        spec::adapt_resources(fields);
        let container = self.container.read().await;
        Ok(container.as_ref().ok_or_else(|| self.gone())?.update(resources).await?)
    }

    /// Pids of its processes in the utility VM, each with the id of the exec that it is.
    pub(crate) async fn pids(&self) -> Result<Vec<(u32, Option<String>)>, Error> {
        let container = self.container.read().await;
        let pids = container.as_ref().ok_or_else(|| self.gone())?.processes().await?;
        let execs = self.execs();
        let name = |pid| {
            let is = |exec: &Exec| exec.process.pid() == pid;
            execs.iter().find(|(_, exec)| is(exec)).map(|(id, _)| id.clone())
        };
        Ok(pids.into_iter().map(|pid| (pid, name(pid))).collect())
    }

    /// What the guest's kernel counts for it.
    pub(crate) async fn metrics(
        &self,
    ) -> Result<linkspan_host::protocol::message::ContainerMetrics, Error> {
        let container = self.container.read().await;
        Ok(container.as_ref().ok_or_else(|| self.gone())?.statistics().await?)
    }

    /// Forgets a further process that does not run.
    pub(crate) async fn delete_exec(&self, id: &str) -> Result<(u32, Option<Exit>), Error> {
        let process = Arc::clone(&self.exec(id)?.process);
        let _changing = process.changing.lock().await;
        if process.phase() == Phase::Running {
            return Err(process.refuse("delete", Phase::Running));
        }
        self.execs().remove(id);
        let exit = process.phase().exit();
        if exit.is_none() {
            // Whoever waits for it need not any more.
            process.never_ran(process::UNKNOWN);
        }
        Ok((process.pid(), exit))
    }

    /// Takes the container out, to be deleted, unless its init runs.
    pub(crate) async fn take(&self) -> Result<Option<Container>, Error> {
        let _changing = self.init.changing.lock().await;
        if self.init.phase() == Phase::Running {
            return Err(self.init.refuse("delete", Phase::Running));
        }
        if self.init.phase() == Phase::Created {
            self.init.never_ran(SIGNALLED + process::KILL);
        }
        Ok(self.container.write().await.take())
    }

    /// Removes what it has on this host.
    pub(crate) fn tidy(&self) {
        mounts::take_down(&self.bundle);
    }

    fn ended(&self, id: String, pid: u32, exit: Exit) {
        info!(container = self.id, process = id, pid, status = exit.status, "ended");
        let event = TaskExit {
            container_id: self.id.clone(),
            id,
            pid,
            exit_status: exit.status,
            exited_at: timestamp::field(Some(exit.at)),
            ..TaskExit::default()
        };
        self.events.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    /// Tells of each time that the kernel takes a process from it for want of memory.
    fn watch_memory(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let Some(mut kills) = this.container.read().await.as_ref().map(Container::oom_kills)
            else {
                return;
            };
            let ended = this.init.wait();
            tokio::pin!(ended);
            loop {
                tokio::select! {
                    changed = kills.changed() => match changed {
                        Ok(()) => {
                            warn!(container = this.id, "a process was killed for want of memory");
                            let container_id = this.id.clone();
                            let event = TaskOOM { container_id, ..TaskOOM::default() };
                            this.events.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
                        }
                        Err(_) => return,
                    },
                    _ = &mut ended => return,
                }
            }
        });
    }

    fn is_running(&self, verb: &'static str) -> Result<(), Error> {
        match self.init.phase() {
            Phase::Running if self.paused.load(Ordering::SeqCst) => {
                Err(Error::State { verb, id: self.id.clone(), state: "paused" })
            }
            Phase::Running => Ok(()),
            other => Err(self.init.refuse(verb, other)),
        }
    }

    fn owner(&self) -> Owner<'_> {
        Owner { id: &self.id, namespace: &self.namespace }
    }

    fn exec(&self, id: &str) -> Result<Arc<Exec>, Error> {
        let missing = || Error::NotFound { what: "process", id: format!("{}/{id}", self.id) };
        self.execs().get(id).cloned().ok_or_else(missing)
    }

    fn gone(&self) -> Error {
        Error::NotFound { what: "container", id: self.id.clone() }
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
