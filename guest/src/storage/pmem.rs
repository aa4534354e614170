//! Layers on persistent memory: a whole device, or a part of one.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::mapping::{Mapping, linear};
use super::mount::{MountPoint, make_directory};
use super::{Filesystem, Verity};
use crate::{Error, Result};

/// What is to be done with a persistent-memory device. It is mounted read-only.
#[derive(Debug)]
pub(crate) struct PmemMount {
    pub(crate) number: u32,
    pub(crate) target: PathBuf,
    /// First byte and length; all of it where there is none.
    pub(crate) part: Option<(u64, u64)>,
    pub(crate) verity: Option<Verity>,
}

impl PmemMount {
    /// Mounts it. Gives the devices that were made for it, the outermost first. After a failure
    /// everything is as before.
    pub(crate) fn mount(&self, device: &Path) -> Result<Vec<Mapping>> {
        let number = self.number;
        let mut mappings = Vec::new();
        if let Some((offset, size)) = self.part {
            let name = format!("dm-linear-pmem{number}-{offset}-{size}");
            mappings.push(linear(name, device, offset, size)?);
        }
        if let Some(verity) = &self.verity {
            let below = mappings.first().map_or(device, Mapping::device);
            // A name of its own for each part of a device.
            let prefix = match self.part {
                None => format!("pmem{number}"),
                Some((offset, _)) => format!("pmem{number}-{offset}"),
            };
            let mapping = verity.open(&prefix, below)?;
            mappings.insert(0, mapping);
        }
        let source = mappings.first().map_or(device, Mapping::device);
        match (self.mount_from(source), &self.verity, mappings.first()) {
            (Ok(()), ..) => Ok(mappings),
            (Err(error), Some(verity), Some(mapping)) => {
                let what = format!("persistent-memory device {number}");
                Err(verity.explain(mapping, &what, error))
            }
            (Err(error), ..) => Err(error),
        }
    }

    fn mount_from(&self, device: &Path) -> Result<()> {
        let filesystem = Filesystem::detect(device)?.ok_or_else(|| {
            let what =
                format!("persistent-memory device {} holds no known file system", self.number);
            Error::Io { what, source: std::io::ErrorKind::InvalidData.into() }
        })?;
        crate::modules::need(filesystem.name());
        let made = make_directory(&self.target, 0o700)?;
        let point = MountPoint {
            source: device,
            target: &self.target,
            kind: Some(filesystem.name()),
            flags: MsFlags::MS_RDONLY,
            data: filesystem.read_only_options(),
        };
        point.mount()?;
        made.keep();
        Ok(())
    }
}
