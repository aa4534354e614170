//! How a client and the monitor of a named utility VM talk.
//!
//! One connection carries one [`Request`]. Its answer is any number of [`Reply::Progress`], then
//! one other [`Reply`]. After [`Reply::Started`], which brings the process's sockets along, the
//! client sends [`Order`]s and the monitor, once, [`Reply::Exited`]; the process ends with the
//! connection.

mod channel;

use std::path::PathBuf;

use linkspan_host::Layers;
use serde::{Deserialize, Serialize};

use crate::error::Report;
use crate::options::{Process, VmOptions, Volume};

pub(crate) use channel::{Channel, ChannelError, Receiver, Sender};

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Answered with [`Reply::Uvm`].
    Inspect,
    /// Answered with [`Reply::Done`] when nothing of the utility VM is left.
    Stop { force: bool },
    /// Makes and starts a container.
    Run(NewContainer),
    /// Starts a further process in a container.
    Exec { container: String, process: Process },
    /// Answered with [`Reply::Containers`].
    List,
    /// Answered with [`Reply::Done`].
    Signal { container: String, number: i32 },
    /// Answered with [`Reply::Done`].
    Remove { container: String, force: bool },
    /// Answered with [`Reply::Exited`] when it has.
    Wait { container: String },
    /// Answered with [`Reply::Statistics`].
    Statistics { container: String },
    /// Answered with [`Reply::Log`]; of the utility VM's console where no container is named.
    Log { container: Option<String>, follow: bool },
}

/// One layer of a container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerFile {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// What the guest is to check it against.
    pub(crate) root_hash: Option<String>,
}

impl LayerFile {
    /// The layers of a root, of which the lowest comes first.
    pub(crate) fn stack(files: Vec<Self>) -> Option<Layers> {
        let mut stack: Option<Layers> = None;
        for Self { path, root_hash } in files {
            let layers = match stack {
                None => Layers::of(path),
                Some(lower) => lower.layer(path),
            };
            stack = Some(match root_hash {
                None => layers,
                Some(root) => layers.pin(root),
            });
        }
        stack
    }
}

/// A container to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewContainer {
    /// One is made up where there is none.
    pub(crate) id: Option<String>,
    /// The lowest first.
    pub(crate) layers: Vec<LayerFile>,
    pub(crate) process: Process,
    pub(crate) hostname: Option<String>,
    pub(crate) scratch_mib: Option<u64>,
    pub(crate) volumes: Vec<Volume>,
    /// It goes on without the client, and its output into a log.
    pub(crate) detach: bool,
    /// A detached one goes away when it has ended.
    pub(crate) remove: bool,
}

/// What the monitor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    Failed(Report),
    Done,
    Progress {
        path: PathBuf,
        bytes: u64,
        total: Option<u64>,
        entries: u64,
    },
    /// Of the streams that are told, the sockets are attached, in this order.
    Started {
        container: String,
        pid: u32,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Exited {
        code: u32,
    },
    Uvm(Box<Uvm>),
    Containers {
        containers: Vec<ContainerEntry>,
    },
    Statistics {
        statistics: serde_json::Value,
    },
    /// Two sockets are attached, whose ends are the log's: what came from stdout, from stderr.
    Log,
}

/// What a client may ask for while its process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(crate) enum Order {
    Signal { number: i32 },
    Kill,
    Resize { rows: u16, columns: u16 },
}

/// A utility VM as its monitor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uvm {
    pub(crate) name: String,
    /// The monitor's pid.
    pub(crate) pid: u32,
    /// For people: what it runs on.
    pub(crate) machine: String,
    /// Milliseconds since 1970.
    pub(crate) started_ms: u64,
    /// Its age in milliseconds when this was told.
    pub(crate) age_ms: u64,
    pub(crate) containers: usize,
    /// Where a foreign host's sockets are expected.
    pub(crate) export_vsock: Option<PathBuf>,
    pub(crate) options: VmOptions,
    /// What the guest agent says that it can do.
    pub(crate) capabilities: Option<serde_json::Value>,
    pub(crate) directory: PathBuf,
}

/// How far a container has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Creating,
    Running,
    Exited,
}

/// A container as `ps` tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerEntry {
    pub(crate) id: String,
    pub(crate) uvm: String,
    pub(crate) state: State,
    /// Once it has exited.
    pub(crate) exit_code: Option<u32>,
    /// Its init's, in the guest's root namespace.
    pub(crate) pid: Option<u32>,
    pub(crate) command: Vec<String>,
    pub(crate) detached: bool,
    /// Milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// Its age in milliseconds when this was told.
    pub(crate) age_ms: u64,
}
