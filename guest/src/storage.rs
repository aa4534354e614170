//! How storage is mounted; knows nothing of the wire.

mod disk;
mod mount;
mod overlay;
mod probe;

pub(crate) use disk::{DiskAddress, Disks};
pub(crate) use mount::{Made, MountPoint, make_directory, remove_tree, unmount, unmount_all};
pub(crate) use overlay::Overlay;
pub(crate) use probe::Filesystem;

use crate::{Error, Result};

/// Where hosts have containers and disks mounted.
const MOUNTED: [&str; 3] = ["/run/gcs", "/run/mounts", "/run/layers"];

/// Takes down what an agent that broke has left mounted: nobody knows of it any more, and it keeps
/// disks busy.
pub(crate) fn clear() {
    for base in MOUNTED.map(std::path::Path::new) {
        let points = crate::mountinfo::mounts_below(base).unwrap_or_default();
        for point in points.iter().rev().filter(|point| *point != base) {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    if let Err(error) = remove_tree("/run/gcs/c".as_ref()) {
        tracing::warn!(%error, "what a broken agent left stays");
    }
}

/// Runs what blocks on a thread of its own, so that the bridge goes on.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
        Err(Error::Io { what: "storage".to_owned(), source: std::io::Error::other(panic) })
    })
}
