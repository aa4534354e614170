//! The containers of one server, in one utility VM.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, DeleteResponse};
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskIO};
use containerd_shim_protos::topics;
use linkspan_host::{Container, Layers};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::arguments::Arguments;
use crate::bundle::Bundle;
use crate::error::Error;
use crate::events::Events;
use crate::machine::Machine;
use crate::mounts::Share;
use crate::options::{Network, Options};
use crate::process::Process;
use crate::spec::{self, Kind};
use crate::stdio::Paths;
use crate::task::Task;
use crate::{mounts, pause, rootfs, timestamp};

/// The most directories that a machine shares.
const MOST_SHARES: usize = 16;

/// The first container of a pod that containerd knows only as a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) task: Arc<Task>,
    pub(crate) created_at: SystemTime,
}

/// What one server holds.
#[derive(Debug)]
pub(crate) struct Shim {
    namespace: String,
    options: Options,
    pub(crate) events: Events,
    pub(crate) machine: Machine,
    /// `None` while one is being made.
    tasks: Mutex<HashMap<String, Option<Arc<Task>>>>,
    /// The pod's, where containerd speaks of sandboxes.
    sandbox: Mutex<Option<Sandbox>>,
    /// Told when the server is to end.
    pub(crate) ending: Notify,
    /// Told with each request.
    pub(crate) asked: Notify,
}

impl Shim {
    /// Holds nothing yet; its machine is booting.
    pub(crate) fn new(
        arguments: &Arguments,
        options: Options,
        bundle: &Bundle,
    ) -> Result<Self, Error> {
        let shares = match bundle.spec() {
            // A container to itself says what it needs; nobody knows that of a pod.
            Ok(spec) if Kind::of(&spec)? == Kind::Standalone => mounts::count(&spec),
            _ => usize::try_from(options.shares).unwrap_or(MOST_SHARES),
        };
        let shares = u32::try_from(shares.min(MOST_SHARES)).unwrap_or(0);
        let name = format!("{}/{}", arguments.namespace, arguments.id);
        let machine = Machine::boot(options.builder(&name, shares)?);
        Ok(Self {
            namespace: arguments.namespace.clone(),
            options,
            events: Events::new(arguments),
            machine,
            tasks: Mutex::default(),
            sandbox: Mutex::default(),
            ending: Notify::new(),
            asked: Notify::new(),
        })
    }

    /// A task.
    pub(crate) fn task(&self, id: &str) -> Result<Arc<Task>, Error> {
        let task = self.tasks().get(id).cloned().flatten();
        task.ok_or_else(|| Error::NotFound { what: "container", id: id.to_owned() })
    }

    /// Makes a container. Returns its init's pid in the utility VM.
    pub(crate) async fn create(&self, request: CreateTaskRequest) -> Result<u32, Error> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported("a container from a checkpoint".to_owned()));
        }
        let id = request.id.clone();
        match self.tasks().entry(id.clone()) {
            Entry::Occupied(_) => return Err(Error::Exists { what: "container", id }),
            Entry::Vacant(place) => place.insert(None),
        };
        let bundle = Bundle::at(&request.bundle);
        let made = self.make(&request, &bundle).await;
        match made {
            Ok(task) => {
                let task = Arc::new(task);
                let pid = task.init.pid();
                self.tasks().insert(id.clone(), Some(task));
                info!(container = id, pid, "created");
                let io = TaskIO {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.terminal,
                    ..TaskIO::default()
                };
                let event = TaskCreate {
                    container_id: id,
                    bundle: request.bundle,
                    rootfs: request.rootfs,
                    io: Some(io).into(),
                    pid,
                    ..TaskCreate::default()
                };
                self.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &event);
                Ok(pid)
            }
            Err(error) => {
                warn!(container = id, %error, "create");
                mounts::take_down(&bundle);
                self.tasks().remove(&id);
                Err(error)
            }
        }
    }

    async fn make(&self, request: &CreateTaskRequest, bundle: &Bundle) -> Result<Task, Error> {
        let began = Instant::now();
        let mut spec = bundle.spec()?;
        let kind = Kind::of(&spec)?;
        let (rootfs, document, options) =
            (request.rootfs.clone(), spec.clone(), self.options.clone());
        // The machine boots meanwhile.
        let layers =
            tokio::task::spawn_blocking(move || rootfs::layers(&rootfs, &document, &options));
        let shares = mounts::take(&mut spec, kind, bundle)?;
        spec::adapt(&mut spec, kind)?;
        let layers = layers.await.map_err(|panic| Error::Machine(panic.to_string()))??;
        let layers_ms = milliseconds(began);
        self.machine.uvm().await?;
        let machine_ms = milliseconds(began) - layers_ms;
        let putting = Instant::now();
        let container = self.put(&request.id, layers, spec, kind, shares).await?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let init = Process::new(&request.id, paths, first_pid(&container).await);
        let create_ms = milliseconds(putting);
        info!(container = request.id, layers_ms, machine_ms, create_ms, "made");
        let (namespace, events) = (self.namespace.as_str(), self.events.clone());
        Ok(Task::new(&request.id, namespace, bundle.clone(), events, container, init))
    }

    /// Puts a container into the machine.
    async fn put(
        &self,
        id: &str,
        layers: Layers,
        spec: Value,
        kind: Kind,
        shares: Vec<Share>,
    ) -> Result<Container, Error> {
        let uvm = self.machine.uvm().await?;
        let network = self.options.network == Network::User && kind != Kind::Workload;
        let mut builder = uvm.container(id, layers).spec(spec).network(network);
        for share in shares {
            builder = match share.file {
                Some(file) => {
                    builder.share_entry(share.source, file, share.target, share.read_only)
                }
                None => builder.share(share.source, share.target, share.read_only),
            };
        }
        Ok(builder.create().await?)
    }

    /// Makes the first container of a pod, of which containerd knows no more than the id.
    pub(crate) async fn create_sandbox(&self, id: &str, bundle: &str) -> Result<(), Error> {
        if self.lock_sandbox().is_some() {
            return Err(Error::Exists { what: "sandbox", id: id.to_owned() });
        }
        let bundle = Bundle::at(bundle);
        let root = bundle.path().join("sandbox");
        pause::make_root(&root)?;
        let mut spec = spec::of_sandbox(id);
        spec::adapt(&mut spec, Kind::Sandbox)?;
        let container = self.put(id, Layers::of(&root), spec, Kind::Sandbox, Vec::new()).await?;
        let init = Process::new(id, Paths::default(), first_pid(&container).await);
        let task = Task::new(id, &self.namespace, bundle, Events::silent(), container, init);
        let made = Sandbox { task: Arc::new(task), created_at: SystemTime::now() };
        *self.lock_sandbox() = Some(made);
        info!(sandbox = id, "created");
        Ok(())
    }

    /// The pod's sandbox.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Sandbox, Error> {
        let sandbox = self.lock_sandbox().clone().filter(|sandbox| sandbox.task.id == id);
        sandbox.ok_or_else(|| Error::NotFound { what: "sandbox", id: id.to_owned() })
    }

    fn lock_sandbox(&self) -> MutexGuard<'_, Option<Sandbox>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes a container that does not run, or one of its processes.
    pub(crate) async fn delete(&self, request: &DeleteRequest) -> Result<DeleteResponse, Error> {
        let task = self.task(&request.id)?;
        let (pid, exit) = match request.exec_id.as_str() {
            "" => {
                let container = task.take().await?;
                let alone = self.tasks().len() == 1 && self.lock_sandbox().is_none();
                match container {
                    // All of it goes with the machine, and sooner.
                    Some(_) if alone => self.machine.end().await,
                    Some(container) => match container.delete().await {
                        // What was in a lost machine is gone.
                        Ok(()) | Err(linkspan_host::Error::Closed { .. }) => {}
                        Err(error) => warn!(container = task.id, %error, "delete"),
                    },
                    None => {}
                }
                task.tidy();
                self.tasks().remove(&request.id);
                (task.init.pid(), task.init.phase().exit())
            }
            exec => task.delete_exec(exec).await?,
        };
        let exit_status = exit.map_or(0, |exit| exit.status);
        let exited_at = timestamp::field(exit.map(|exit| exit.at));
        if request.exec_id.is_empty() {
            info!(container = task.id, "deleted");
            let event = TaskDelete {
                container_id: task.id.clone(),
                pid,
                exit_status,
                exited_at: exited_at.clone(),
                ..TaskDelete::default()
            };
            self.events.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
        }
        Ok(DeleteResponse { pid, exit_status, exited_at, ..DeleteResponse::default() })
    }

    /// Whether there is nothing any more for which the server is needed.
    pub(crate) fn is_empty(&self) -> bool {
        self.tasks().is_empty() && self.lock_sandbox().is_none()
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Task>>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// All that is in a new container is its init, which waits to be started.
async fn first_pid(container: &Container) -> u32 {
    match container.processes().await {
        Ok(pids) => pids.first().copied().unwrap_or_default(),
        Err(error) => {
            warn!(%error, "ask for the init's pid");
            0
        }
    }
}
