//! Machines on QEMU.
//!
//! Nothing of a machine has a name in the file system: monitor, console, vsock and disks are
//! descriptors, memory is a memfd. When this process ends, however it ends, the machine is gone.
//!
//! | module      | what it holds                                                   |
//! |-------------|-----------------------------------------------------------------|
//! | `options`   | what a machine is to be like, and what of that cannot be        |
//! | `arguments` | the command line                                                |
//! | `kvm`       | whether KVM works here                                          |
//! | `process`   | one QEMU that cannot outlive us                                 |
//! | `qmp`       | the monitor                                                     |
//! | `console`   | what the guest writes, and how far its boot has come            |
//! | `vsock`     | the guest's connections: our device, or in `vhost` the kernel's |
//! | `disks`     | attaching and detaching                                         |
//! | `pmem`      | attaching persistent memory                                     |
//! | `shares`    | sharing directories                                             |
//! | `doctor`    | what this machine has of all that                               |

mod arguments;
mod console;
mod disks;
mod doctor;
mod error;
mod kvm;
mod options;
mod pmem;
mod process;
mod qmp;
mod shares;
mod vhost;
mod vsock;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

pub(crate) use doctor::examine;
pub(crate) use error::QemuError;
pub use options::Accel;
pub(crate) use options::QemuOptions;

use self::arguments::Machine;
use self::console::Console;
use self::disks::Disks;
use self::process::Process;
use self::qmp::Qmp;
use self::shares::Shares;
use self::vsock::Vsock;
use super::{Accept, Disk, FollowConsole, PortListener, ScsiAddress, VmExit, Vmm};
use crate::Result;

/// How long QEMU may take to end in good order.
const QUIT_TIME: Duration = Duration::from_secs(2);

/// How long what QEMU said last may take to arrive once it has ended.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// A machine on QEMU. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Qemu {
    description: String,
    process: Arc<Process>,
    qmp: Qmp,
    console: Console,
    vsock: Arc<Vsock>,
    disks: Disks,
    pmem: u32,
    shares: Shares,
    told: Arc<AtomicBool>,
    exit: watch::Receiver<Option<VmExit>>,
}

impl Qemu {
    /// Starts a machine. Its guest is booting when this returns; listen on the ports it will
    /// connect to before doing anything else.
    ///
    /// # Errors
    ///
    /// [`QemuError`], as [`crate::Error`], says what to do about it.
    pub(crate) async fn start(options: QemuOptions) -> Result<Self> {
        Ok(Self::launch(options).await?)
    }

    async fn launch(mut options: QemuOptions) -> std::result::Result<Self, QemuError> {
        options.check()?;
        let program = options.program()?;
        let accelerator = options.accelerator(&program).await?;
        let kernel_arguments = arguments::kernel_arguments(accelerator, &options.kernel_arguments)?;

        let pair = |what| UnixStream::pair().map_err(QemuError::create(what));
        let (our_console, console) = pair("console")?;
        let (our_monitor, monitor) = pair("monitor")?;
        let vsock = Vsock::new(options.guest_cid, options.export_vsock.clone())?;
        let (vsock_arguments, vsock_descriptor) = vsock.frontend()?;
        let machine = Machine {
            name: &options.name,
            kernel: &options.kernel,
            initrd: Some(&options.initrd),
            kernel_arguments: &kernel_arguments,
            memory_mib: options.memory_mib,
            pmem: options.pmem,
            shares: options.shares,
            cpus: options.cpus,
            accelerator,
            icount: options.icount,
            console: console.as_raw_fd(),
            monitor: Some(monitor.as_raw_fd()),
            vsock: Some(vsock_arguments),
            network: options.network.as_ref(),
            extra: &options.extra_args,
        };
        let arguments = machine.arguments();
        tracing::debug!(program = %program.display(), ?arguments, "starting QEMU");
        let descriptors: Vec<OwnedFd> = vec![console.into(), monitor.into(), vsock_descriptor];

        let reason = Arc::new(Mutex::new(None));
        let console = Console::new(our_console).map_err(QemuError::create("console"))?;
        let remember = Arc::clone(&reason);
        let qmp = Qmp::new(our_monitor, move |event| {
            if let (Some(new), "SHUTDOWN") = (event.text("reason"), event.name.as_str()) {
                *remember.lock().unwrap_or_else(PoisonError::into_inner) = Some(new.to_owned());
            }
        })
        .map_err(QemuError::create("monitor"))?;
        let process = Process::spawn(program, arguments, descriptors).await?;
        // Any answer will do: it says that all devices could be made.
        if let Err(error) = qmp.run("query-status", Value::Null).await {
            return Err(why_not(&process, &options.kernel, error).await);
        }

        let description = format!(
            "qemu ({}, {} cpus, {} MiB), pid {}",
            accelerator.name(),
            options.cpus,
            options.memory_mib,
            process.pid()
        );
        let (process, vsock) = (Arc::new(process), Arc::new(vsock));
        let told = Arc::new(AtomicBool::new(false));
        let (exit_sender, exit) = watch::channel(None);
        tokio::spawn({
            let (qmp, console, told) = (qmp.clone(), console.clone(), Arc::clone(&told));
            let (ended, vsock) = (process.watch(), Arc::clone(&vsock));
            async move {
                let status = ended.await;
                let drained = async { tokio::join!(qmp.ended(), console.ended(), vsock.close()) };
                let _ = timeout(DRAIN_TIME, drained).await;
                let reason = reason.lock().unwrap_or_else(PoisonError::into_inner).take();
                let told = told.load(Ordering::Acquire);
                let exit = judge(status, reason.as_deref(), told, &console.text());
                tracing::debug!(?exit, "QEMU has ended");
                exit_sender.send_replace(Some(exit));
            }
        });
        Ok(Self {
            description,
            process,
            disks: Disks::new(qmp.clone()),
            pmem: options.pmem,
            shares: Shares::new(qmp.clone(), options.shares),
            qmp,
            console,
            vsock,
            told,
            exit,
        })
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn backend(&self) -> &'static str {
        "qemu"
    }

    fn describe(&self) -> String {
        self.description.clone()
    }

    async fn listen(&self, port: u32, accept: Accept) -> Result<PortListener> {
        Ok(self.vsock.listen(port, accept)?)
    }

    async fn attach_disk(&self, address: ScsiAddress, disk: Disk) -> Result<()> {
        Ok(self.disks.attach(address, disk).await?)
    }

    async fn detach_disk(&self, address: ScsiAddress) -> Result<()> {
        Ok(self.disks.detach(address).await?)
    }

    fn pmem_slots(&self) -> u32 {
        self.pmem
    }

    fn pmem_unit(&self) -> u64 {
        pmem::UNIT
    }

    async fn attach_pmem(&self, number: u32, disk: Disk) -> Result<()> {
        Ok(pmem::attach(&self.qmp, number, disk).await?)
    }

    async fn share_directory(&self, directory: &Path, read_only: bool) -> Result<String> {
        Ok(self.shares.add(directory, read_only).await?)
    }

    async fn unshare_directory(&self, tag: &str) -> Result<()> {
        Ok(self.shares.remove(tag).await?)
    }

    async fn exited(&self) -> VmExit {
        let mut exit = self.exit.clone();
        let known = exit.wait_for(Option::is_some).await;
        known.ok().and_then(|exit| exit.clone()).unwrap_or_else(|| VmExit {
            clean: false,
            reason: "this process is shutting down".into(),
        })
    }

    async fn terminate(&self) {
        self.told.store(true, Ordering::Release);
        let in_good_order = async {
            let _ = self.qmp.run("quit", Value::Null).await; // it may have ended already
            self.process.ended().await;
        };
        if timeout(QUIT_TIME, in_good_order).await.is_err() {
            self.process.kill();
        }
        self.process.ended().await;
        self.exited().await;
    }

    fn boot_phase(&self) -> String {
        self.console.phase().to_string()
    }

    fn console(&self) -> String {
        self.console.text()
    }

    fn follow_console(&self) -> Option<Box<dyn FollowConsole>> {
        Some(Box::new(self.console.follow()))
    }

    fn console_tail(&self) -> String {
        self.console.tail()
    }
}

/// Why QEMU does not answer its monitor.
async fn why_not(process: &Process, kernel: &Path, error: qmp::QmpError) -> QemuError {
    match timeout(DRAIN_TIME, process.ended()).await {
        Ok(status) => {
            let (how, stderr) = (process::describe(status), process.stderr().await);
            QemuError::EndedAtOnce { kernel: kernel.to_owned(), how, stderr }
        }
        Err(_) => error.into(),
    }
}

/// How a machine ended, from what is known of it. `reason` is the monitor's.
fn judge(status: ExitStatus, reason: Option<&str>, told: bool, console: &str) -> VmExit {
    let panic =
        || console.lines().rev().find_map(|line| line.find("Kernel panic").map(|at| &line[at..]));
    let (clean, text) = match reason {
        _ if told => (true, "it was told to end".to_owned()),
        Some("guest-shutdown") => (true, "the guest powered off".into()),
        Some("host-qmp-quit") => (true, "QEMU was told to quit".into()),
        Some("guest-reset" | "guest-panic") => match panic() {
            Some(panic) => (false, format!("the guest's kernel panicked: {panic}")),
            None => (false, "the guest restarted, which ends a utility VM".into()),
        },
        Some("host-signal") => (false, "somebody sent QEMU a signal to end".into()),
        _ => (false, process::describe(status)),
    };
    let crashed = status.signal().is_some() && !told;
    let text = if crashed { process::describe(status) } else { text };
    VmExit { clean: clean && !crashed, reason: text }
}

#[cfg(test)]
mod tests;
