//! What a machine is to be like.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::arguments::Accelerator;
use super::error::QemuError;
use super::{kvm, pmem, shares};
use crate::network::UserNetwork;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM if it works, which is tried out once per boot of the host, otherwise TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// QEMU's translator. Works everywhere, some ten times slower.
    Tcg,
}

/// What a machine is to be like.
#[derive(Debug, Clone)]
pub(crate) struct QemuOptions {
    /// For people, in process lists.
    pub name: String,
    /// A bzImage, or an ELF vmlinux with a PVH entry.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// More arguments for the kernel; they may overrule ours.
    pub kernel_arguments: Vec<String>,
    /// 64 to 1,048,576 MiB.
    pub memory_mib: u32,
    /// Pieces of persistent memory that may be added while it runs, up to 128.
    pub pmem: u32,
    /// Directories that may be shared at once, up to 16.
    pub shares: u32,
    /// 1 to 255.
    pub cpus: u32,
    /// KVM or not.
    pub accel: Accel,
    /// The QEMU to run; by default `qemu-system-x86_64` in `PATH`.
    pub qemu: Option<PathBuf>,
    /// Offers the guest's vsock to other processes: its connections to a port P without a listener
    /// go to the Unix socket `PATH_P`, and at `PATH` one says `CONNECT P` to connect into it.
    pub export_vsock: Option<PathBuf>,
    /// Its network; without one the guest has no adapter.
    pub network: Option<UserNetwork>,
    /// Counts instructions: one is one nanosecond of the guest's time. For measuring.
    pub icount: bool,
    /// The guest's context id, 3 or above. The kernel's vsock device picks one itself.
    pub guest_cid: u64,
    /// More arguments for QEMU, behind all others.
    pub extra_args: Vec<OsString>,
}

impl QemuOptions {
    /// One processor, 512 MiB, and KVM if it works.
    #[cfg(test)]
    pub(crate) fn new(
        name: impl Into<String>,
        kernel: impl Into<PathBuf>,
        initrd: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            kernel: kernel.into(),
            initrd: initrd.into(),
            kernel_arguments: Vec::new(),
            memory_mib: 512,
            pmem: 0,
            shares: 0,
            cpus: 1,
            accel: Accel::Auto,
            qemu: None,
            export_vsock: None,
            network: None,
            icount: false,
            guest_cid: 3,
            extra_args: Vec::new(),
        }
    }

    /// Finds what is wrong without starting anything, and makes paths absolute: QEMU runs in
    /// another directory.
    pub(super) fn check(&mut self) -> Result<(), QemuError> {
        if !(64..=1 << 20).contains(&self.memory_mib) {
            return Err(QemuError::Memory(self.memory_mib));
        }
        if !(1..=255).contains(&self.cpus) {
            return Err(QemuError::Cpus(self.cpus));
        }
        if self.pmem > pmem::MOST {
            return Err(QemuError::PmemSlots(self.pmem));
        }
        if self.shares > shares::MOST {
            return Err(QemuError::Shares(self.shares));
        }
        if self.icount && self.cpus != 1 {
            return Err(QemuError::Icount("several processors"));
        }
        if self.icount && self.accel == Accel::Kvm {
            return Err(QemuError::Icount("KVM"));
        }
        readable("kernel", &mut self.kernel)?;
        readable("initrd", &mut self.initrd)
    }

    /// The QEMU to run.
    pub(super) fn program(&self) -> Result<PathBuf, QemuError> {
        let Some(path) = &self.qemu else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            return find_in(&path).ok_or(QemuError::NoQemu);
        };
        std::path::absolute(path).map_err(|source| QemuError::Run { path: path.clone(), source })
    }

    /// What to run on, found out.
    pub(super) async fn accelerator(&self, program: &Path) -> Result<Accelerator, QemuError> {
        if self.accel == Accel::Tcg || self.icount {
            return Ok(Accelerator::Tcg);
        }
        if let Err(error) = kvm::open_device() {
            return match self.accel {
                Accel::Kvm => Err(QemuError::KvmDevice(error)),
                _ => {
                    tracing::info!(reason = %error, "running on TCG: /dev/kvm does not open");
                    Ok(Accelerator::Tcg)
                }
            };
        }
        let verdict = kvm::verdict(program, &self.kernel).await?;
        match (verdict.works, self.accel) {
            (true, _) => {
                tracing::info!(reason = verdict.reason, "running on KVM");
                Ok(Accelerator::Kvm)
            }
            (false, Accel::Kvm) => Err(QemuError::KvmBroken(verdict.reason)),
            (false, _) => {
                tracing::info!(reason = verdict.reason, "running on TCG: KVM does not work here");
                Ok(Accelerator::Tcg)
            }
        }
    }
}

fn readable(what: &'static str, path: &mut PathBuf) -> Result<(), QemuError> {
    let found = File::open(&path).and_then(|file| {
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        std::path::absolute(&path)
    });
    *path = found.map_err(|source| QemuError::BootFile { what, path: path.clone(), source })?;
    Ok(())
}

/// QEMU in a search path.
pub(super) fn find_in(path: &std::ffi::OsStr) -> Option<PathBuf> {
    use rustix::fs::{Access, access};
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("qemu-system-x86_64"))
        .find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_is_found_in_the_search_path() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().unwrap();
        let (empty, bin) = (base.path().join("empty"), base.path().join("bin"));
        std::fs::create_dir_all(&empty).unwrap();
        std::fs::create_dir_all(&bin).unwrap();
        let path = std::env::join_paths([Path::new("relative"), &empty, &bin]).unwrap();
        assert_eq!(find_in(&path), None);
        let qemu = bin.join("qemu-system-x86_64");
        std::fs::write(&qemu, "").unwrap();
        assert_eq!(find_in(&path), None);
        std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in(&path), Some(qemu));
    }

    fn message(options: &QemuOptions) -> String {
        options.clone().check().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_is_said_with_its_value_and_its_bounds() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        std::fs::write(&file, "").unwrap();
        let good = QemuOptions::new("vm", &file, &file);
        good.clone().check().unwrap();
        for memory_mib in [0, 63, (1 << 20) + 1] {
            let text = message(&QemuOptions { memory_mib, ..good.clone() });
            assert!(
                text.contains(&format!("{memory_mib} MiB")) && text.contains("1048576"),
                "{text}"
            );
        }
        for cpus in [0, 256] {
            let text = message(&QemuOptions { cpus, ..good.clone() });
            assert!(text.contains(&cpus.to_string()) && text.contains("255"), "{text}");
        }
        let text = message(&QemuOptions { pmem: 129, ..good.clone() });
        assert!(text.contains("129") && text.contains("128"), "{text}");
        assert!(message(&QemuOptions { icount: true, cpus: 2, ..good.clone() }).contains("icount"));
        let missing = QemuOptions { initrd: base.path().join("nothing"), ..good.clone() };
        assert!(message(&missing).contains("initrd") && message(&missing).contains("nothing"));
        let directory = QemuOptions { kernel: base.path().into(), ..good };
        assert!(message(&directory).contains("kernel"));
    }
}
