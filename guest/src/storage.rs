//! How storage is mounted; knows nothing of the wire.

mod crypt;
mod devices;
mod disk;
mod format;
mod mapping;
mod mount;
mod mounted;
mod overlay;
mod pmem;
mod probe;
mod share;
mod verity;

pub(crate) use devices::{
    DeviceEvents, Devices, DiskAddress, appear, appear_slowly, appear_within, vmbus_controllers,
};
pub(crate) use disk::{DiskMount, propagation, unlink};
pub(crate) use mount::{Made, MountPoint, make_directory, remove_tree, unmount, unmount_all};
pub(crate) use mounted::Mounted;
pub(crate) use overlay::Overlay;
pub(crate) use pmem::PmemMount;
pub(crate) use probe::Filesystem;
pub(crate) use share::{Server, Share};
pub(crate) use verity::Verity;

use crate::{Error, Result, tasks};

/// Where hosts have containers and disks mounted.
const MOUNTED: [&str; 3] = ["/run/gcs", "/run/mounts", "/run/layers"];

/// Takes down what an agent that broke has left mounted: nobody knows of it any more, and it keeps
/// disks busy.
pub(crate) fn clear() {
    detach();
    for left in ["/run/gcs/c", "/run/gcs/pods"] {
        if let Err(error) = remove_tree(left.as_ref()) {
            tracing::warn!(%error, "what a broken agent left stays");
        }
    }
    // Made for a mount that did not come to be. Where hosts have mounts, nothing else is.
    for base in ["/run/mounts", "/run/layers"] {
        remove_empty(base.as_ref());
    }
}

/// Removes directories that hold nothing, or nothing but such, and not the outermost.
fn remove_empty(base: &std::path::Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// Unmounts all that hosts have had mounted, the last first, also where it is in use.
pub(crate) fn detach() {
    for base in MOUNTED.map(std::path::Path::new) {
        let points = crate::mountinfo::mounts_below(base).unwrap_or_default();
        for point in points.iter().rev().filter(|point| *point != base) {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    mapping::clear();
}

/// How long storage may take. A host gives up on the whole utility VM after 300 s.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(240);

/// Runs what blocks on a thread of its own, so that the bridge goes on.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let work = tokio::task::spawn_blocking(work);
    tasks::wait_at_most("end of storage work", LIMIT, work).await?.unwrap_or_else(|panic| {
        Err(Error::Io { what: "storage".to_owned(), source: std::io::Error::other(panic) })
    })
}
