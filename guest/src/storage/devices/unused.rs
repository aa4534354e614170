//! Whether nobody uses a disk any more.
//!
//! The kernel gives a disk exclusively only if nothing is mounted from it or stacked on it. What is
//! mounted in the agent's own namespace is a host's mistake, and said at once. What is not may still
//! be in the copy of all mounts that a container has for a moment while it starts: there is no word
//! of the kernel's when that goes, so this looks again until it has.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::DiskAddress;
use crate::error::Context;
use crate::mountinfo::mounted_devices;
use crate::{Error, Result};

/// How long a container may hold on to what it no longer needs.
const HOLD: Duration = Duration::from_secs(2);

/// How often it is looked again: no event tells of another namespace's mounts before Linux 6.15.
const LOOK: Duration = Duration::from_millis(5);

pub(super) async fn wait(device: &Path, address: DiskAddress) -> Result<()> {
    let begun = Instant::now();
    loop {
        let exclusive = File::options().read(true).custom_flags(OFlag::O_EXCL.bits()).open(device);
        match exclusive {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                let busy = |how: String| Error::Io {
                    what: format!("unplug {address}, which is {how}"),
                    source: Errno::EBUSY.into(),
                };
                if let Some(point) = mounted(device)? {
                    return Err(busy(format!("still mounted on {}", point.display())));
                }
                if begun.elapsed() > HOLD {
                    return Err(busy(
                        "still in use by a container or by a mapped device".to_owned(),
                    ));
                }
                tokio::time::sleep(LOOK).await;
            }
            // Whatever else is wrong with it is a reason to let it go.
            _ => return Ok(()),
        }
    }
}

/// Where a disk, one of its partitions, or what is stacked on them is mounted.
fn mounted(device: &Path) -> Result<Option<PathBuf>> {
    let name = device.file_name().unwrap_or_default();
    let disk = fs::canonicalize(Path::new("/sys/class/block").join(name));
    let disk = disk.context(|| format!("look at {}", device.display()))?;
    let below = |(numbers, point): (String, PathBuf)| {
        let mounted = fs::canonicalize(Path::new("/sys/dev/block").join(numbers)).ok()?;
        let stacked = fs::read_dir(mounted.join("slaves")).into_iter().flatten().flatten();
        let mut devices = stacked.filter_map(|slave| fs::canonicalize(slave.path()).ok());
        let found = mounted.starts_with(&disk) || devices.any(|slave| slave.starts_with(&disk));
        found.then_some(point)
    };
    Ok(mounted_devices()?.into_iter().find_map(below))
}
