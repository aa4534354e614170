//! Disks by descriptor.
//!
//! | step of attaching            | undone by                           |
//! |------------------------------|-------------------------------------|
//! | `add-fd` into a set          | `remove-fd`                         |
//! | `blockdev-add` over the set  | `blockdev-del`                      |
//! | `device_add` of a `scsi-hd`  | `device_del`, then DEVICE_DELETED   |
//!
//! Detaching is the same table from the bottom up. Both run to their end even if the caller stops
//! waiting. QEMU frees a device some 50 ms after it is told to, so detaching several disks at once
//! takes no longer than one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl};
use serde_json::json;
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::arguments::CONTROLLERS;
use super::error::QemuError;
use super::qmp::{Qmp, QmpError};
use crate::vmm::{Disk, ScsiAddress};

/// Logical units of a controller.
const LUNS: u8 = 64;

/// The unit a disk's size is counted in, in bytes.
const SECTOR: u64 = 512;

/// How long QEMU may take to let go of a device.
const UNPLUG_TIME: Duration = Duration::from_secs(10);

/// What is at an address that is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// On its way in or out.
    Moving,
    Attached,
}

/// The disks of one machine.
#[derive(Debug, Clone)]
pub(super) struct Disks {
    qmp: Qmp,
    slots: Arc<Mutex<HashMap<ScsiAddress, Slot>>>,
}

impl Disks {
    pub(super) fn new(qmp: Qmp) -> Self {
        Self { qmp, slots: Arc::default() }
    }

    pub(super) async fn attach(&self, address: ScsiAddress, disk: Disk) -> Result<(), QemuError> {
        let plan = Plan::new(address, disk)?;
        match self.slots().entry(address) {
            Entry::Occupied(slot) => return Err(occupied(address, *slot.get())),
            Entry::Vacant(free) => free.insert(Slot::Moving),
        };
        let this = self.clone();
        to_the_end(address, "attach", async move {
            let result = plan.attach(&this.qmp).await;
            match result {
                Ok(()) => this.slots().insert(address, Slot::Attached),
                Err(_) => this.slots().remove(&address),
            };
            result
        })
        .await
    }

    pub(super) async fn detach(&self, address: ScsiAddress) -> Result<(), QemuError> {
        match self.slots().get_mut(&address) {
            None => return Err(QemuError::NoDisk(address)),
            Some(slot @ Slot::Attached) => *slot = Slot::Moving,
            Some(slot @ Slot::Moving) => return Err(occupied(address, *slot)),
        }
        let this = self.clone();
        to_the_end(address, "detach", async move {
            let result = detach(&this.qmp, address).await;
            match result {
                Ok(()) => this.slots().remove(&address),
                Err(_) => this.slots().insert(address, Slot::Attached),
            };
            result
        })
        .await
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<ScsiAddress, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn occupied(address: ScsiAddress, slot: Slot) -> QemuError {
    let problem = match slot {
        Slot::Attached => "there is a disk already",
        Slot::Moving => "a disk is on its way in or out there",
    };
    QemuError::Disk { address, problem: problem.into() }
}

/// Runs `work` whether or not the caller goes on waiting.
async fn to_the_end(
    address: ScsiAddress,
    verb: &'static str,
    work: impl Future<Output = Result<(), QmpError>> + Send + 'static,
) -> Result<(), QemuError> {
    // It does not panic and nobody aborts it: only a runtime that shuts down ends it early.
    let ended = tokio::spawn(work).await.unwrap_or(Err(QmpError::Closed));
    ended.map_err(|source| QemuError::DiskCommand { verb, address, source })
}

/// What a disk is to QEMU.
#[derive(Debug)]
struct Plan {
    address: ScsiAddress,
    file: File,
    driver: &'static str,
    size: u64,
    read_only: bool,
}

impl Plan {
    /// Checks what QEMU would report in its own terms, or not at all.
    fn new(address: ScsiAddress, disk: Disk) -> Result<Self, QemuError> {
        let problem = |problem: String| QemuError::Disk { address, problem };
        let on_file = |source| QemuError::DiskFile { address, source };
        if address.controller >= CONTROLLERS || address.lun >= LUNS {
            let most = (CONTROLLERS - 1, LUNS - 1);
            return Err(problem(format!("the last address is {}:{}", most.0, most.1)));
        }
        let Disk { file, size, read_only } = disk;
        if size == 0 || size % SECTOR != 0 {
            return Err(problem(format!("its size, {size} bytes, is not a multiple of {SECTOR}")));
        }
        let metadata = file.metadata().map_err(on_file)?;
        let driver = match metadata.file_type() {
            kind if kind.is_file() => "file",
            kind if kind.is_block_device() => "host_device",
            _ => return Err(problem("it is neither a file nor a block device".into())),
        };
        if driver == "file" && metadata.len() < size {
            let length = metadata.len();
            return Err(problem(format!("it is to have {size} bytes; the file has {length}")));
        }
        let mode = fcntl_getfl(file.as_fd()).map_err(|error| on_file(error.into()))?;
        let mode = mode & OFlags::RWMODE;
        let file = match (read_only, mode) {
            (true, OFlags::RDONLY) | (false, OFlags::RDWR) => file,
            // QEMU takes a descriptor only if it is open in the very mode that it needs.
            (true, _) => {
                File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(on_file)?
            }
            (false, _) => {
                let text = "it is to be writable, and its file is not open for reading and writing";
                return Err(problem(text.into()));
            }
        };
        Ok(Self { address, file, driver, size, read_only })
    }

    async fn attach(self, qmp: &Qmp) -> Result<(), QmpError> {
        let Self { address, file, driver, size, read_only } = self;
        let (name, set) = (name(address), set(address));
        let arguments = json!({ "fdset-id": set, "opaque": name });
        qmp.run_with("add-fd", arguments, file.into()).await?;
        let blockdev = json!({
            "driver": "raw",
            "node-name": name,
            "read-only": read_only,
            "discard": "unmap",
            "size": size,
            "file": {
                "driver": driver,
                "filename": format!("/dev/fdset/{set}"),
                "read-only": read_only,
                "auto-read-only": false,
                "discard": "unmap",
                "locking": "off",
            },
        });
        let result = match qmp.run("blockdev-add", blockdev).await {
            Ok(_) => {
                let device = json!({
                    "driver": "scsi-hd",
                    "id": name,
                    "drive": name,
                    "bus": format!("scsi{}.0", address.controller),
                    "channel": 0,
                    "scsi-id": 0,
                    "lun": address.lun,
                    "rotation_rate": 1, // not a rotating disk
                });
                let added = qmp.run("device_add", device).await;
                if added.is_err() {
                    let _ = qmp.run("blockdev-del", json!({ "node-name": name })).await;
                }
                added
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            let _ = qmp.run("remove-fd", json!({ "fdset-id": set })).await;
        }
        result.map(drop)
    }
}

async fn detach(qmp: &Qmp, address: ScsiAddress) -> Result<(), QmpError> {
    let (name, set) = (name(address), set(address));
    delete_device(qmp, &name).await?;
    qmp.run("blockdev-del", json!({ "node-name": name })).await?;
    qmp.run("remove-fd", json!({ "fdset-id": set })).await?;
    Ok(())
}

/// Has QEMU take a device away, and waits until it has.
pub(super) async fn delete_device(qmp: &Qmp, name: &str) -> Result<(), QmpError> {
    let mut events = qmp.events(); // before the command, for the event may come before the answer
    qmp.run("device_del", json!({ "id": name })).await?;
    let gone = async {
        loop {
            match events.recv().await {
                Ok(event) if event.name == "DEVICE_DELETED" => {
                    if event.text("device") == Some(name) {
                        return Ok(());
                    }
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Err(QmpError::Closed),
            }
        }
    };
    let ended = async {
        qmp.ended().await;
        Err(QmpError::Closed)
    };
    let either = async {
        tokio::select! { gone = gone => gone, ended = ended => ended }
    };
    let late = |_| Err(QmpError::TimedOut("device_del".into()));
    timeout(UNPLUG_TIME, either).await.unwrap_or_else(late)
}

/// What a disk's node and device are called.
fn name(address: ScsiAddress) -> String {
    format!("disk-{}-{}", address.controller, address.lun)
}

/// The descriptor set of a disk, 1 or above.
fn set(address: ScsiAddress) -> u32 {
    u32::from(address.controller) * u32::from(LUNS) + u32::from(address.lun) + 1
}

#[cfg(test)]
mod tests;
