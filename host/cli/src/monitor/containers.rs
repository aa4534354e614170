//! The containers of one utility VM, from the reservation of an id to the removal.
//!
//! | state      | until                              | then                 |
//! |------------|------------------------------------|----------------------|
//! | `Creating` | its init runs, or that fails       | `Running`, or gone   |
//! | `Running`  | its init ends                      | `Exited`             |
//! | `Exited`   | `rm`; its client or `--rm` does it | gone                 |

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use linkspan_host::{Child, Container, LayerProgress, ProcessHandle, Stream, UtilityVm};
use tokio::io::AsyncReadExt;
use tokio::sync::{RwLock, watch};
use tracing::{info, warn};

use super::log::{KEPT, Log, Origin};
use super::{milliseconds, since_1970};
use crate::container_id;
use crate::control::{ContainerEntry, LayerFile, NewContainer, State};
use crate::error::Error;
use crate::options::{Process, Volume};

/// How long a process has to end after it was asked to, and again after it was made to.
const GRACE: Duration = Duration::from_secs(10);

/// What is taken for the exit code of a process that nobody can ask about any more.
const UNKNOWN: u32 = 255;

/// The containers.
pub(super) struct Containers {
    name: String,
    uvm: Option<UtilityVm>,
    entries: Arc<Mutex<BTreeMap<String, Arc<Entry>>>>,
}

/// One of them.
pub(super) struct Entry {
    id: String,
    command: Vec<String>,
    detached: bool,
    created: (SystemTime, Instant),
    /// Whoever starts processes in it reads, whoever removes it writes.
    container: RwLock<Option<Container>>,
    init: OnceLock<ProcessHandle>,
    exit: watch::Sender<Option<u32>>,
    log: Option<Log>,
}

impl Containers {
    pub(super) fn new(name: String, uvm: Option<UtilityVm>) -> Self {
        Self { name, uvm, entries: Arc::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn list(&self) -> Vec<ContainerEntry> {
        self.lock().values().map(|entry| entry.about(&self.name)).collect()
    }

    pub(super) fn get(&self, id: &str) -> Result<Arc<Entry>, Error> {
        let found = self.lock().get(id).cloned();
        found.ok_or_else(|| {
            let reason = format!("there is no container {id:?} in utility VM {:?}", self.name);
            Error::input("CONTAINER", reason)
        })
    }

    /// Makes a container and starts its init.
    pub(super) async fn run(
        &self,
        new: NewContainer,
        progress: impl Fn(LayerProgress<'_>) + Send + 'static,
    ) -> Result<(Arc<Entry>, Child), Error> {
        let Some(uvm) = &self.uvm else {
            let reason = format!("{:?} belongs to a foreign host (--export-vsock)", self.name);
            return Err(Error::input("--uvm", reason));
        };
        let entry = self.reserve(&new)?;
        let (made, mut child) = match start(uvm, &entry.id, new, progress).await {
            Ok(made) => made,
            Err(error) => {
                self.lock().remove(&entry.id);
                return Err(error);
            }
        };
        *entry.container.write().await = Some(made);
        let _ = entry.init.set(child.handle().clone());
        if entry.detached {
            capture(&entry, Origin::Stdout, child.stdout.take());
            capture(&entry, Origin::Stderr, child.stderr.take());
        }
        let (watched, init) = (Arc::clone(&entry), child.handle().clone());
        tokio::spawn(async move {
            let code = match init.wait().await {
                Ok(status) => status.code(),
                Err(error) => {
                    warn!(container = watched.id, %error, "wait");
                    UNKNOWN
                }
            };
            watched.exit.send_replace(Some(code));
        });
        info!(container = entry.id, pid = child.pid(), "started");
        Ok((entry, child))
    }

    /// Removes a container, whatever it does.
    pub(super) async fn remove(&self, entry: &Entry) -> Result<(), Error> {
        let Some(container) = entry.container.write().await.take() else { return Ok(()) };
        if entry.exit.borrow().is_none() {
            if let Err(error) = container.terminate().await {
                warn!(container = entry.id, %error, "terminate");
            }
            let _ = tokio::time::timeout(GRACE, entry.exited()).await;
        }
        let outcome = container.delete().await;
        self.lock().remove(&entry.id);
        info!(container = entry.id, "removed");
        Ok(outcome?)
    }

    /// Asks all that run to end, then removes them.
    pub(super) async fn stop_all(&self) {
        let entries: Vec<_> = self.lock().values().cloned().collect();
        let asked = entries.iter().map(|entry| async {
            if let Some(container) = &*entry.container.read().await
                && entry.exit.borrow().is_none()
                && container.shut_down().await.is_ok()
            {
                let _ = tokio::time::timeout(GRACE, entry.exited()).await;
            }
        });
        join_all(asked).await;
        for entry in entries {
            if let Err(error) = self.remove(&entry).await {
                warn!(container = entry.id, %error, "remove");
            }
        }
    }

    fn reserve(&self, new: &NewContainer) -> Result<Arc<Entry>, Error> {
        let id = new.id.clone().unwrap_or_else(container_id::random);
        let writers = if new.process.terminal.is_some() { 1 } else { 2 };
        let entry = Arc::new(Entry {
            id: id.clone(),
            command: new.process.args.clone(),
            detached: new.detach,
            created: (SystemTime::now(), Instant::now()),
            container: RwLock::new(None),
            init: OnceLock::new(),
            exit: watch::Sender::new(None),
            log: new.detach.then(|| Log::new(writers, KEPT)),
        });
        match self.lock().entry(id) {
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(Arc::clone(&entry));
                Ok(entry)
            }
            btree_map::Entry::Occupied(taken) => {
                let (id, name) = (taken.key(), &self.name);
                let reason = format!("container {id:?} is in utility VM {name:?} already");
                Err(Error::input("--name", reason))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn is_running(&self) -> bool {
        self.init.get().is_some() && self.exit.borrow().is_none()
    }

    /// Waits for its init's end.
    pub(super) async fn exited(&self) -> u32 {
        match self.exit.subscribe().wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or(UNKNOWN),
            Err(_) => UNKNOWN,
        }
    }

    /// Its log, if it has one.
    pub(super) fn log(&self) -> Result<&Log, Error> {
        self.log.as_ref().ok_or_else(|| {
            let reason = format!("{:?} is not detached; its output goes to its client", self.id);
            Error::input("CONTAINER", reason)
        })
    }

    /// Its init, once it runs.
    pub(super) fn init(&self) -> Result<&ProcessHandle, Error> {
        self.init.get().ok_or_else(|| self.not_running("is still being made"))
    }

    pub(super) async fn signal(&self, number: i32) -> Result<(), Error> {
        let init = self.init()?;
        match self.is_running() && init.signal(number).await? {
            true => Ok(()),
            false => Err(self.not_running("has exited")),
        }
    }

    /// Starts a further process in it.
    pub(super) async fn exec(&self, process: &Process) -> Result<Child, Error> {
        let container = self.container.read().await;
        match &*container {
            Some(container) if self.exit.borrow().is_none() => {
                Ok(container.exec(&process.spec(), process.stdio()).await?)
            }
            Some(_) => Err(self.not_running("has exited")),
            None => Err(self.not_running("is still being made, or being removed")),
        }
    }

    pub(super) async fn statistics(&self) -> Result<serde_json::Value, Error> {
        let container = self.container.read().await;
        let Some(container) = &*container else {
            return Err(self.not_running("is still being made, or being removed"));
        };
        let statistics = serde_json::to_value(container.statistics().await?);
        statistics.map_err(|error| Error::Io { what: "write JSON".into(), source: error.into() })
    }

    fn not_running(&self, what: &str) -> Error {
        Error::input("CONTAINER", format!("{:?} {what}", self.id))
    }

    fn about(&self, uvm: &str) -> ContainerEntry {
        let (init, exit_code) = (self.init.get(), *self.exit.borrow());
        let state = match (init, exit_code) {
            (None, _) => State::Creating,
            (Some(_), None) => State::Running,
            (Some(_), Some(_)) => State::Exited,
        };
        ContainerEntry {
            id: self.id.clone(),
            uvm: uvm.to_owned(),
            state,
            exit_code,
            pid: init.filter(|_| state == State::Running).map(ProcessHandle::pid),
            command: self.command.clone(),
            detached: self.detached,
            created_ms: since_1970(self.created.0),
            age_ms: milliseconds(self.created.1.elapsed()),
        }
    }
}

/// Makes a container and starts its init; takes everything back if that fails.
async fn start(
    uvm: &UtilityVm,
    id: &str,
    new: NewContainer,
    progress: impl Fn(LayerProgress<'_>) + Send + 'static,
) -> Result<(Container, Child), Error> {
    let layers = LayerFile::stack(new.layers);
    let mut layers = layers.ok_or_else(|| Error::input("layers", "are missing"))?;
    if let Some(size) = new.scratch_mib {
        layers = layers.scratch_mib(size);
    }
    let mut builder = uvm.container(id, layers).process(new.process.spec()).on_progress(progress);
    if let Some(hostname) = new.hostname {
        builder = builder.hostname(hostname);
    }
    for Volume { source, target, read_only } in new.volumes {
        builder = builder.share(source, target, read_only);
    }
    let container = builder.create().await?;
    match container.start(new.process.stdio()).await {
        Ok(child) => Ok((container, child)),
        Err(error) => {
            if let Err(error) = container.delete().await {
                warn!(container = id, %error, "delete what did not start");
            }
            Err(error.into())
        }
    }
}

/// Reads an output into the container's log, to its end.
fn capture(entry: &Arc<Entry>, origin: Origin, stream: Option<Stream>) {
    let Some(mut stream) = stream else { return };
    let entry = Arc::clone(entry);
    tokio::spawn(async move {
        let Some(log) = &entry.log else { return };
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            log.append(origin, &buffer[..len]);
        }
        log.close();
    });
}

async fn join_all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        match futures.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}
