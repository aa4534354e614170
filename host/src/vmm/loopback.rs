//! No machine: the guest agent in namespaces of this kernel.
//!
//! The agent is the very one of a utility VM. Its vsock is a directory of Unix sockets, its SCSI
//! disks are loop devices that it finds through links in the same directory. It watches its
//! standard input: when that ends, however this process ends, it ends everything inside, removes
//! its cgroups and the directory.

mod loop_device;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hyperv_socket::{Listener, Local};
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use self::loop_device::LoopDevice;
use super::{Accept, Disk, PortListener, ScsiAddress, VmExit, Vmm};
use crate::error::Context;
use crate::{Error, Result};

/// How much of the agent's output is kept.
const CONSOLE: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct LoopbackOptions {
    pub(crate) name: String,
    pub(crate) agent: PathBuf,
    pub(crate) flags: Vec<String>,
    /// Where the vsock's Unix sockets are, if they are to be somebody else's.
    pub(crate) export: Option<PathBuf>,
}

#[derive(Debug)]
pub(crate) struct Loopback {
    pid: u32,
    /// The agent's side removes it.
    directory: PathBuf,
    /// `<vsock>_<port>` are the sockets.
    vsock: PathBuf,
    disks: Mutex<HashMap<ScsiAddress, LoopDevice>>,
    /// Its end is the agent's.
    stdin: Mutex<Option<ChildStdin>>,
    exit: watch::Receiver<Option<VmExit>>,
    console: Arc<Mutex<Vec<u8>>>,
}

impl Loopback {
    pub(crate) async fn start(options: LoopbackOptions) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            let reason = "takes root; run it with sudo, or use the qemu backend".to_owned();
            return Err(Error::Option { option: "loopback", reason });
        }
        let agent = fs::canonicalize(&options.agent)
            .context(|| format!("find the guest agent {}", options.agent.display()))?;
        let directory = tempfile::Builder::new()
            .prefix("linkspan-")
            .tempdir()
            .context(|| "make a directory for the loopback backend".to_owned())?;
        fs::create_dir(directory.path().join("disks"))
            .context(|| "make a directory for disks".to_owned())?;
        let vsock = options.export.unwrap_or_else(|| directory.path().join("vsock"));
        let mut host = OsString::from("-host=hybrid:");
        host.push(&vsock);
        let name = directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut child = Command::new(&agent)
            .arg("loopback")
            .args(&options.flags)
            .arg(host)
            .arg(format!("-cgroup=/{name}"))
            .arg("-directory")
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0) // a terminal's Ctrl-C is for us to handle
            .spawn()
            .context(|| format!("run {}", agent.display()))?;
        // From here on the directory is the child's to remove.
        let directory = directory.keep();
        let (sender, exit) = watch::channel(None);
        let console = Arc::new(Mutex::new(Vec::new()));
        let pid = child.id().unwrap_or_default();
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let (kept, leftover) = (Arc::clone(&console), directory.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            if let Some(mut stderr) = stderr {
                while let Ok(len @ 1..) = stderr.read(&mut buffer).await {
                    keep(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), &buffer[..len]);
                }
            }
        });
        tokio::spawn(async move {
            let exit = match child.wait().await {
                Ok(status) => {
                    let reason = format!("the agent ended: {status}");
                    VmExit { clean: status.success(), reason }
                }
                Err(error) => VmExit { clean: false, reason: error.to_string() },
            };
            debug!(?exit, "loopback");
            if !exit.clean {
                tidy(&leftover).await;
            }
            sender.send_replace(Some(exit));
        });
        debug!(name = options.name, pid, directory = %directory.display(), "loopback started");
        let (disks, stdin) = (Mutex::default(), Mutex::new(stdin));
        Ok(Self { pid, directory, vsock, disks, stdin, exit, console })
    }

    fn link(&self, address: ScsiAddress) -> PathBuf {
        self.directory.join(format!("disks/{}_{}", address.controller, address.lun))
    }

    fn disks(&self) -> std::sync::MutexGuard<'_, HashMap<ScsiAddress, LoopDevice>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what an agent that was killed could not: removes its directory and its cgroups. The kernel
/// is ending what was in them.
async fn tidy(directory: &Path) {
    let _ = fs::remove_dir_all(directory);
    let Some(name) = directory.file_name() else { return };
    let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let roots: Vec<PathBuf> = roots.map(|entry| entry.path()).collect();
    let unified = PathBuf::from("/sys/fs/cgroup");
    for _ in 0..100 {
        let all = roots.iter().chain([&unified]).map(|root| root.join(name));
        let left: Vec<PathBuf> = all.filter(|path| path.is_dir()).collect();
        if left.is_empty() {
            return;
        }
        left.iter().for_each(|path| remove_cgroup(path));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    warn!(name = %name.display(), "cgroups of a killed agent are left");
}

fn remove_cgroup(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    entries.flatten().filter(|entry| entry.path().is_dir()).for_each(|e| remove_cgroup(&e.path()));
    let _ = fs::remove_dir(path);
}

fn keep(console: &mut Vec<u8>, bytes: &[u8]) {
    console.extend_from_slice(bytes);
    let excess = console.len().saturating_sub(CONSOLE);
    console.drain(..excess);
}

#[async_trait]
impl Vmm for Loopback {
    fn backend(&self) -> &'static str {
        "loopback"
    }

    fn describe(&self) -> String {
        format!("loopback, pid {}", self.pid)
    }

    fn shares_directories(&self) -> bool {
        true
    }

    async fn listen(&self, port: u32, accept: Accept) -> Result<PortListener> {
        let local = Local::HybridHost { path: self.vsock.clone() };
        let listener = Listener::bind(&local, port).context(|| format!("listen on port {port}"))?;
        let (sender, incoming) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        if sender.send(stream).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        warn!(port, %error, "accept");
                        return;
                    }
                }
                if accept == Accept::Once {
                    return;
                }
            }
        });
        Ok(PortListener::new(port, incoming, AbortOnDrop(task)))
    }

    async fn attach_disk(&self, address: ScsiAddress, disk: Disk) -> Result<()> {
        let device = LoopDevice::attach(&disk.file, disk.size, disk.read_only)
            .context(|| format!("attach disk {address} as a loop device"))?;
        let link = self.link(address);
        symlink(device.path(), &link).context(|| format!("link {}", link.display()))?;
        self.disks().insert(address, device);
        Ok(())
    }

    async fn detach_disk(&self, address: ScsiAddress) -> Result<()> {
        if self.disks().remove(&address).is_some() {
            let link = self.link(address);
            match fs::remove_file(&link) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context(|| format!("remove {}", link.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn exited(&self) -> VmExit {
        let mut exit = self.exit.clone();
        let gone = || VmExit { clean: false, reason: "nobody watches the agent".to_owned() };
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(gone),
            Err(_) => gone(),
        }
    }

    async fn terminate(&self) {
        drop(self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.exited().await;
        self.disks().clear();
    }

    fn boot_phase(&self) -> String {
        match Path::new(&format!("/proc/{}", self.pid)).exists() {
            true => "agent started".to_owned(),
            false => "agent ended".to_owned(),
        }
    }

    fn console_tail(&self) -> String {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
