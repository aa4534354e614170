//! The container runtime, in processes of its own.
//!
//! Making a container forks and changes everything that a process has: namespaces, root,
//! credentials, environment. So it is done by a *worker*, which is forked from the *zygote*: a
//! copy of this program from before the agent had anything open, with one thread. The agent sends
//! the zygote a [`Job`] with its descriptors and gets one [`Reply`].
//!
//! What a worker does is an [`OciRuntime`]; there is one, [libcontainer](libcontainer_runtime).

mod executor;
mod libcontainer_runtime;
mod zygote;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use zygote::start as start_zygote;

use crate::error::Context;
use crate::seccomp::Filter;
use crate::{Error, Result, tasks};

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Make the container of a bundle; its init waits to be started.
    Create {
        id: String,
        bundle: PathBuf,
        console: Option<PathBuf>,
        confinement: Option<Confinement>,
        /// Bring the loopback interface of its network namespace up.
        loopback: bool,
    },
    /// Let the init run.
    Start { id: String },
    /// Start a further process, an OCI process object.
    Exec { id: String, process: Value, console: Option<PathBuf>, confinement: Option<Confinement> },
    /// Change limits; an OCI resources object.
    Update { id: String, resources: Value },
    /// Remove what is left of a stopped container; kill it if it was never started.
    Delete { id: String },
}

/// What a process is put under right before its program runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Confinement {
    pub(crate) filter: Filter,
    /// Capabilities that it has got only to be allowed the filter, and loses then.
    pub(crate) surplus: Vec<String>,
}

impl Confinement {
    /// Confines an OCI process. One that may gain privileges needs a privilege to be confined.
    pub(crate) fn of(filter: &Filter, process: &mut Value) -> Self {
        const NEEDED: &str = "CAP_SYS_ADMIN";
        let mut surplus = Vec::new();
        let confined = process["noNewPrivileges"].as_bool().unwrap_or_default();
        if !confined && process["capabilities"].is_object() {
            for set in ["permitted", "effective"] {
                let set = &mut process["capabilities"][set];
                if !set.is_array() {
                    *set = Value::Array(Vec::new());
                }
                if let Some(set) =
                    set.as_array_mut().filter(|set| !set.iter().any(|one| one == NEEDED))
                {
                    set.push(NEEDED.into());
                    surplus.push(NEEDED.to_owned());
                }
            }
            surplus.dedup();
        }
        Self { filter: filter.clone(), surplus }
    }
}

impl Job {
    fn operation(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Exec { .. } => "exec in",
            Self::Update { .. } => "update",
            Self::Delete { .. } => "delete",
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Create { id, .. }
            | Self::Start { id }
            | Self::Exec { id, .. }
            | Self::Update { id, .. }
            | Self::Delete { id } => id,
        }
    }
}

/// How it went: the new process's pid, where there is one, or what the runtime says.
type Reply = std::result::Result<Option<u32>, Refusal>;

/// A runtime's refusal.
#[derive(Debug, Serialize, Deserialize)]
enum Refusal {
    /// There is a container of that id.
    Exists,
    /// There is none.
    Missing,
    /// It is in the wrong state.
    State(String),
    /// All else.
    Other(String),
}

/// A container runtime, as a worker calls it: once, in a process that ends with the answer.
trait OciRuntime {
    /// Does the job. `stdio` is the new process's, if the job makes one without a terminal.
    fn run(&self, job: Job, stdio: Option<[OwnedFd; 3]>) -> Reply;
}

/// How long a worker may take. A host gives up on the whole utility VM after 300 s.
const ANSWER: Duration = Duration::from_secs(240);

/// The agent's handle on the zygote.
pub(crate) struct Runtime {
    zygote: OwnedFd,
}

impl Runtime {
    pub(crate) fn new(zygote: OwnedFd) -> Self {
        Self { zygote }
    }

    /// Has a job done.
    pub(crate) async fn run(
        &self,
        job: Job,
        stdio: Option<[BorrowedFd<'_>; 3]>,
    ) -> Result<Option<u32>> {
        let (operation, id) = (job.operation(), job.id().to_owned());
        let refused = |reason| Error::Runtime { operation, id: id.clone(), reason };
        let reply =
            tasks::wait_at_most("answer of the runtime", ANSWER, self.ask(&job, stdio)).await?;
        let reply = reply.context(|| format!("{operation} {id}: worker"))?;
        reply.map_err(|refusal| match refusal {
            Refusal::Exists => Error::ContainerExists(id.clone()),
            Refusal::Missing => Error::NoContainer(id.clone()),
            Refusal::State(state) => refused(format!("it is {state}")),
            Refusal::Other(reason) => refused(reason),
        })
    }

    async fn ask(&self, job: &Job, stdio: Option<[BorrowedFd<'_>; 3]>) -> io::Result<Reply> {
        let payload = zygote::sealed_in_memory(&serde_json::to_vec(job)?)?;
        let (ours, theirs) = zygote::packet_pair()?;
        let mut fds = vec![payload.as_fd(), theirs.as_fd()];
        fds.extend(stdio.into_iter().flatten());
        linkspan_guest_sys::send(&self.zygote, b"j", &fds)?;
        drop((payload, theirs));
        let ours = linkspan_guest_sys::register(ours)?;
        let mut buffer = vec![0; zygote::REPLY_LIMIT];
        loop {
            let mut ready = ours.readable().await?;
            match ready.try_io(|fd| linkspan_guest_sys::receive(fd, &mut buffer)) {
                Ok(Ok(message)) if message.len == 0 => {
                    return Err(io::Error::other("the runtime worker ended without an answer"));
                }
                Ok(message) => return Ok(serde_json::from_slice(&buffer[..message?.len])?),
                Err(_would_block) => {}
            }
        }
    }
}

/// Forgets the containers of an agent that broke; their processes have been ended.
pub(crate) fn clear() {
    let _ = std::fs::remove_dir_all(state_root());
}

/// Where the runtime keeps its state.
fn state_root() -> &'static Path {
    Path::new("/run/linkspan/runtime")
}
