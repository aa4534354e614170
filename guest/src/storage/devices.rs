//! Where the devices are that a host speaks of.
//!
//! | a host says             | in a VM                                   | without one           |
//! |-------------------------|-------------------------------------------|-----------------------|
//! | controller, LUN         | the kernel's SCSI host, [`sysfs`]         | a link in a directory |
//! | persistent memory `N`   | `/dev/pmemN`                              | such a link           |
//! | VMBus instance          | a PCI bus below `/sys/bus/vmbus`          | never there           |
//!
//! Devices appear when they like: the wait is for the kernel's word ([`events`]), and it has a
//! deadline.

mod events;
mod sysfs;
mod unused;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

pub(crate) use self::events::{BlockingDeviceEvents, DeviceEvents};
use self::sysfs::Sysfs;
use super::blocking;
use crate::error::Context;
use crate::{Error, Result};

/// A disk, as hosts name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskAddress {
    pub(crate) controller: u8,
    pub(crate) lun: u8,
    /// 1-based; 0 is the whole disk.
    pub(crate) partition: u64,
}

impl std::fmt::Display for DiskAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SCSI disk {}:{}", self.controller, self.lun)?;
        match self.partition {
            0 => Ok(()),
            partition => write!(f, " partition {partition}"),
        }
    }
}

/// How long a device may take to appear. Hosts attach it before they ask for it; one with more
/// machines than processors may still let it wait.
const APPEARANCE: Duration = Duration::from_secs(25);

/// How long the kernel has to find a disk by itself. It takes the host's words that one has gone and
/// that one has come on several processors at once: under load the first can be worked on last, and
/// takes away the disk that came.
const UNASKED: Duration = Duration::from_secs(2);

/// How devices are found.
#[derive(Clone, Debug)]
pub(crate) enum Devices {
    /// Through sysfs.
    Sysfs,
    /// As `<controller>_<lun>` or `pmem<N>` in a directory.
    Directory(PathBuf),
}

/// What this machine's virtio controllers would be called on VMBus, with the kernel's numbers of
/// them.
pub(crate) fn vmbus_controllers() -> Vec<(&'static str, u32)> {
    Sysfs::SYSTEM.vmbus_controllers().collect()
}

impl Devices {
    /// The block device of a disk, once it is there.
    pub(crate) async fn disk(&self, address: DiskAddress) -> Result<PathBuf> {
        let DiskAddress { controller, lun, partition } = address;
        sysfs::check_controller(controller)?;
        match self {
            Self::Directory(directory) => {
                let whole = linked(&directory.join(format!("{controller}_{lun}")), &address)?;
                let device = match partition {
                    0 => whole,
                    number => PathBuf::from(sysfs::partition(&whole.to_string_lossy(), number)),
                };
                appear(&address, || Ok(Some(device.clone()).filter(|device| is_live(device)))).await
            }
            Self::Sysfs => {
                let look = || Ok(Sysfs::SYSTEM.disk(address).filter(|device| is_live(device)));
                let unasked = appear(&address, look);
                if let Ok(found) = tokio::time::timeout(UNASKED, unasked).await {
                    return found;
                }
                blocking(move || Sysfs::SYSTEM.rescan(address)).await?;
                appear_within(APPEARANCE - UNASKED, &address, look).await
            }
        }
    }

    /// The block device of a persistent-memory device, once it is there.
    pub(crate) async fn pmem(&self, number: u32) -> Result<PathBuf> {
        let what = format!("persistent-memory device {number}");
        match self {
            Self::Directory(directory) => linked(&directory.join(format!("pmem{number}")), &what),
            Self::Sysfs => {
                crate::modules::need("pmem");
                let device = PathBuf::from(format!("/dev/pmem{number}"));
                appear(&what, || Ok(is_live(&device).then(|| device.clone()))).await
            }
        }
    }

    /// Waits for the PCI bus behind a VMBus instance, and gives its place in sysfs.
    pub(crate) async fn pci(&self, instance: &str) -> Result<PathBuf> {
        let instance = sysfs::instance("VMBusGUID", instance)?;
        let look = || Sysfs::SYSTEM.pci(&instance);
        match self {
            Self::Sysfs if Sysfs::SYSTEM.has_vmbus() => {
                crate::modules::need("vpci");
                appear(&format!("the PCI device of VMBus instance {instance}"), look).await
            }
            _ => Err(Error::NotSupported("VPCIDevice: a machine without a VMBus".to_owned())),
        }
    }

    /// Tells the kernel that a disk is about to go. One that is not there is no error; one that is
    /// in use is: what is written to it would be lost.
    pub(crate) async fn unplug(&self, address: DiskAddress) -> Result<()> {
        sysfs::check_controller(address.controller)?;
        let Self::Sysfs = self else { return Ok(()) };
        let disk = Sysfs::SYSTEM.scsi(address)?;
        if let Some(device) = Sysfs::SYSTEM.disk(DiskAddress { partition: 0, ..address }) {
            unused::wait(&device, address).await?;
        }
        match fs::write(disk.join("delete"), "1\n") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.context(|| format!("unplug {address}")),
        }
    }
}

fn linked(link: &Path, what: &dyn std::fmt::Display) -> Result<PathBuf> {
    fs::canonicalize(link).context(|| format!("find {what} as {}", link.display()))
}

/// Waits until `look` sees something.
pub(crate) async fn appear<T>(
    what: &(dyn std::fmt::Display + Sync),
    look: impl Fn() -> Result<Option<T>>,
) -> Result<T> {
    appear_within(APPEARANCE, what, look).await
}

/// As [`appear`], with another limit.
pub(crate) async fn appear_within<T>(
    limit: Duration,
    what: &(dyn std::fmt::Display + Sync),
    look: impl Fn() -> Result<Option<T>>,
) -> Result<T> {
    until(limit, what, async || look()).await
}

/// As [`appear`], where to look takes its time.
pub(crate) async fn appear_slowly<T>(
    what: &(dyn std::fmt::Display + Sync),
    look: impl AsyncFn() -> Result<Option<T>>,
) -> Result<T> {
    until(APPEARANCE, what, look).await
}

async fn until<T>(
    limit: Duration,
    what: &(dyn std::fmt::Display + Sync),
    look: impl AsyncFn() -> Result<Option<T>>,
) -> Result<T> {
    // Mostly it is there already.
    if let Some(found) = look().await? {
        return Ok(found);
    }
    let mut events = DeviceEvents::subscribe().context(|| "hear of devices".to_owned())?;
    let found = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            events.next().await.context(|| format!("wait for {what}"))?;
        }
    };
    tokio::time::timeout(limit, found).await.unwrap_or_else(|_| {
        let what = format!("wait {} s for {what} to appear", limit.as_secs());
        Err(Error::Io { what, source: io::ErrorKind::TimedOut.into() })
    })
}

/// Whether a node leads to a device: one of a disk that has just gone, or is still on its way,
/// does not.
fn is_live(device: &Path) -> bool {
    match fs::File::open(device) {
        Ok(_) => true,
        Err(error) => ![Errno::ENXIO, Errno::ENOENT, Errno::ENODEV]
            .iter()
            .any(|errno| error.raw_os_error() == Some(*errno as i32)),
    }
}
