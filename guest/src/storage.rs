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

/// Runs what blocks on a thread of its own, so that the bridge goes on.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
        Err(Error::Io { what: "storage".to_owned(), source: std::io::Error::other(panic) })
    })
}
