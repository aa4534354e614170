//! The seam to what runs a utility VM.
//!
//! A [`Vmm`] is one running machine: it carries connections, takes disks and can be ended. All
//! that is the same on every platform lives above this trait, all that is not, below.

#[cfg(target_os = "linux")]
pub(crate) mod loopback;
#[cfg(target_os = "linux")]
pub(crate) mod qemu;

use std::fmt;
use std::fs::File;
use std::path::Path;

use async_trait::async_trait;
use hyperv_socket::Stream;
use tokio::sync::mpsc;

use crate::Result;

/// Where a disk sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScsiAddress {
    /// 0 to 3.
    pub controller: u8,
    /// 0 to 63.
    pub lun: u8,
}

impl fmt::Display for ScsiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.controller, self.lun)
    }
}

/// A disk to attach. The machine works on the open file, so that it needs no name.
#[derive(Debug)]
pub struct Disk {
    /// The image, raw; open for writing unless `read_only`.
    pub file: File,
    /// Bytes of it that are the disk: a VHD's footer is not.
    pub size: u64,
    /// Whether the guest may write.
    pub read_only: bool,
}

/// How many connections a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// One; all others are refused.
    Once,
    /// As many as come.
    Many,
}

/// The guest's connections to one port. Dropping it stops the listening.
pub struct PortListener {
    port: u32,
    incoming: mpsc::UnboundedReceiver<Stream>,
    _stop: Box<dyn Send + Sync>,
}

impl PortListener {
    /// A listener that is fed through a channel, and the thing to drop when nobody listens.
    pub fn new(
        port: u32,
        incoming: mpsc::UnboundedReceiver<Stream>,
        stop: impl Send + Sync + 'static,
    ) -> Self {
        Self { port, incoming, _stop: Box::new(stop) }
    }

    /// The port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The next connection; `None` when there will be none any more.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }
}

impl fmt::Debug for PortListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortListener").field("port", &self.port).finish_non_exhaustive()
    }
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmExit {
    /// Whether it went off in good order, by itself or because it was told to.
    pub clean: bool,
    /// What is known, for people.
    pub reason: String,
}

/// A console that goes on.
#[async_trait]
pub trait FollowConsole: Send {
    /// What has come since the last look; waits for it. `None` at the end.
    async fn next(&mut self) -> Option<String>;
}

/// One running machine.
#[async_trait]
pub trait Vmm: Send + Sync + fmt::Debug {
    /// The backend's name: `qemu`, `loopback`.
    fn backend(&self) -> &'static str;

    /// For people: what it runs on, such as `qemu (tcg, 2 cpus, 512 MiB), pid 4711`.
    fn describe(&self) -> String;

    /// Whether the guest sees this host's directories under their own paths.
    fn shares_directories(&self) -> bool {
        false
    }

    /// Takes the guest's connections to a port from now on.
    async fn listen(&self, port: u32, accept: Accept) -> Result<PortListener>;

    /// Puts a disk at a free address.
    async fn attach_disk(&self, address: ScsiAddress, disk: Disk) -> Result<()>;

    /// Takes the disk at an address away; the guest has let go of it.
    async fn detach_disk(&self, address: ScsiAddress) -> Result<()>;

    /// How many pieces of persistent memory it takes; they are numbered from 0.
    fn pmem_slots(&self) -> u32 {
        0
    }

    /// A piece of it has a multiple of so many bytes.
    fn pmem_unit(&self) -> u64 {
        4096
    }

    /// Puts a read-only disk into the guest's memory, from where it cannot be taken away again.
    /// Numbers have to come in their order.
    async fn attach_pmem(&self, number: u32, _disk: Disk) -> Result<()> {
        let reason = format!("{number}: the {} backend has none", self.backend());
        Err(crate::Error::Option { option: "persistent memory", reason })
    }

    /// Shares a directory of this host by virtio-fs, and gives the tag under which the guest
    /// mounts it.
    async fn share_directory(&self, directory: &Path, _read_only: bool) -> Result<String> {
        let reason = format!("{}: the {} backend cannot", directory.display(), self.backend());
        Err(crate::Error::Option { option: "share", reason })
    }

    /// Takes a share away; the guest has let go of it.
    async fn unshare_directory(&self, tag: &str) -> Result<()> {
        let reason = format!("{tag:?} is not shared");
        Err(crate::Error::Option { option: "share", reason })
    }

    /// Waits for the end, however it comes.
    async fn exited(&self) -> VmExit;

    /// Ends it now. Returns when nothing of it is left. Idempotent.
    async fn terminate(&self);

    /// How far the boot has come, for people.
    fn boot_phase(&self) -> String;

    /// The last lines of the console.
    fn console_tail(&self) -> String;

    /// All of the console that is kept.
    fn console(&self) -> String {
        self.console_tail()
    }

    /// The console from the oldest that is kept, and on to its end; `None` where it cannot be
    /// followed.
    fn follow_console(&self) -> Option<Box<dyn FollowConsole>> {
        None
    }
}
