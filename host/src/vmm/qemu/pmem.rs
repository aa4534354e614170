//! Persistent memory by descriptor.
//!
//! | step of attaching                        | undone by    |
//! |------------------------------------------|--------------|
//! | `add-fd`, for QEMU to open it again      | `remove-fd`  |
//! | `object-add` of a `memory-backend-file`  | `object-del` |
//! | `device_add` of an `nvdimm`              | nothing: QEMU does not unplug one |
//!
//! The guest numbers its devices in the order in which they come, so they have to come in the order
//! of their numbers; whoever attaches sees to that.

use std::fs::File;
use std::os::fd::AsRawFd;

use serde_json::json;

use super::error::QemuError;
use super::qmp::{Qmp, QmpError};
use crate::vmm::Disk;

/// How many pieces a machine takes.
pub(super) const MOST: u32 = 128;

/// A piece is a multiple of so many bytes: the guest maps it in pages of that size.
pub(super) const UNIT: u64 = 2 << 20;

/// Descriptor sets of disks have the numbers below.
const FIRST_SET: u32 = 4096;

/// Puts a file that is not written to into the guest's memory.
pub(super) async fn attach(qmp: &Qmp, number: u32, disk: Disk) -> Result<(), QemuError> {
    let problem = |problem: String| QemuError::Pmem { number, problem };
    let Disk { file, size, read_only } = disk;
    if !read_only {
        return Err(problem("it is to be writable, which layers are not".to_owned()));
    }
    let length = file.metadata().map_err(|error| problem(error.to_string()))?.len();
    if size == 0 || !size.is_multiple_of(UNIT) || size > length {
        return Err(problem(format!(
            "{size} of the file's {length} bytes are not a multiple of {UNIT} above 0"
        )));
    }
    // QEMU takes a descriptor only if it is open in the very mode that it needs.
    let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let file = file.map_err(|error| problem(error.to_string()))?;
    let qmp = qmp.clone();
    // To the end, even if nobody waits any more.
    let attached = tokio::spawn(async move { run(&qmp, number, file, size).await });
    let attached = attached.await.unwrap_or(Err(QmpError::Closed));
    attached.map_err(|error| problem(error.to_string()))
}

async fn run(qmp: &Qmp, number: u32, file: File, size: u64) -> Result<(), QmpError> {
    let (set, memory) = (FIRST_SET + number, format!("pmem-{number}"));
    let arguments = json!({ "fdset-id": set, "opaque": memory });
    let added = qmp.run_with("add-fd", arguments, file.into()).await?;
    let result = match added["fd"].as_u64() {
        None => Err(QmpError::Malformed(format!("add-fd: {added}"))),
        Some(fd) => add(qmp, number, fd, size).await,
    };
    // QEMU has opened it for itself.
    let _ = qmp.run("remove-fd", json!({ "fdset-id": set })).await;
    result
}

async fn add(qmp: &Qmp, number: u32, fd: u64, size: u64) -> Result<(), QmpError> {
    let memory = format!("pmem-{number}");
    let backend = json!({
        "qom-type": "memory-backend-file",
        "id": memory,
        "mem-path": format!("/proc/self/fd/{fd}"),
        "size": size,
        "share": true,
        "readonly": true,
    });
    qmp.run("object-add", backend).await?;
    let device = json!({
        "driver": "nvdimm",
        "id": format!("nvdimm-{number}"),
        "memdev": memory,
        "unarmed": true,
        "slot": number,
    });
    let plugged = qmp.run("device_add", device).await;
    if plugged.is_err() {
        let _ = qmp.run("object-del", json!({ "id": memory })).await;
    }
    plugged.map(drop)
}
