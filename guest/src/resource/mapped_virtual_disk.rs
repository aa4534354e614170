//! A disk at a path.

use linkspan_protocol::resource::MappedVirtualDisk;

use crate::guest_path::GuestPath;
use crate::storage::{DiskAddress, DiskMount, Filesystem, Verity, blocking, propagation};
use crate::uvm::Uvm;
use crate::{Error, Result};

pub(super) async fn add(uvm: &Uvm, disk: MappedVirtualDisk) -> Result<()> {
    let address =
        DiskAddress { controller: disk.controller, lun: disk.lun, partition: disk.partition };
    let mount = match disk.mount_path.as_str() {
        "" => None,
        path => Some(read(address, GuestPath::parse("MountPath", path)?, &disk)?),
    };
    let device = uvm.devices.disk(address).await?;
    let Some(mount) = mount else { return Ok(()) };
    let target = mount.target.clone();
    let mappings = blocking(move || mount.mount(&device)).await?;
    uvm.mounted.keep(&target, mappings);
    Ok(())
}

fn read(address: DiskAddress, target: GuestPath, disk: &MappedVirtualDisk) -> Result<DiskMount> {
    let filesystem = match disk.filesystem.as_str() {
        "" => None,
        name => Some(name.parse::<Filesystem>().map_err(|()| Error::Argument {
            field: "Filesystem",
            reason: format!("{name:?} is not ext4, xfs, erofs or squashfs"),
        })?),
    };
    let mount = DiskMount {
        address,
        target: target.as_path().to_owned(),
        read_only: disk.read_only,
        link: disk.block_dev,
        encrypted: disk.encrypted,
        verity: disk.verity_info.as_ref().map(Verity::parse).transpose()?,
        filesystem,
        ensure: disk.ensure_filesystem,
        propagation: propagation(&disk.options),
    };
    mount.check()?;
    Ok(mount)
}

pub(super) async fn remove(uvm: &Uvm, disk: MappedVirtualDisk) -> Result<()> {
    if disk.mount_path.is_empty() {
        return Ok(());
    }
    let target = GuestPath::parse("MountPath", &disk.mount_path)?;
    uvm.mounted.take_down(target.as_path(), disk.block_dev).await
}
