//! ModifySettings: which resource goes where.

mod combined_layers;
mod mapped_directory;
mod mapped_virtual_disk;
mod security_policy;
mod vpmem_device;

use linkspan_protocol::message::{ContainerId, ModifyRequest, ModifyTarget};
use linkspan_protocol::resource::{ModifyType, Resource};

use crate::storage::DiskAddress;
use crate::uvm::Uvm;
use crate::{Error, Result};

pub(crate) async fn modify(uvm: &Uvm, target: &ContainerId, request: ModifyRequest) -> Result<()> {
    let modify = request.modify.unwrap_or(ModifyType::Add);
    let resource = match request.target {
        ModifyTarget::Resource(resource) => resource,
        // Decoding comes before everything else, also for an unknown container.
        ModifyTarget::Unreadable(error) => return Err(Error::NotSupported(error.to_string())),
        ModifyTarget::Path { .. } | ModifyTarget::Untyped(_) => {
            return Err(Error::NotSupported("a request without ResourceType".to_owned()));
        }
    };
    if !target.is_uvm() {
        let container = uvm.container(target.as_str())?;
        return match resource {
            Resource::ContainerConstraints(constraints) => {
                container.update(uvm, constraints.linux.unwrap_or_default()).await
            }
            other => Err(Error::NotSupported(format!("{} of a container", other.name()))),
        };
    }
    uvm.ready().await;
    match (resource, modify) {
        (Resource::MappedVirtualDisk(disk), ModifyType::Add) => {
            mapped_virtual_disk::add(uvm, disk).await
        }
        (Resource::MappedVirtualDisk(disk), ModifyType::Remove) => {
            mapped_virtual_disk::remove(uvm, disk).await
        }
        (Resource::VpmemDevice(device), ModifyType::Add) => vpmem_device::add(uvm, device).await,
        (Resource::VpmemDevice(device), ModifyType::Remove) => {
            vpmem_device::remove(uvm, device).await
        }
        (Resource::MappedDirectory(directory), ModifyType::Add) => {
            mapped_directory::add(uvm, directory).await
        }
        (Resource::MappedDirectory(directory), ModifyType::Remove) => {
            mapped_directory::remove(uvm, directory).await
        }
        (Resource::CombinedLayers(layers), ModifyType::Add) => {
            combined_layers::add(uvm, layers).await
        }
        (Resource::CombinedLayers(layers), ModifyType::Remove) => {
            combined_layers::remove(uvm, layers).await
        }
        (Resource::ScsiDevice(device), ModifyType::Remove) => {
            let (controller, lun) = (device.controller, device.lun);
            uvm.devices.unplug(DiskAddress { controller, lun, partition: 0 }).await
        }
        (Resource::VpciDevice(device), ModifyType::Add) => {
            uvm.devices.pci(&device.vmbus_guid).await.map(drop)
        }
        (Resource::Network(adapter), ModifyType::Add) => {
            uvm.networks.add(&uvm.devices, adapter).await
        }
        (Resource::Network(adapter), ModifyType::Remove) => uvm.networks.remove(adapter).await,
        (Resource::PodCgroupMemoryLimit, ModifyType::Update) => uvm
            .headroom
            .apply()
            .map_err(|source| Error::Io { what: "limit containers' memory".to_owned(), source }),
        (Resource::SecurityPolicy(policy), _) => security_policy::set(uvm, &policy),
        (Resource::ContainerConstraints(_), _) => Err(Error::NoContainer(target.to_string())),
        (resource, modify) => {
            Err(Error::NotSupported(format!("{} of {}", modify.as_str(), resource.name())))
        }
    }
}
