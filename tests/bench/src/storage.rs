//! Layers from attached to mounted: plain, checked, on persistent memory; and a scratch disk.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::Result;
use linkspan_host::UtilityVm;
use linkspan_host::protocol::message::{ContainerId, ModifySettings};
use linkspan_host::protocol::resource::{
    MappedVirtualDisk, ModifyType, Resource, ScsiDevice, VerityInfo, VpmemDevice,
};
use linkspan_host::vmm::{Disk, ScsiAddress};
use linkspan_layer::verity::VerityOptions;

use crate::counters::Counters;
use crate::report::Report;

/// How often each is measured.
const TIMES: u8 = 5;

/// Its disks are on a controller of their own.
const CONTROLLER: u8 = 3;

/// Small images: what is measured is the way, not the contents.
struct Images {
    layer: File,
    size: u64,
    verity: VerityInfo,
}

impl Images {
    fn make() -> Result<Self> {
        let (content, layer) = (tempfile::tempdir()?, tempfile::tempfile()?);
        std::fs::write(content.path().join("file"), vec![b'x'; 1 << 20])?;
        let options = linkspan_layer::Options {
            verity: Some(VerityOptions::default()),
            ..linkspan_layer::Options::default()
        };
        linkspan_layer::build_image(content.path(), &layer, options, |_| {})?;
        let data = linkspan_layer::file_system_size(&layer)?.unwrap_or_default();
        let tree = linkspan_layer::verity::read(&layer, data)?;
        let tree = tree.ok_or_else(|| anyhow::anyhow!("the layer has no hash tree"))?;
        let verity = VerityInfo {
            ext4_size_in_bytes: data.try_into()?,
            version: 1,
            algorithm: "sha256".to_owned(),
            super_block: true,
            root_digest: tree.root_hex(),
            salt: tree.salt_hex(),
            block_size: 4096,
        };
        let size = layer.metadata()?.len().next_multiple_of(2 << 20);
        layer.set_len(size)?;
        Ok(Self { layer, size, verity })
    }

    fn layer(&self) -> Result<Disk> {
        Ok(Disk { file: self.layer.try_clone()?, size: self.size, read_only: true })
    }

    fn scratch() -> Result<Disk> {
        let (file, size) = (tempfile::tempfile()?, 1 << 30);
        linkspan_layer::scratch::format(&file, size, &Default::default())?;
        Ok(Disk { file, size, read_only: false })
    }
}

fn disk(lun: u8, read_only: bool, verity: Option<VerityInfo>) -> Resource {
    MappedVirtualDisk {
        mount_path: format!("/run/mounts/scsi/bench{lun}"),
        controller: CONTROLLER,
        lun,
        read_only,
        verity_info: verity,
        ..MappedVirtualDisk::default()
    }
    .into()
}

fn pmem(number: u32) -> Resource {
    let mount_path = format!("/run/layers/p{number}");
    VpmemDevice { device_number: number, mount_path, ..VpmemDevice::default() }.into()
}

async fn modify(uvm: &UtilityVm, kind: ModifyType, resource: Resource) -> Result<()> {
    uvm.request(&ContainerId::uvm(), &ModifySettings::new(kind, resource)).await?;
    Ok(())
}

async fn attach(uvm: &UtilityVm, lun: u8, disk: Disk) -> Result<()> {
    let address = ScsiAddress { controller: CONTROLLER, lun };
    Ok(uvm.vmm().attach_disk(address, disk).await?)
}

async fn detach(uvm: &UtilityVm, lun: u8, mounted: Resource) -> Result<()> {
    modify(uvm, ModifyType::Remove, mounted).await?;
    let device = ScsiDevice { controller: CONTROLLER, lun };
    modify(uvm, ModifyType::Remove, device.into()).await?;
    Ok(uvm.vmm().detach_disk(ScsiAddress { controller: CONTROLLER, lun }).await?)
}

/// What the requests cost in the guest, once the disks are there.
pub(crate) async fn instructions(
    uvm: &UtilityVm,
    counters: &mut Counters,
    report: &mut Report,
) -> Result<()> {
    let images = Images::make()?;
    let rounds = TIMES + 1; // the first pays for code that was never touched
    for verity in [None, Some(images.verity.clone())] {
        for lun in 0..rounds {
            attach(uvm, 2 * lun, images.layer()?).await?;
            attach(uvm, 2 * lun + 1, Images::scratch()?).await?;
            // With an answer to nothing, it has found them.
            let found = MappedVirtualDisk {
                controller: CONTROLLER,
                lun: 2 * lun + 1,
                ..Default::default()
            };
            modify(uvm, ModifyType::Add, found.into()).await?;
        }
        let map = async |n: u8| {
            modify(uvm, ModifyType::Add, disk(2 * n, true, verity.clone())).await?;
            modify(uvm, ModifyType::Add, disk(2 * n + 1, false, None)).await
        };
        map(0).await?;
        let cost = counters.measure(TIMES.into(), async |n| map(n as u8 + 1).await).await?;
        let (what, reference) = match verity {
            None => ("map a layer and a scratch disk", 4_500_000),
            Some(_) => ("map a checked layer and a scratch disk", 0),
        };
        report.instructions(what, cost, reference, 1.0);
        for lun in 0..rounds {
            detach(uvm, 2 * lun, disk(2 * lun, true, None)).await?;
            detach(uvm, 2 * lun + 1, disk(2 * lun + 1, false, None)).await?;
        }
    }
    Ok(())
}

/// How long a layer takes from the order to attach it until it is mounted. The machine has room
/// for persistent memory.
pub(crate) async fn latencies(uvm: &UtilityVm, report: &mut Report) -> Result<()> {
    let images = Images::make()?;
    for (what, verity) in [
        ("attach and mount a layer on SCSI, wall", None),
        ("attach and mount a checked layer on SCSI, wall", Some(images.verity.clone())),
    ] {
        let mut times = Vec::new();
        for lun in 0..=TIMES {
            let began = Instant::now();
            attach(uvm, lun, images.layer()?).await?;
            modify(uvm, ModifyType::Add, disk(lun, true, verity.clone())).await?;
            times.push(began.elapsed());
        }
        report.time(what, middle(times));
        for lun in 0..=TIMES {
            detach(uvm, lun, disk(lun, true, None)).await?;
        }
    }
    let mut times = Vec::new();
    attach(uvm, 0, images.layer()?).await?;
    attach(uvm, 1, Images::scratch()?).await?;
    for _ in 0..=TIMES {
        let began = Instant::now();
        for lun in 0..2 {
            modify(uvm, ModifyType::Add, disk(lun, lun == 0, None)).await?;
        }
        times.push(began.elapsed());
        for lun in 0..2 {
            modify(uvm, ModifyType::Remove, disk(lun, lun == 0, None)).await?;
        }
    }
    report.time("map a layer and a scratch disk that are attached, wall", middle(times));
    let mut times = Vec::new();
    modify(uvm, ModifyType::Remove, pmem(0)).await?; // its drivers are there once it answers
    for number in 0..=u32::from(TIMES) {
        let began = Instant::now();
        uvm.vmm().attach_pmem(number, images.layer()?).await?;
        modify(uvm, ModifyType::Add, pmem(number)).await?;
        times.push(began.elapsed());
    }
    report.time("attach and mount a layer on persistent memory, wall", middle(times));
    Ok(())
}

/// The median of all but the first, which pays for what was never touched.
fn middle(times: Vec<Duration>) -> Duration {
    crate::median(times.into_iter().skip(1).collect())
}
