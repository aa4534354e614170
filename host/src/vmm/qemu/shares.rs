//! Directories by virtio-fs: a daemon for each, and a device that speaks with it.
//!
//! | step of sharing                                  | undone by                        |
//! |--------------------------------------------------|----------------------------------|
//! | `virtiofsd` on one end of a connection           | its end, when the other closes   |
//! | `getfd` of the other end, `chardev-add` on it    | `chardev-remove`                 |
//! | `device_add` of a `vhost-user-fs-pci` in a port  | `device_del`, then DEVICE_DELETED |
//!
//! A read-only share is so for the daemon already: it sees a mount that cannot be written to.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;

use super::disks::delete_device;
use super::error::QemuError;
use super::process::Process;
use super::qmp::{Qmp, QmpError};

/// How many directories a machine takes at once.
pub(super) const MOST: u32 = 16;

/// Where distributions put the daemon.
const PROGRAMS: [&str; 3] =
    ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd"];

/// The daemon, if there is one.
pub(super) fn program() -> Option<PathBuf> {
    PROGRAMS.iter().map(PathBuf::from).find(|program| program.is_file())
}

/// The shares of one machine.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    qmp: Qmp,
    ports: u32,
    /// By port; `None` while one is on its way in or out.
    used: Arc<Mutex<BTreeMap<u32, Option<Arc<Process>>>>>,
}

impl Shares {
    pub(super) fn new(qmp: Qmp, ports: u32) -> Self {
        Self { qmp, ports, used: Arc::default() }
    }

    /// Shares a directory and gives its tag.
    pub(super) async fn add(&self, path: &Path, read_only: bool) -> Result<String, QemuError> {
        let problem = |problem: String| QemuError::Share { path: path.to_owned(), problem };
        let found = std::fs::canonicalize(path).map_err(|error| problem(error.to_string()))?;
        if !found.is_dir() {
            return Err(problem("it is no directory".to_owned()));
        }
        let program = program().ok_or_else(|| {
            let packages = "virtiofsd, or qemu-system-common before Debian 13";
            problem(format!("there is no virtiofsd here (Debian's package {packages})"))
        })?;
        let port = self.take().ok_or_else(|| {
            let ports = self.ports;
            problem(format!(
                "all {ports} ports for shares are in use; how many there are is said when the \
                 machine is started (shares)"
            ))
        })?;
        let this = self.clone();
        // To the end, even if nobody waits any more.
        let added = tokio::spawn(async move {
            let added = this.start(port, program, found, read_only).await;
            match added {
                Ok(daemon) => drop(this.used().insert(port, Some(Arc::new(daemon)))),
                Err(error) => {
                    this.used().remove(&port);
                    return Err(error);
                }
            }
            Ok(tag(port))
        });
        added.await.unwrap_or_else(|panic| Err(problem(panic.to_string())))
    }

    /// Takes a share away; the guest has let go of it.
    pub(super) async fn remove(&self, tag: &str) -> Result<(), QemuError> {
        let problem = |problem: String| QemuError::Share { path: tag.into(), problem };
        let port = tag.strip_prefix(TAG).and_then(|port| port.parse().ok());
        let daemon = port.and_then(|port| self.used().get_mut(&port)?.take());
        let (Some(port), Some(daemon)) = (port, daemon) else {
            return Err(problem("there is no such share".to_owned()));
        };
        let this = self.clone();
        let removed = tokio::spawn(async move {
            let removed = this.unplug(port).await;
            match &removed {
                Ok(()) => {
                    daemon.ended().await; // its connection has ended
                    this.used().remove(&port);
                }
                Err(_) => drop(this.used().insert(port, Some(daemon))),
            }
            removed
        });
        let removed = removed.await.unwrap_or(Err(QmpError::Closed));
        removed.map_err(|error| problem(error.to_string()))
    }

    fn take(&self) -> Option<u32> {
        let mut used = self.used();
        let free = (0..self.ports).find(|port| !used.contains_key(port))?;
        used.insert(free, None);
        Some(free)
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<u32, Option<Arc<Process>>>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start(
        &self,
        port: u32,
        program: PathBuf,
        directory: PathBuf,
        read_only: bool,
    ) -> Result<Process, QemuError> {
        let (listener, stream) = connected().map_err(QemuError::create("virtiofsd socket"))?;
        // A comma in the path would end it.
        let source = directory.as_os_str().as_bytes();
        if source.contains(&b',') {
            let problem = "a path with a comma cannot be shared".to_owned();
            return Err(QemuError::Share { path: directory, problem });
        }
        let mut option = OsString::from("source=");
        option.push(&directory);
        option.push(",cache=auto,log_level=warn");
        let arguments =
            vec![format!("--fd={}", listener.as_raw_fd()).into(), "-f".into(), "-o".into(), option];
        let fixed = read_only.then(|| CString::new(source)).transpose();
        let fixed = fixed.map_err(|error| QemuError::create("path")(error.into()))?;
        let daemon = Process::spawn_on(program, arguments, vec![listener], fixed).await?;
        match self.plug(port, stream).await {
            Ok(()) => Ok(daemon),
            Err(error) => {
                let said = daemon.stderr().await;
                let problem = format!("{error}; virtiofsd says: {said}");
                Err(QemuError::Share { path: directory, problem })
            }
        }
    }

    async fn plug(&self, port: u32, stream: OwnedFd) -> Result<(), QmpError> {
        let (tag, qmp) = (tag(port), &self.qmp);
        qmp.run_with("getfd", json!({ "fdname": tag }), stream).await?;
        let address = json!({ "type": "fd", "data": { "str": tag } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        qmp.run("chardev-add", json!({ "id": tag, "backend": backend })).await?;
        let device = json!({
            "driver": "vhost-user-fs-pci",
            "id": format!("fs-{tag}"),
            "chardev": tag,
            "tag": tag,
            "bus": port_name(port),
        });
        let plugged = qmp.run("device_add", device).await;
        if plugged.is_err() {
            let _ = qmp.run("chardev-remove", json!({ "id": tag })).await;
        }
        plugged.map(drop)
    }

    async fn unplug(&self, port: u32) -> Result<(), QmpError> {
        let tag = tag(port);
        delete_device(&self.qmp, &format!("fs-{tag}")).await?;
        self.qmp.run("chardev-remove", json!({ "id": tag })).await.map(drop)
    }
}

const TAG: &str = "share";

/// What the guest knows a share by.
fn tag(port: u32) -> String {
    format!("{TAG}{port}")
}

/// What the port of a share is called.
pub(super) fn port_name(port: u32) -> String {
    format!("port-{}", tag(port))
}

/// A listening socket without a name, and the one connection to it.
fn connected() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let directory = tempfile::tempdir()?; // nobody else's connection comes in
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    Ok((listener.into(), stream.into()))
}
