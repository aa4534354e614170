//! Where a SCSI address leads.
//!
//! A host speaks of controllers 0 to 3. On Hyper-V these are VMBus devices with fixed instance
//! ids; on virtio they are the VM's virtio-scsi adapters, in the order of their PCI addresses;
//! without a hypervisor a directory has a link for each disk. Devices appear when they like:
//! the wait is for the kernel's word, not for time to pass, and it has a deadline.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

use crate::error::Context;
use crate::{Error, Result};

/// A disk, as hosts name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskAddress {
    pub(crate) controller: u8,
    pub(crate) lun: u8,
    /// 1-based; 0 is the whole disk.
    pub(crate) partition: u64,
}

impl std::fmt::Display for DiskAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SCSI disk {}:{}", self.controller, self.lun)?;
        match self.partition {
            0 => Ok(()),
            partition => write!(f, " partition {partition}"),
        }
    }
}

/// VMBus instances of a Hyper-V VM's SCSI controllers.
const VMBUS_CONTROLLERS: [&str; 4] = [
    "df6d0690-79e5-55b6-a5ec-c1e2f77f580a",
    "0110f83b-de10-5172-a266-78bca56bf50a",
    "b5d2d8d4-3a75-51bf-945b-3444dc6b8579",
    "305891a9-b251-5dfe-91a2-c25d9212275b",
];

/// How long a disk may take to appear. Hosts attach it before they ask for it.
const APPEARANCE: Duration = Duration::from_secs(20);

/// How long no word of the kernel's is taken for granted.
const TICK: Duration = Duration::from_millis(250);

/// Whether a node leads to a device: one of a disk that has just gone, or is still on its way,
/// does not.
fn is_live(device: &Path) -> bool {
    use nix::errno::Errno;
    match fs::File::open(device) {
        Ok(_) => true,
        Err(error) => ![Errno::ENXIO, Errno::ENOENT, Errno::ENODEV]
            .iter()
            .any(|errno| error.raw_os_error() == Some(*errno as i32)),
    }
}

/// How disks are found.
#[derive(Clone, Debug)]
pub(crate) enum Disks {
    /// Through sysfs.
    Sysfs,
    /// As `<controller>_<lun>` in a directory.
    Directory(PathBuf),
}

impl Disks {
    /// The device of a disk, once it is there.
    pub(crate) async fn find(&self, address: DiskAddress) -> Result<PathBuf> {
        if usize::from(address.controller) >= VMBUS_CONTROLLERS.len() {
            let reason = format!("{} is not 0 to 3", address.controller);
            return Err(Error::Argument { field: "Controller", reason });
        }
        match self {
            Self::Directory(directory) => {
                let link = directory.join(format!("{}_{}", address.controller, address.lun));
                fs::canonicalize(&link).context(|| format!("find {address} as {}", link.display()))
            }
            Self::Sysfs => {
                let events = DeviceEvents::subscribe().context(|| "hear of devices".to_owned())?;
                let found = async {
                    loop {
                        if let Some(device) = sysfs(address)?.filter(|device| is_live(device)) {
                            return Ok(device);
                        }
                        // The tick is for a device that becomes live without a word.
                        let event = tokio::time::timeout(TICK, events.next()).await;
                        event.unwrap_or(Ok(())).context(|| format!("wait for {address}"))?;
                    }
                };
                tokio::time::timeout(APPEARANCE, found).await.unwrap_or_else(|_| {
                    let what = format!("wait {} s for {address} to appear", APPEARANCE.as_secs());
                    Err(Error::Io { what, source: io::ErrorKind::TimedOut.into() })
                })
            }
        }
    }

    /// Tells the kernel that a disk is about to go. One that is not there is no error.
    pub(crate) fn unplug(&self, address: DiskAddress) -> Result<()> {
        let Self::Sysfs = self else { return Ok(()) };
        let Some(host) = scsi_host(address.controller)? else {
            let reason = format!("{} is not in this VM", address.controller);
            return Err(Error::Argument { field: "Controller", reason });
        };
        let delete = scsi_device(host, address.lun).join("delete");
        match fs::write(&delete, "1\n") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.context(|| format!("unplug {address}")),
        }
    }
}

fn scsi_device(host: u32, lun: u8) -> PathBuf {
    PathBuf::from(format!("/sys/bus/scsi/devices/{host}:0:0:{lun}"))
}

fn sysfs(address: DiskAddress) -> Result<Option<PathBuf>> {
    let Some(host) = scsi_host(address.controller)? else { return Ok(None) };
    let block = scsi_device(host, address.lun).join("block");
    let Some(disk) = names_in(&block).into_iter().next() else { return Ok(None) };
    let name = match address.partition {
        0 => disk,
        number => {
            let partition = format!("{disk}{number}");
            if !block.join(&disk).join(&partition).exists() {
                return Ok(None);
            }
            partition
        }
    };
    let node = Path::new("/dev").join(name);
    Ok(node.exists().then_some(node))
}

/// The kernel's number of a controller.
fn scsi_host(controller: u8) -> Result<Option<u32>> {
    let number = |name: &str| name.strip_prefix("host").and_then(|number| number.parse().ok());
    let vmbus = Path::new("/sys/bus/vmbus/devices");
    if vmbus.is_dir() {
        let instance = vmbus.join(VMBUS_CONTROLLERS[usize::from(controller)]);
        return Ok(names_in(&instance).iter().find_map(|name| number(name)));
    }
    let class = Path::new("/sys/class/scsi_host");
    let mut virtio: Vec<(PathBuf, u32)> = names_in(class)
        .iter()
        .filter_map(|name| Some((fs::canonicalize(class.join(name)).ok()?, number(name)?)))
        .filter(|(path, _)| path.to_string_lossy().contains("/virtio"))
        .collect();
    virtio.sort();
    Ok(virtio.get(usize::from(controller)).map(|(_, number)| *number))
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The kernel's word that devices come and go.
struct DeviceEvents {
    socket: AsyncFd<OwnedFd>,
}

impl DeviceEvents {
    fn subscribe() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self { socket: linkspan_guest_sys::register(socket)? })
    }

    /// Something has changed; what, one finds by looking.
    async fn next(&self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready
                .try_io(|socket| Ok(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?));
            match received {
                // A full socket means that there was much to hear.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => return Ok(()),
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}
