//! Devices in sysfs.
//!
//! ```text
//! bus/vmbus/devices/<instance>/host<H>           a Hyper-V controller, by its fixed instance
//! class/scsi_host/host<H> -> …/virtio<N>/host<H> a virtio one, by its PCI address
//! bus/scsi/devices/<H>:0:0:<LUN>/block/sda/sda1  a disk and its partition
//! bus/vmbus/devices/<instance>/pci<B>/<B>:00.0   a PCI device on bus <B>
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Context;
use crate::storage::devices::DiskAddress;
use crate::{Error, Result};

/// VMBus instances of a Hyper-V VM's SCSI controllers.
const CONTROLLERS: [&str; 4] = [
    "df6d0690-79e5-55b6-a5ec-c1e2f77f580a",
    "0110f83b-de10-5172-a266-78bca56bf50a",
    "b5d2d8d4-3a75-51bf-945b-3444dc6b8579",
    "305891a9-b251-5dfe-91a2-c25d9212275b",
];

pub(super) fn check_controller(controller: u8) -> Result<()> {
    match usize::from(controller) < CONTROLLERS.len() {
        true => Ok(()),
        false => {
            let reason = format!("{controller} is not 0 to 3");
            Err(Error::Argument { field: "Controller", reason })
        }
    }
}

/// A VMBus instance id, which becomes a name in a path.
pub(super) fn instance(field: &'static str, text: &str) -> Result<String> {
    let plain = text.trim_start_matches('{').trim_end_matches('}').to_ascii_lowercase();
    let shape = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    match plain.len() == 36 && plain.bytes().enumerate().all(shape) {
        true => Ok(plain),
        false => Err(Error::Argument { field, reason: format!("{text:?} is not a GUID") }),
    }
}

/// The name of a disk's partition: a disk whose name ends in a digit has a `p` between.
pub(super) fn partition(disk: &str, number: u64) -> String {
    match disk.ends_with(|last: char| last.is_ascii_digit()) {
        true => format!("{disk}p{number}"),
        false => format!("{disk}{number}"),
    }
}

/// A sysfs, below this directory.
pub(super) struct Sysfs<'a>(&'a str);

impl Sysfs<'static> {
    pub(super) const SYSTEM: Self = Self("/sys");
}

impl Sysfs<'_> {
    fn at(&self, path: &str) -> PathBuf {
        Path::new(self.0).join(path)
    }

    pub(super) fn has_vmbus(&self) -> bool {
        self.at("bus/vmbus/devices").is_dir()
    }

    /// The node of a disk or partition; `None` while there is none.
    pub(super) fn disk(&self, address: DiskAddress) -> Option<PathBuf> {
        let block = self.scsi(address).ok()?.join("block");
        let disk = names_in(&block).into_iter().next()?;
        let name = match address.partition {
            0 => disk,
            number => {
                let partition = partition(&disk, number);
                block.join(&disk).join(&partition).exists().then_some(partition)?
            }
        };
        Some(Path::new("/dev").join(name))
    }

    /// The SCSI device at an address, whether it is there or not. Its controller has to be.
    pub(super) fn scsi(&self, address: DiskAddress) -> Result<PathBuf> {
        let DiskAddress { controller, lun, .. } = address;
        let Some(host) = self.scsi_host(controller) else {
            let reason = format!("{controller} is not in this VM");
            return Err(Error::Argument { field: "Controller", reason });
        };
        Ok(self.at("bus/scsi/devices").join(format!("{host}:0:0:{lun}")))
    }

    /// Has the kernel look for a disk.
    pub(super) fn rescan(&self, address: DiskAddress) -> Result<()> {
        let DiskAddress { controller, lun, .. } = address;
        let Some(host) = self.scsi_host(controller) else { return Ok(()) };
        let scan = self.at(&format!("class/scsi_host/host{host}/scan"));
        fs::write(scan, format!("0 0 {lun}\n")).context(|| format!("look for {address}"))
    }

    /// The kernel's number of a controller.
    fn scsi_host(&self, controller: u8) -> Option<u32> {
        if self.has_vmbus() {
            let instance = CONTROLLERS[usize::from(controller)];
            let device = self.at("bus/vmbus/devices").join(instance);
            return names_in(&device).iter().find_map(|name| number(name));
        }
        self.virtio_hosts().get(usize::from(controller)).copied()
    }

    /// The kernel's numbers of virtio controllers, in the order of their PCI addresses.
    fn virtio_hosts(&self) -> Vec<u32> {
        let class = self.at("class/scsi_host");
        let mut virtio: Vec<(PathBuf, u32)> = names_in(&class)
            .iter()
            .filter_map(|name| Some((fs::canonicalize(class.join(name)).ok()?, number(name)?)))
            .filter(|(path, _)| path.to_string_lossy().contains("/virtio"))
            .collect();
        virtio.sort();
        virtio.into_iter().map(|(_, number)| number).collect()
    }

    /// What virtio controllers would be called on VMBus, with the kernel's numbers of them.
    pub(super) fn vmbus_controllers(&self) -> impl Iterator<Item = (&'static str, u32)> {
        CONTROLLERS.into_iter().zip(self.virtio_hosts())
    }

    /// The one device of the PCI bus behind a VMBus instance; `None` while there is none.
    pub(super) fn pci(&self, instance: &str) -> Result<Option<PathBuf>> {
        let device = self.at("bus/vmbus/devices").join(instance);
        let Some(bus) = only(&device, "pci")? else { return Ok(None) };
        let prefix = bus.strip_prefix("pci").unwrap_or_default().to_owned();
        let bus = device.join(bus);
        Ok(only(&bus, &prefix)?.map(|function| bus.join(function)))
    }
}

/// The one name that begins with `prefix`.
fn only(directory: &Path, prefix: &str) -> Result<Option<String>> {
    let mut names = names_in(directory).into_iter().filter(|name| name.starts_with(prefix));
    match (names.next(), names.next()) {
        (found, None) => Ok(found),
        (_, Some(_)) => Err(Error::Argument {
            field: "VMBusGUID",
            reason: format!("there is more than one {prefix}* in {}", directory.display()),
        }),
    }
}

/// The number in `host<N>`.
fn number(host: &str) -> Option<u32> {
    host.strip_prefix("host").and_then(|number| number.parse().ok())
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up sysfs that goes with it.
    struct Made(PathBuf);

    impl Made {
        fn new(name: &str, directories: &[&str]) -> Self {
            let root = std::env::temp_dir().join(format!("linkspan-{name}-{}", std::process::id()));
            let made = Self(root);
            directories.iter().for_each(|path| made.add(path));
            made
        }

        fn add(&self, path: &str) {
            fs::create_dir_all(self.0.join(path)).unwrap();
        }

        fn sysfs(&self) -> Sysfs<'_> {
            Sysfs(self.0.to_str().unwrap())
        }
    }

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn address(controller: u8, lun: u8, partition: u64) -> DiskAddress {
        DiskAddress { controller, lun, partition }
    }

    #[test]
    fn a_hyperv_controller_is_found_by_its_instance_whatever_its_number() {
        let made = Made::new(
            "vmbus",
            &[
                "bus/vmbus/devices/df6d0690-79e5-55b6-a5ec-c1e2f77f580a/host5",
                "bus/vmbus/devices/0110f83b-de10-5172-a266-78bca56bf50a/host2",
                "bus/vmbus/devices/b5d2d8d4-3a75-51bf-945b-3444dc6b8579",
                "bus/scsi/devices/2:0:0:7/block/sdc/sdc2",
            ],
        );
        let sysfs = made.sysfs();
        assert_eq!(sysfs.disk(address(1, 7, 0)), Some("/dev/sdc".into()));
        assert_eq!(sysfs.disk(address(1, 7, 2)), Some("/dev/sdc2".into()));
        assert_eq!(sysfs.disk(address(1, 7, 1)), None, "no such partition");
        assert_eq!(sysfs.disk(address(0, 7, 0)), None, "another controller");
        assert!(sysfs.scsi(address(2, 0, 0)).is_err(), "a controller without a host");
        assert!(sysfs.scsi(address(3, 0, 0)).is_err(), "no controller");
        made.add("bus/scsi/devices/5:0:0:7/block/sda");
        assert_eq!(sysfs.disk(address(0, 7, 0)), Some("/dev/sda".into()));
    }

    #[test]
    fn virtio_controllers_are_counted_by_their_place() {
        let made = Made::new("virtio", &["class/scsi_host", "bus/scsi/devices/3:0:0:0/block/sdb"]);
        for (device, host) in [("pci/00:05.0/virtio3", 1), ("pci/00:04.0/virtio2", 3)] {
            let path = format!("devices/{device}/host{host}");
            made.add(&path);
            let link = made.0.join(format!("class/scsi_host/host{host}"));
            std::os::unix::fs::symlink(made.0.join(path), link).unwrap();
        }
        made.add("class/scsi_host/host0"); // not a virtio one
        assert_eq!(made.sysfs().disk(address(0, 0, 0)), Some("/dev/sdb".into()));
        assert_eq!(made.sysfs().disk(address(1, 0, 0)), None);
        assert!(made.sysfs().scsi(address(2, 0, 0)).is_err());
    }

    #[test]
    fn a_pci_device_is_there_once_its_bus_has_it() {
        let id = "0a0b0c0d-0000-0000-0000-000000000001";
        let made = Made::new("vpci", &["bus/vmbus/devices"]);
        let sysfs = made.sysfs();
        assert_eq!(sysfs.pci(id).unwrap(), None);
        let bus = format!("bus/vmbus/devices/{id}/pci8f3a:00");
        made.add(&bus);
        assert_eq!(sysfs.pci(id).unwrap(), None);
        made.add(&format!("{bus}/8f3a:00:00.0"));
        made.add(&format!("{bus}/power"));
        assert_eq!(sysfs.pci(id).unwrap(), Some(made.0.join(bus.clone()).join("8f3a:00:00.0")));
        made.add(&format!("{bus}/8f3a:00:01.0"));
        assert!(sysfs.pci(id).unwrap_err().to_string().contains("more than one"));
    }

    #[test]
    fn an_instance_cannot_lead_elsewhere() {
        let id = "0A0B0C0D-0000-0000-0000-00000000000F";
        assert_eq!(instance("VMBusGUID", &format!("{{{id}}}")).unwrap(), id.to_lowercase());
        for bad in ["", "../../x", "0a0b0c0d000000000000000000000000abcd", &id[1..]] {
            assert!(instance("VMBusGUID", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn partitions_of_disks_that_end_in_a_digit_have_a_p() {
        assert_eq!(partition("sda", 3), "sda3");
        assert_eq!(partition("/dev/loop7", 1), "/dev/loop7p1");
    }
}
