//! A disk at a path.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use linkspan_protocol::resource::MappedVirtualDisk;
use nix::mount::MsFlags;

use crate::error::Context;
use crate::guest_path::GuestPath;
use crate::storage::{
    DiskAddress, Filesystem, MountPoint, blocking, make_directory, unmount, unmount_all,
};
use crate::uvm::Uvm;
use crate::{Error, Result};

pub(super) async fn add(uvm: &Uvm, disk: MappedVirtualDisk) -> Result<()> {
    let address =
        DiskAddress { controller: disk.controller, lun: disk.lun, partition: disk.partition };
    let propagation = propagation(&disk.options);
    if disk.encrypted {
        return Err(Error::NotSupported("Encrypted".to_owned()));
    }
    let target = match disk.mount_path.as_str() {
        "" => None,
        path => Some(GuestPath::parse("MountPath", path)?),
    };
    let device = uvm.disks.find(address).await?;
    let Some(target) = target else { return Ok(()) };
    blocking(move || {
        if disk.block_dev {
            return link(&device, target.as_path());
        }
        mount(&device, target.as_path(), &disk, &propagation)
    })
    .await
}

/// Takes down whatever is mounted at a path; nothing is fine as well.
pub(super) async fn remove_mount(mount_path: &str) -> Result<()> {
    let target = GuestPath::parse("MountPath", mount_path)?;
    blocking(move || unmount(target.as_path())).await
}

pub(super) async fn remove(disk: MappedVirtualDisk) -> Result<()> {
    if disk.mount_path.is_empty() {
        return Ok(());
    }
    let target = GuestPath::parse("MountPath", &disk.mount_path)?;
    blocking(move || match disk.block_dev {
        true => fs::remove_file(&target).context(|| format!("remove link {target}")),
        false => unmount(target.as_path()),
    })
    .await
}

fn link(device: &Path, target: &Path) -> Result<()> {
    if let Some(parent) = target.parent() {
        make_directory(parent, 0o700)?.keep();
    }
    symlink(device, target).context(|| format!("link {} to {}", target.display(), device.display()))
}

fn mount(
    device: &Path,
    target: &Path,
    disk: &MappedVirtualDisk,
    propagation: &[MsFlags],
) -> Result<()> {
    let filesystem = choose(device, disk)?;
    let made = make_directory(target, 0o700)?;
    let point = MountPoint {
        source: device,
        target,
        kind: Some(filesystem.name()),
        flags: if disk.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() },
        data: disk.read_only.then(|| filesystem.read_only_options()).flatten(),
    };
    point.mount()?;
    for &flags in propagation {
        let change =
            MountPoint { source: Path::new("none"), target, kind: None, flags, data: None };
        if let Err(error) = change.mount() {
            unmount_all(target)?;
            return Err(error);
        }
    }
    made.keep();
    Ok(())
}

fn choose(device: &Path, disk: &MappedVirtualDisk) -> Result<Filesystem> {
    let wanted = match disk.filesystem.as_str() {
        "" => None,
        name => Some(name.parse::<Filesystem>().map_err(|()| Error::Argument {
            field: "Filesystem",
            reason: format!("{name:?} is not ext4, xfs, erofs or squashfs"),
        })?),
    };
    let found = Filesystem::detect(device)?;
    match (wanted, found) {
        (None, Some(found)) => Ok(found),
        (Some(wanted), Some(found)) if wanted == found => Ok(wanted),
        (Some(wanted), _) if disk.ensure_filesystem => {
            Err(Error::NotSupported(format!("formatting {} as {}", disk_name(disk), wanted.name())))
        }
        (_, None) => {
            let what = format!("{} holds no known file system", disk_name(disk));
            Err(Error::Io { what, source: std::io::ErrorKind::InvalidData.into() })
        }
        (Some(wanted), Some(found)) => Err(Error::Argument {
            field: "Filesystem",
            reason: format!("{} holds {}, not {}", disk_name(disk), found.name(), wanted.name()),
        }),
    }
}

fn disk_name(disk: &MappedVirtualDisk) -> String {
    let MappedVirtualDisk { controller, lun, partition, .. } = *disk;
    DiskAddress { controller, lun, partition }.to_string()
}

/// Only these of a host's options have an effect; it sends `ro` as well.
fn propagation(options: &[String]) -> Vec<MsFlags> {
    let flags = |option: &String| {
        let (recursive, name) = match option.strip_prefix('r') {
            Some(name) if option != "ro" => (MsFlags::MS_REC, name),
            _ => (MsFlags::empty(), option.as_str()),
        };
        let flags = match name {
            "private" => MsFlags::MS_PRIVATE,
            "shared" => MsFlags::MS_SHARED,
            "slave" => MsFlags::MS_SLAVE,
            "unbindable" => MsFlags::MS_UNBINDABLE,
            _ => return None,
        };
        Some(flags | recursive)
    };
    options.iter().filter_map(flags).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_propagation_options_count() {
        let options = ["ro", "noatime", "shared", "rslave", "rw"].map(str::to_owned);
        assert_eq!(
            propagation(&options),
            [MsFlags::MS_SHARED, MsFlags::MS_SLAVE | MsFlags::MS_REC]
        );
    }
}
