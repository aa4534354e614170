//! A persistent-memory device at a path.

use linkspan_protocol::resource::VpmemDevice;

use crate::Result;
use crate::guest_path::GuestPath;
use crate::storage::{PmemMount, Verity, blocking};
use crate::uvm::Uvm;

pub(super) async fn add(uvm: &Uvm, device: VpmemDevice) -> Result<()> {
    let target = GuestPath::parse("MountPath", &device.mount_path)?;
    let part = device.mapping_info;
    let mount = PmemMount {
        number: device.device_number,
        target: target.as_path().to_owned(),
        part: part.map(|part| (part.device_offset_in_bytes, part.device_size_in_bytes)),
        verity: device.verity_info.as_ref().map(Verity::parse).transpose()?,
    };
    let device = uvm.devices.pmem(mount.number).await?;
    let mappings = blocking(move || mount.mount(&device)).await?;
    uvm.mounted.keep(target.as_path(), mappings);
    Ok(())
}

pub(super) async fn remove(uvm: &Uvm, device: VpmemDevice) -> Result<()> {
    let target = GuestPath::parse("MountPath", &device.mount_path)?;
    uvm.mounted.take_down(target.as_path(), false).await
}
