//! Devices made of others: a part of one (linear), one whose contents are checked (verity), one
//! whose contents are secret (crypt, on top of integrity).
//!
//! Each is made for one mount and goes with it. Names are those that other agents give, so that
//! who looks at a machine finds what they know.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linkspan_guest_sys::{DeviceMapper, Target};
use nix::errno::Errno;
use tracing::warn;

use super::devices::BlockingDeviceEvents;
use crate::error::Context;
use crate::{Error, Result};

pub(super) const SECTOR: u64 = 512;

/// How long a device that is to go may take.
const HOLD: Duration = Duration::from_secs(2);

/// All devices of ours begin so.
const PREFIX: &str = "dm-";

/// A device-mapper device. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    name: String,
    device: PathBuf,
}

/// What a device is to be.
#[derive(Debug)]
pub(super) struct Table<'a> {
    pub(super) name: String,
    pub(super) kind: &'static str,
    /// The group of kernel modules that has it.
    pub(super) modules: &'static str,
    /// Bytes.
    pub(super) size: u64,
    pub(super) parameters: &'a str,
    pub(super) read_only: bool,
}

impl Mapping {
    /// Makes it.
    pub(super) fn new(table: Table<'_>) -> Result<Self> {
        let Table { name, kind, modules, size, parameters, read_only } = table;
        crate::modules::need(modules);
        let mapper = mapper(modules)?;
        let target = Target { kind, sectors: size / SECTOR, parameters, read_only };
        let begun = Instant::now();
        let mut events = None;
        let made = loop {
            match mapper.create(&name, target) {
                // A starting container still has a copy of the last mount. The kernel tells when the
                // device goes, which is after its name has become free.
                Err(error)
                    if error.raw_os_error() == Some(Errno::EBUSY as i32)
                        && begun.elapsed() < HOLD
                        && mapper.is_leaving(&name).unwrap_or(true) =>
                {
                    let hear = || "hear of devices".to_owned();
                    match &events {
                        // It may have gone before there was somebody to hear of it.
                        None => {
                            events = Some(BlockingDeviceEvents::subscribe().context(hear)?);
                        }
                        Some(events) => {
                            events.wait(HOLD.saturating_sub(begun.elapsed())).context(hear)?;
                        }
                    }
                }
                made => break made,
            }
        };
        let minor = made.map_err(|source| {
            let what = match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EBUSY) => format!("make {name}: there is a device of that name"),
                _ => format!("make {name}: a {kind} device of {size} bytes"),
            };
            Error::Io { what, source }
        })?;
        Ok(Self { name, device: PathBuf::from(format!("/dev/dm-{minor}")) })
    }

    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// What its target says of itself; nothing if it cannot.
    pub(super) fn status(&self) -> String {
        let status = DeviceMapper::open().and_then(|mapper| mapper.status(&self.name));
        status.unwrap_or_default()
    }

    /// Removes it. If it is still in use, it goes as soon as it no longer is.
    pub(crate) fn remove(mut self) -> Result<()> {
        let name = std::mem::take(&mut self.name);
        DeviceMapper::open()
            .and_then(|mapper| mapper.remove(&name))
            .context(|| format!("remove device {name}"))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.name.is_empty() {
            return;
        }
        if let Err(error) = DeviceMapper::open().and_then(|mapper| mapper.remove(&self.name)) {
            warn!(name = self.name, %error, "a device stays");
        }
    }
}

fn mapper(modules: &str) -> Result<DeviceMapper> {
    DeviceMapper::open().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::NotSupported(format!(
            "device-mapper without module group {modules:?} in the utility VM's image"
        )),
        _ => Error::Io { what: "open device-mapper".to_owned(), source: error },
    })
}

/// Removes what an agent that broke has left.
pub(super) fn clear() {
    let Ok(mapper) = DeviceMapper::open() else { return };
    let names = mapper.names().unwrap_or_default();
    for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
        if let Err(error) = mapper.remove(name) {
            warn!(name, %error, "a broken agent's device stays");
        }
    }
}

/// A part of a device, read-only.
pub(crate) fn linear(name: String, device: &Path, offset: u64, size: u64) -> Result<Mapping> {
    let bad = |field, value: u64, why: String| {
        Err(Error::Argument { field, reason: format!("{value} {why}") })
    };
    let whole = device_size(device)?;
    if !offset.is_multiple_of(SECTOR) {
        return bad("DeviceOffsetInBytes", offset, format!("is not a multiple of {SECTOR}"));
    }
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return bad("DeviceSizeInBytes", size, format!("is not a multiple of {SECTOR} above 0"));
    }
    if offset.checked_add(size).is_none_or(|end| end > whole) {
        let why = format!("bytes from {offset} on are not within the device's {whole}");
        return bad("DeviceSizeInBytes", size, why);
    }
    let parameters = format!("{} {}", device.display(), offset / SECTOR);
    let (kind, modules, read_only) = ("linear", "pmem", true);
    Mapping::new(Table { name, kind, modules, size, parameters: &parameters, read_only })
}

/// Bytes of a block device.
pub(super) fn device_size(device: &Path) -> Result<u64> {
    let size = File::open(device).and_then(|mut file| file.seek(SeekFrom::End(0)));
    size.context(|| format!("find the size of {}", device.display()))
}
