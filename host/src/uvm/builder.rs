//! How a utility VM is described and started.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use linkspan_protocol::message::{ContainerId, Create, Start, UvmDocument};
use linkspan_protocol::port;
use linkspan_protocol::resource::Network;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tracing::info;

use super::UtilityVm;
use crate::boot_ports;
use crate::bridge::Bridge;
use crate::error::Context;
use crate::network::{PortForward, UserNetwork};
use crate::vmm::loopback::{Loopback, LoopbackOptions};
use crate::vmm::qemu::{Accel, Qemu, QemuOptions};
use crate::vmm::{Accept, PortListener, VmExit, Vmm};
use crate::{Error, Result};

/// How long the reason for a machine's end may take to arrive.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The longest path of a Unix socket, in bytes.
const SOCKET_PATH: usize = 107;

/// What runs the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A virtual machine under QEMU.
    #[default]
    Qemu,
    /// No machine: the guest agent in namespaces of this kernel. For tests, and where process
    /// isolation is enough. Takes root.
    Loopback,
}

/// A utility VM to be started.
///
/// | option | default |
/// |---|---|
/// | [`backend`](Self::backend) | QEMU |
/// | [`image`](Self::image) | none: a kernel and an initrd (QEMU), or an agent (loopback), is needed |
/// | [`memory_mib`](Self::memory_mib) | 512 |
/// | [`pmem`](Self::pmem) | 0 pieces |
/// | [`shares`](Self::shares) | 0 directories |
/// | [`cpus`](Self::cpus) | 2 |
/// | [`accel`](Self::accel) | KVM where it works |
/// | [`boot_timeout`](Self::boot_timeout) | 60 s |
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    name: String,
    backend: Backend,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    agent: Option<PathBuf>,
    memory_mib: u32,
    pmem: u32,
    shares: u32,
    cpus: u32,
    accel: Accel,
    boot_timeout: Duration,
    kernel_args: Vec<String>,
    log_level: Option<String>,
    agent_args: Vec<String>,
    qemu: Option<PathBuf>,
    qemu_args: Vec<OsString>,
    network: Option<UserNetwork>,
    icount: bool,
}

impl Builder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            backend: Backend::Qemu,
            kernel: None,
            initrd: None,
            agent: None,
            memory_mib: 512,
            pmem: 0,
            shares: 0,
            cpus: 2,
            accel: Accel::Auto,
            boot_timeout: Duration::from_secs(60),
            kernel_args: Vec::new(),
            log_level: None,
            agent_args: Vec::new(),
            qemu: None,
            qemu_args: Vec::new(),
            network: None,
            icount: false,
        }
    }

    /// What runs the machine.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// A directory with `vmlinux` or `vmlinuz`, `initrd` and `agent`, as the image builder makes
    /// it. Sets kernel, initrd and agent.
    pub fn image(mut self, directory: impl AsRef<Path>) -> Self {
        let directory = directory.as_ref();
        let vmlinux = directory.join("vmlinux");
        let kernel = if vmlinux.exists() { vmlinux } else { directory.join("vmlinuz") };
        self.kernel = Some(kernel);
        self.initrd = Some(directory.join("initrd"));
        self.agent = Some(directory.join("agent"));
        self
    }

    /// The kernel: a bzImage, or an ELF file with a PVH entry.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel = Some(path.into());
        self
    }

    /// The initial ramdisk, with the guest agent in it.
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.initrd = Some(path.into());
        self
    }

    /// The guest agent's program, for [`Backend::Loopback`].
    pub fn agent(mut self, path: impl Into<PathBuf>) -> Self {
        self.agent = Some(path.into());
        self
    }

    /// Memory in MiB.
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.memory_mib = memory;
        self
    }

    /// How many layers may be put into the guest's address space as persistent memory, up to 128.
    /// They are shared with this host's page cache, and stay until the machine ends. Layers that
    /// are no images yet, and images whose size is a multiple of 2 MiB, go there as long as there
    /// is a piece left; all others are SCSI disks. QEMU only.
    pub fn pmem(mut self, pieces: u32) -> Self {
        self.pmem = pieces;
        self
    }

    /// How many directories may be shared with containers at once, up to 16; see
    /// [`ContainerBuilder::share`](crate::ContainerBuilder::share). The loopback backend needs none
    /// to be set aside.
    pub fn shares(mut self, directories: u32) -> Self {
        self.shares = directories;
        self
    }

    /// Virtual processors.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// How its instructions are run.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// How long it may take from its start to the guest agent's first answer.
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// Adds a word to the kernel's command line.
    pub fn kernel_arg(mut self, arg: impl Into<String>) -> Self {
        self.kernel_args.push(arg.into());
        self
    }

    /// How much the guest agent logs: `error`, `warning`, `info`, `debug` or `trace`.
    pub fn log_level(mut self, level: impl Into<String>) -> Self {
        self.log_level = Some(level.into());
        self
    }

    /// A further flag of the guest agent, such as `-kmsgLogLevel=7`; `linkspan-guest -help` has
    /// them all. It may hold no comma and no space.
    pub fn agent_arg(mut self, arg: impl Into<String>) -> Self {
        self.agent_args.push(arg.into());
        self
    }

    /// The QEMU program, in place of `qemu-system-x86_64` in `PATH`.
    pub fn qemu(mut self, path: impl Into<PathBuf>) -> Self {
        self.qemu = Some(path.into());
        self
    }

    /// Adds an argument to QEMU's command line.
    pub fn qemu_arg(mut self, arg: impl Into<OsString>) -> Self {
        self.qemu_args.push(arg.into());
        self
    }

    /// Gives it QEMU's user network: connections go out as this process's, and the forwarded ports
    /// lead in. One container can have it; see
    /// [`ContainerBuilder::network`](crate::ContainerBuilder::network).
    pub fn user_network(mut self, forwards: impl IntoIterator<Item = PortForward>) -> Self {
        self.network = Some(UserNetwork { forwards: forwards.into_iter().collect() });
        self
    }

    /// Counts instructions in place of time: one processor, one nanosecond each. For measuring.
    pub fn count_instructions(mut self) -> Self {
        self.icount = true;
        self
    }

    /// Starts it, and waits for the guest agent.
    ///
    /// # Errors
    /// [`Error::Boot`] when it does not come up, with the phase that it hung in and the end of
    /// its console; nothing of it is left then.
    pub async fn start(self) -> Result<UtilityVm> {
        self.start_wrapped(|vmm| vmm).await
    }

    /// As [`start`](Self::start), with something of the caller's own between the machine and all
    /// that talks to it: to watch what passes, or to disturb it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_wrapped(
        self,
        wrap: impl FnOnce(Arc<dyn Vmm>) -> Arc<dyn Vmm>,
    ) -> Result<UtilityVm> {
        let vmm = wrap(self.clone().start_machine(None).await?);
        self.attach(vmm).await
    }

    /// Takes a machine that runs already, or is about to: waits for its guest agent. Of the options
    /// only the name, the network and the time for the boot count.
    ///
    /// # Errors
    /// As [`start`](Self::start); the machine is ended then.
    pub async fn attach(self, vmm: Arc<dyn Vmm>) -> Result<UtilityVm> {
        let (name, timeout) = (self.name, self.boot_timeout);
        let has_network = self.network.is_some();
        let began = std::time::Instant::now();
        // Ends with this future, so that nothing keeps the machine then.
        let mut ports = JoinSet::new();
        let connected = async {
            // A machine that ends takes its vsock along, and says why a little later.
            let ended = async |error| match tokio::time::timeout(LAST_WORD, vmm.exited()).await {
                Ok(exit) => boot_error(&name, &*vmm, exit.reason),
                Err(_) => error,
            };
            boot_ports::serve(&name, &vmm, &mut ports).await;
            let mut listener = match vmm.listen(port::BRIDGE, Accept::Many).await {
                Ok(listener) => listener,
                Err(error) => return Err(ended(error).await),
            };
            let Some(stream) = listener.accept().await else {
                let error = boot_error(&name, &*vmm, "its vsock ended".to_owned());
                return Err(ended(error).await);
            };
            let bridge = Bridge::establish(stream, listener).await?;
            create_machine(&bridge).await?;
            Ok(bridge)
        };
        let seconds = timeout.as_secs();
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(timeout, connected) => outcome.unwrap_or_else(|_| {
                Err(boot_error(&name, &*vmm, format!("no answer within {seconds} s")))
            }),
            exit = vmm.exited() => Err(boot_error(&name, &*vmm, exit.reason)),
        };
        match outcome {
            Ok(bridge) => {
                info!(name, vmm = vmm.describe(), took = ?began.elapsed(), "utility VM is up");
                ports.detach_all();
                Ok(UtilityVm::new(name, vmm, bridge, has_network))
            }
            Err(error) => {
                vmm.terminate().await;
                Err(error)
            }
        }
    }

    /// Starts it for somebody else's host: the guest's connection to port `P` arrives at the Unix
    /// socket `<path>_P`, where that host listens. Nothing waits for the guest agent.
    ///
    /// # Errors
    /// When the machine cannot be started, or no socket could be at such a path.
    pub async fn start_exported(self, path: impl Into<PathBuf>) -> Result<Machine> {
        let (name, path) = (self.name.clone(), path.into());
        check_export(&path)?;
        let adapter = self.network.is_some().then(UserNetwork::adapter);
        let vmm = self.start_machine(Some(path)).await?;
        Ok(Machine { name, vmm, adapter })
    }

    async fn start_machine(self, export: Option<PathBuf>) -> Result<Arc<dyn Vmm>> {
        let missing = |option, what: &str| Error::Option {
            option,
            reason: format!("is missing: {what} (cargo xtask image makes one)"),
        };
        if let Some(bad) = self.agent_args.iter().find(|arg| arg.contains([',', ' '])) {
            let reason = format!("{bad:?} has a comma or a space");
            return Err(Error::Option { option: "agent argument", reason });
        }
        let level = self.log_level.iter().map(|level| format!("-loglevel={level}"));
        let agent_flags: Vec<String> = level.chain(self.agent_args.iter().cloned()).collect();
        match self.backend {
            Backend::Qemu => {
                let absolute = |path: PathBuf| {
                    std::path::absolute(&path).context(|| format!("find {}", path.display()))
                };
                let kernel =
                    absolute(self.kernel.ok_or_else(|| missing("kernel", "give a kernel"))?)?;
                let initrd =
                    absolute(self.initrd.ok_or_else(|| missing("initrd", "give an initrd"))?)?;
                let mut kernel_args = self.kernel_args;
                if !agent_flags.is_empty() {
                    kernel_args.push(format!("linkspan.agent={}", agent_flags.join(",")));
                }
                let options = QemuOptions {
                    name: self.name,
                    kernel,
                    initrd,
                    kernel_arguments: kernel_args,
                    memory_mib: self.memory_mib,
                    pmem: self.pmem,
                    shares: self.shares,
                    cpus: self.cpus,
                    accel: self.accel,
                    qemu: self.qemu,
                    export_vsock: export,
                    network: self.network,
                    icount: self.icount,
                    guest_cid: 3,
                    extra_args: self.qemu_args,
                };
                Ok(Arc::new(Qemu::start(options).await?))
            }
            Backend::Loopback => {
                if self.network.is_some() {
                    let reason = "the loopback backend has none".to_owned();
                    return Err(Error::Option { option: "user network", reason });
                }
                let agent =
                    self.agent.ok_or_else(|| missing("agent", "give the agent's program"))?;
                let options =
                    LoopbackOptions { name: self.name, agent, flags: agent_flags, export };
                Ok(Arc::new(Loopback::start(options).await?))
            }
        }
    }
}

/// Makes the machine itself known to a guest that asks for it. Linux guests do not.
async fn create_machine(bridge: &Bridge) -> Result<()> {
    let capabilities = bridge.capabilities();
    if !capabilities.send_host_create_message {
        return Ok(());
    }
    let document = UvmDocument { system_type: "Container".to_owned(), ..UvmDocument::default() };
    let create = Create::new(&document)
        .map_err(|error| Error::Option { option: "machine", reason: error.to_string() })?;
    let what = || "create the machine in its guest".to_owned();
    bridge.call(&ContainerId::uvm(), &create, what).await?;
    if capabilities.send_host_start_message {
        let what = || "start the machine in its guest".to_owned();
        bridge.call(&ContainerId::uvm(), &Start {}, what).await?;
    }
    Ok(())
}

/// Whether the sockets of all ports can be there: nobody would notice later that they cannot.
fn check_export(path: &Path) -> Result<()> {
    let refuse = |reason: &str| {
        let reason = format!("{}: {reason}", path.display());
        Err(Error::Option { option: "export-vsock", reason })
    };
    let longest = path.as_os_str().len() + "_4294967295".len();
    if longest > SOCKET_PATH {
        return refuse(&format!(
            "PATH_PORT can have {longest} bytes, and a socket's path has at most {SOCKET_PATH}"
        ));
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match directory.is_none_or(Path::is_dir) {
        true => Ok(()),
        false => refuse("its directory does not exist"),
    }
}

fn boot_error(name: &str, vmm: &dyn Vmm, reason: String) -> Error {
    Error::Boot {
        name: name.to_owned(),
        reason,
        phase: vmm.boot_phase(),
        console: vmm.console_tail(),
    }
}

/// A machine whose bridge is somebody else's.
#[derive(Debug)]
pub struct Machine {
    name: String,
    vmm: Arc<dyn Vmm>,
    adapter: Option<Network>,
}

impl Machine {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine: its console, its description, its disks.
    pub fn vmm(&self) -> &dyn Vmm {
        &*self.vmm
    }

    /// What its guest has to be told of the adapter to the user network, if it has that.
    pub fn adapter(&self) -> Option<&Network> {
        self.adapter.as_ref()
    }

    /// Listens on a port that is not exported to the other host yet; see [`Vmm::listen`].
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn listen(&self, port: u32) -> Result<PortListener> {
        self.vmm.listen(port, Accept::Many).await
    }

    /// Waits until it has ended.
    pub async fn exited(&self) -> VmExit {
        self.vmm.exited().await
    }

    /// Ends it. Returns when nothing of it is left.
    pub async fn terminate(&self) {
        self.vmm.terminate().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::{Disk, ScsiAddress};
    use async_trait::async_trait;
    use std::future::pending;
    use tokio::sync::{mpsc, oneshot};

    /// A machine whose guest never comes up; it ends when it is dropped.
    #[derive(Debug)]
    struct Silent {
        _ended: oneshot::Sender<()>,
    }

    #[async_trait]
    impl Vmm for Silent {
        fn backend(&self) -> &'static str {
            "silent"
        }

        fn describe(&self) -> String {
            self.backend().to_owned()
        }

        async fn listen(&self, port: u32, _: Accept) -> Result<PortListener> {
            let (sender, incoming) = mpsc::unbounded_channel();
            Ok(PortListener::new(port, incoming, sender))
        }

        async fn attach_disk(&self, _: ScsiAddress, _: Disk) -> Result<()> {
            pending().await
        }

        async fn detach_disk(&self, _: ScsiAddress) -> Result<()> {
            pending().await
        }

        async fn exited(&self) -> VmExit {
            pending().await
        }

        async fn terminate(&self) {
            pending().await
        }

        fn boot_phase(&self) -> String {
            String::new()
        }

        fn console_tail(&self) -> String {
            String::new()
        }
    }

    #[tokio::test]
    async fn a_machine_that_is_not_waited_for_any_more_is_let_go() {
        let (alive, ended) = oneshot::channel();
        let vmm = Arc::new(Silent { _ended: alive });
        let attaching = UtilityVm::builder("x").attach(vmm);
        assert!(tokio::time::timeout(Duration::from_millis(20), attaching).await.is_err());
        let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
        assert!(matches!(ended, Ok(Err(_))), "something keeps the machine");
    }
}
