//! Whether KVM works, which is more than that its device opens.
//!
//! There are hosts, mostly virtual ones, where KVM takes a guest and then never gets its kernel
//! anywhere. So the kernel at hand is booted once without an initrd, all the way: it has to say its
//! version soon (its loader, in real mode, gets that far even where KVM is broken), and to end in
//! the panic of a kernel that has no root file system. What comes out is remembered until the host
//! reboots, or the kernel or QEMU changes.

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

/// What a kernel says first.
const FIRST_WORDS: &str = "Linux version";

/// What it says last, without a root file system.
const LAST_WORDS: &str = "Kernel panic";

/// How long a kernel may take to its first words. With working KVM it takes parts of a second.
const SPEAKING: Duration = Duration::from_secs(3);

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
    let (verdict, conclusive) = probe(qemu, kernel, Accelerator::Kvm, SPEAKING, WHOLE_BOOT).await?;
    if let (Some(cache), Some(key), true) = (&cache, &key, conclusive) {
        cache.put(key, &verdict);
    }
    Ok(verdict)
}

/// Boots `kernel` without an initrd. The flag says whether the verdict will hold: a QEMU that does
/// not even start may do so the next time.
async fn probe(
    qemu: &Path,
    kernel: &Path,
    accelerator: Accelerator,
    speaking: Duration,
    whole_boot: Duration,
) -> Result<(Verdict, bool), QemuError> {
    let start = Instant::now();
    let (ours, theirs) = UnixStream::pair().map_err(QemuError::create("console"))?;
    let arguments =
        ["edd=off", "earlyprintk=ttyS0", "console=ttyS0", "panic=-1", "random.trust_cpu=on"];
    let machine = Machine {
        name: "linkspan-kvm-probe",
        kernel,
        initrd: None,
        kernel_arguments: &arguments.map(str::to_owned),
        memory_mib: 128,
        pmem: 0,
        shares: 0,
        cpus: 1,
        accelerator,
        icount: false,
        console: theirs.as_raw_fd(),
        monitor: None,
        vsock: None,
        network: None,
        extra: &[],
    };
    let arguments: Vec<OsString> = machine.arguments();
    let console = Console::new(ours).map_err(QemuError::create("console"))?;
    let process = Process::spawn(PathBuf::from(qemu), arguments, vec![theirs.into()]).await?;

    let spoke = timeout(speaking, console.says(FIRST_WORDS)).await;
    let patience = match spoke {
        Ok(true) => whole_boot.saturating_sub(start.elapsed()),
        Ok(false) => Duration::from_secs(1), // it has closed its console: it is ending
        Err(_) => Duration::ZERO,
    };
    if timeout(patience, process.ended()).await.is_err() {
        process.kill();
    }
    let status = process.ended().await;
    let _ = timeout(Duration::from_secs(1), console.ended()).await;
    let millis = start.elapsed().as_millis();
    let verdict = |works, reason| Ok((Verdict { works, reason }, true));
    if console.text().contains(LAST_WORDS) {
        return verdict(true, format!("the kernel ran to its end in {millis} ms"));
    }
    if spoke == Ok(true) {
        return verdict(false, format!("the kernel began to boot and got stuck ({millis} ms)"));
    }
    if status.code().is_some() {
        let stderr = process.stderr().await;
        let reason = format!("{}: {stderr}", process::describe(status));
        return Ok((Verdict { works: false, reason }, false));
    }
    let seconds = speaking.as_secs();
    verdict(false, format!("/dev/kvm opens, but the kernel said nothing within {seconds} s"))
}

#[cfg(test)]
mod tests;
