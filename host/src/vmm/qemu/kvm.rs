//! Whether KVM works, which is more than that its device opens.
//!
//! There are hosts, mostly virtual ones, where KVM takes a guest and then never gets its kernel
//! anywhere. So the kernel at hand is booted once without an initrd, all the way: it has to speak
//! soon, and to end in the panic of a kernel that has no root file system. What comes out is
//! remembered until the host reboots, or the kernel or QEMU changes.

mod cache;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::arguments::{Accelerator, Machine};
use super::console::Console;
use super::error::QemuError;
use super::process::{self, Process};

const DEVICE: &str = "/dev/kvm";

/// How long a kernel may take to say its first word. With working KVM it takes 0.1 to 0.3 s.
const FIRST_WORD: Duration = Duration::from_secs(3);

/// How long it may take to run to its end. With working KVM it takes 1 s.
const WHOLE_BOOT: Duration = Duration::from_secs(12);

/// Whether KVM works here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) works: bool,
    /// Why, for people.
    pub(super) reason: String,
}

/// Opens the device as QEMU will.
pub(super) fn open_device() -> std::io::Result<File> {
    File::options().read(true).write(true).open(DEVICE)
}

/// Finds out whether KVM runs `kernel`, or remembers it.
pub(super) async fn verdict(qemu: &Path, kernel: &Path) -> Result<Verdict, QemuError> {
    let cache = cache::Cache::open();
    let key = cache::key(qemu, kernel);
    if let (Some(cache), Some(key)) = (&cache, &key)
        && let Some(verdict) = cache.get(key)
    {
        return Ok(verdict);
    }
    let verdict = probe(qemu, kernel, Accelerator::Kvm, FIRST_WORD, WHOLE_BOOT).await?;
    if let (Some(cache), Some(key)) = (&cache, &key) {
        cache.put(key, &verdict);
    }
    Ok(verdict)
}

/// Boots `kernel` without an initrd.
async fn probe(
    qemu: &Path,
    kernel: &Path,
    accelerator: Accelerator,
    first_word: Duration,
    whole_boot: Duration,
) -> Result<Verdict, QemuError> {
    let start = Instant::now();
    let pair = UnixStream::pair().map_err(QemuError::create("console"))?;
    let (ours, theirs) = pair;
    let arguments = ["earlyprintk=ttyS0", "console=ttyS0", "panic=-1", "random.trust_cpu=on"];
    let machine = Machine {
        name: "linkspan-kvm-probe",
        kernel,
        initrd: None,
        kernel_arguments: &arguments.map(str::to_owned),
        memory_mib: 128,
        cpus: 1,
        accelerator,
        icount: false,
        console: theirs.as_raw_fd(),
        monitor: None,
        vsock: None,
        extra: &[],
    };
    let arguments: Vec<OsString> = machine.arguments();
    let console = Console::new(ours).map_err(QemuError::create("console"))?;
    let process = Process::spawn(PathBuf::from(qemu), arguments, vec![theirs.into()]).await?;

    let spoke = timeout(first_word, console.spoke()).await == Ok(true);
    let ended = match spoke {
        true => timeout(whole_boot.saturating_sub(start.elapsed()), process.ended()).await.ok(),
        false => None,
    };
    let status = match ended {
        Some(status) => status,
        None => {
            // What has not ended is stuck; what ends now by itself has failed to start.
            let early = timeout(Duration::ZERO, process.ended()).await.ok();
            process.kill();
            let status = process.ended().await;
            early.unwrap_or(status)
        }
    };
    let _ = timeout(Duration::from_secs(1), console.ended()).await;
    let millis = start.elapsed().as_millis();
    let verdict = |works, reason| Ok(Verdict { works, reason });
    if console.text().contains("Kernel panic") {
        return verdict(true, format!("the kernel ran to its end in {millis} ms"));
    }
    if spoke {
        return verdict(false, format!("the kernel began to boot and got stuck ({millis} ms)"));
    }
    if status.success() || status.code().is_some() {
        let stderr = process.stderr().await;
        return verdict(false, format!("{}: {stderr}", process::describe(status)));
    }
    let seconds = first_word.as_secs();
    verdict(false, format!("/dev/kvm opens, but the kernel said nothing within {seconds} s"))
}

#[cfg(test)]
mod tests;
