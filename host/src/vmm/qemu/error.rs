//! What goes wrong with QEMU, and what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::qmp::QmpError;
use crate::vmm::ScsiAddress;

/// Why a machine could not be started, or did not do as it was told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QemuError {
    /// There is no QEMU in the search path.
    #[error(
        "find qemu-system-x86_64: it is not in PATH; install it (Debian: apt install \
         qemu-system-x86) or name its path"
    )]
    NoQemu,
    /// The QEMU that was asked for is not there, or cannot be run.
    #[error("run QEMU {}: check that the file is there and executable", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A boot file cannot be read.
    #[error("read the {what} {}: check the path, or build a boot image first", path.display())]
    BootFile {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Too much memory, or too little.
    #[error("give the machine {0} MiB of memory: it has to be between 64 and 1048576")]
    Memory(u32),
    /// Too many processors, or none.
    #[error("give the machine {0} processors: it has to be between 1 and 255")]
    Cpus(u32),
    /// Options that exclude each other.
    #[error("count instructions with {0}: icount needs one processor and no KVM")]
    Icount(&'static str),
    /// A kernel argument would break out of its place.
    #[error(
        "pass the kernel argument {0:?}: it may not contain spaces outside quotes, or control characters"
    )]
    KernelArgument(String),
    /// KVM was asked for and the device does not open.
    #[error(
        "open /dev/kvm: check that the processor's virtualization is enabled and that you may \
         access it (group kvm), or use TCG"
    )]
    KvmDevice(#[source] io::Error),
    /// KVM was asked for and does not run the kernel.
    #[error("use KVM: {0}; use TCG, or automatic choice")]
    KvmBroken(String),
    /// A descriptor or thread for the machine could not be made.
    #[error("create the machine's {what}")]
    Create {
        /// Which one.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The vsock device could not be made.
    #[error("create the vsock device")]
    VsockDevice(#[from] linkspan_vsock::Error),
    /// Nobody can listen on that port.
    #[error("listen on vsock port {port}")]
    Listen {
        /// The port.
        port: u32,
        /// Why not.
        source: linkspan_vsock::Error,
    },
    /// The host's kernel does not let us listen.
    #[error(
        "listen on the host's vsock port {port}: with the kernel's vsock all machines of this \
         host share the ports; end the program that has it, or use the built-in device"
    )]
    ListenKernel {
        /// The port.
        port: u32,
        /// Why not.
        source: io::Error,
    },
    /// QEMU ended before it could be spoken to.
    #[error("start QEMU with kernel {}: {how}{}", kernel.display(), said(stderr))]
    EndedAtOnce {
        /// What it was to boot.
        kernel: PathBuf,
        /// Exit code or signal.
        how: String,
        /// The end of what it wrote on standard error.
        stderr: String,
    },
    /// A disk that cannot be attached as it is, or an address that is not free.
    #[error("attach a disk at {address}: {problem}")]
    Disk {
        /// Where it was to go.
        address: ScsiAddress,
        /// What is wrong.
        problem: String,
    },
    /// The descriptor of a disk cannot be used.
    #[error("attach a disk at {address}: use its descriptor")]
    DiskFile {
        /// Where it was to go.
        address: ScsiAddress,
        /// Why not.
        source: io::Error,
    },
    /// There cannot be persistent memory of that number.
    #[error("attach persistent memory {number}: {problem}")]
    Pmem {
        /// Which piece.
        number: u32,
        /// Why not.
        problem: String,
    },
    /// A directory cannot be shared.
    #[error("share {}: {problem}", path.display())]
    Share {
        /// Which.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// More shares than a machine takes.
    #[error("shares: {0} are more than the {most} that a machine takes", most = super::shares::MOST)]
    Shares(u32),
    /// More pieces of persistent memory than a machine takes.
    #[error("pmem: {0} pieces are more than the {most} that a machine takes", most = super::pmem::MOST)]
    PmemSlots(u32),
    /// There is no disk to take away.
    #[error("detach the disk at {0}: there is none")]
    NoDisk(ScsiAddress),
    /// QEMU did not do something with a disk.
    #[error("{verb} the disk at {address}")]
    DiskCommand {
        /// `attach` or `detach`.
        verb: &'static str,
        /// Where.
        address: ScsiAddress,
        /// Why not.
        source: QmpError,
    },
    /// The handshake failed.
    #[error("speak with QEMU")]
    Qmp(#[from] QmpError),
}

impl QemuError {
    pub(super) fn create(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Create { what, source }
    }
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!("; it said: {text}"),
    }
}

impl From<QemuError> for crate::Error {
    fn from(error: QemuError) -> Self {
        Self::Vmm(Box::new(error))
    }
}
