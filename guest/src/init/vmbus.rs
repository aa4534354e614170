//! Virtio devices under the names that they would have on VMBus, for an agent that was written for
//! Hyper-V and looks for its devices nowhere else.
//!
//! ```text
//! /sys/bus                               covered by a directory of our own, in which
//!   <bus>                                is the kernel's, for every bus that there is
//!   vmbus/devices/<controller>/host<H>   -> the SCSI host of a virtio controller
//!   vmbus/devices/<adapter>/net          -> the interfaces of a virtio adapter
//! ```
//!
//! A controller's instance is fixed by its number, an adapter's is made of its MAC address
//! ([`instance_of`]), so that a host knows both without asking.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use linkspan_protocol::resource::instance_of;
use nix::mount::{MsFlags, mount};

use crate::storage;

/// Makes it so; written by the image builder.
const WANTED: &str = "/etc/linkspan/vmbus";

/// The kernel's own view, which stays to be seen.
const KERNELS: &str = "/run/linkspan/sys";

const BUSES: &str = "/sys/bus";

/// Whether the image wants VMBus names.
pub(super) fn is_wanted() -> bool {
    Path::new(WANTED).exists()
}

/// Gives the devices that are there their names. A machine that has a VMBus keeps it as it is.
pub(super) fn present() -> io::Result<()> {
    if Path::new(BUSES).join("vmbus").exists() {
        return Ok(());
    }
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    fs::create_dir_all(KERNELS)?;
    mount(Some("sysfs"), KERNELS, Some("sysfs"), flags, None::<&str>)?;
    mount(Some("tmpfs"), BUSES, Some("tmpfs"), flags, Some("mode=0755"))?;
    let kernels = Path::new(KERNELS).join("bus");
    for bus in fs::read_dir(&kernels)? {
        let name = bus?.file_name();
        let (from, to) = (kernels.join(&name), Path::new(BUSES).join(&name));
        fs::create_dir(&to)?;
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    let devices = Path::new(BUSES).join("vmbus/devices");
    fs::create_dir_all(&devices)?;
    for (instance, host) in storage::vmbus_controllers() {
        let controller = devices.join(instance);
        fs::create_dir(&controller)?;
        let name = format!("host{host}");
        link(&Path::new("/sys/class/scsi_host").join(&name), &controller.join(&name))?;
    }
    for interface in fs::read_dir("/sys/class/net")? {
        let interface = interface?.path();
        let address = fs::read_to_string(interface.join("address")).unwrap_or_default();
        // The loopback interface has no device.
        let (Some(instance), Ok(net)) =
            (instance_of(address.trim()), interface.join("device/net").canonicalize())
        else {
            continue;
        };
        let adapter = devices.join(instance);
        fs::create_dir(&adapter)?;
        symlink(net, adapter.join("net"))?;
    }
    Ok(())
}

fn link(class: &Path, name: &Path) -> io::Result<()> {
    symlink(class.canonicalize()?, name)
}
