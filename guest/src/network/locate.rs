//! Which interface is an adapter's.
//!
//! | machine | told by                              | found in                                     |
//! |---------|--------------------------------------|----------------------------------------------|
//! | Hyper-V | its VMBus instance                   | `/sys/bus/vmbus/devices/<instance>/net`, or that of the PCI device behind it |
//! | others  | a PCI address as its id, or its MAC  | `/sys/bus/pci/devices/<address>/virtio*/net`; all interfaces |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use linkspan_protocol::resource::Network;

use super::netlink::Netlink;
use crate::error::Context;
use crate::storage::{Devices, appear_within};
use crate::{Error, Result};

/// How long an interface may take to appear.
const APPEARANCE: Duration = Duration::from_secs(5);

const VMBUS: &str = "/sys/bus/vmbus/devices";

/// The name of an adapter's interface in this process's namespace, once it is there.
pub(super) async fn locate(devices: &Devices, adapter: &Network) -> Result<String> {
    let what = format!("the interface of adapter {:?} ({})", adapter.id, adapter.mac_address);
    if Path::new(VMBUS).is_dir() {
        let directory = match adapter.vpci_assigned {
            true => devices.pci(&adapter.id).await?.join("net"),
            false => {
                let instance = adapter.id.to_ascii_lowercase();
                let plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
                if instance.is_empty() || !instance.bytes().all(plain) {
                    let reason = format!("{:?} is not a VMBus instance", adapter.id);
                    return Err(Error::Argument { field: "ID", reason });
                }
                Path::new(VMBUS).join(instance).join("net")
            }
        };
        return appear_within(APPEARANCE, &what, || only_entry(&directory)).await;
    }
    if let Some(device) = pci_device(&adapter.id) {
        return appear_within(APPEARANCE, &what, || {
            match fs::read_dir(&device) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error).context(|| format!("list {}", device.display())),
                Ok(entries) => {
                    for entry in entries.flatten() {
                        if entry.file_name().to_string_lossy().starts_with("virtio") {
                            return only_entry(&entry.path().join("net"));
                        }
                    }
                }
            }
            only_entry(&device.join("net"))
        })
        .await;
    }
    let Some(address) = link_address(&adapter.mac_address) else {
        let reason = format!(
            "{:?} is not a MAC address, and ID {:?} not a PCI address",
            adapter.mac_address, adapter.id
        );
        return Err(Error::Argument { field: "MacAddress", reason });
    };
    appear_within(APPEARANCE, &what, || {
        let links = Netlink::own().and_then(|mut netlink| netlink.links());
        let links = links.context(|| "list interfaces".to_owned())?;
        let mut matching = links.into_iter().filter(|link| link.address == address);
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(several(&adapter.mac_address)),
            (found, _) => Ok(found.map(|link| link.name)),
        }
    })
    .await
}

fn several(id: &str) -> Error {
    Error::NotSupported(format!("multiple interface names found for adapter {id}: this"))
}

/// The one name in a directory; `None` while there is none.
fn only_entry(directory: &Path) -> Result<Option<String>> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(None) };
    let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    match (names.next(), names.next()) {
        (Some(_), Some(_)) => Err(several(&directory.to_string_lossy())),
        (name, _) => Ok(name),
    }
}

/// `0000:00:05.0`
fn pci_device(id: &str) -> Option<PathBuf> {
    let id = id.to_ascii_lowercase();
    let shape = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b':',
        10 => byte == b'.',
        _ => byte.is_ascii_hexdigit(),
    };
    let is_address = id.len() == 12 && id.bytes().enumerate().all(shape);
    is_address.then(|| Path::new("/sys/bus/pci/devices").join(id))
}

/// Six bytes in hexadecimal, parted by dashes or colons.
fn link_address(text: &str) -> Option<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split(['-', ':'])
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2))
        .collect();
    bytes.filter(|bytes| bytes.len() == 6 && bytes.iter().any(|&byte| byte != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_both_spellings_and_nothing_else_is() {
        let address = [0, 0x15, 0x5d, 0, 0, 1];
        assert_eq!(link_address("00-15-5D-00-00-01").as_deref(), Some(&address[..]));
        assert_eq!(link_address("00:15:5d:00:00:01").as_deref(), Some(&address[..]));
        for text in ["", "00-15", "00-15-5D-00-00-0g", "00-15-5D-00-00-001", "00-00-00-00-00-00"] {
            assert_eq!(link_address(text), None, "{text}");
        }
        assert!(pci_device("0000:00:05.0").is_some());
        for text in ["11111111-2222-3333-4444-555555555555", "../../../etc", "0000:00:05"] {
            assert!(pci_device(text).is_none(), "{text}");
        }
    }
}
