//! A disk at a path: as it is, checked, or encrypted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::mapping::Mapping;
use super::mount::{MountPoint, make_directory, unmount_all};
use super::{DiskAddress, Filesystem, Verity, crypt, format};
use crate::error::Context;
use crate::{Error, Result};

/// What is to be done with a disk. The fields are checked against each other by
/// [`check`](Self::check).
#[derive(Debug)]
pub(crate) struct DiskMount {
    pub(crate) address: DiskAddress,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
    /// A link to the device in place of a mount.
    pub(crate) link: bool,
    pub(crate) encrypted: bool,
    pub(crate) verity: Option<Verity>,
    /// The one that is detected where none is said.
    pub(crate) filesystem: Option<Filesystem>,
    /// Whether the disk is to be formatted where it holds another.
    pub(crate) ensure: bool,
    pub(crate) propagation: Vec<MsFlags>,
}

impl DiskMount {
    /// Finds what contradicts itself, before anything is touched.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |field, reason: &str| Err(Error::Argument { field, reason: reason.to_owned() });
        if self.verity.is_some() && !self.read_only {
            return bad("VerityInfo", "is for a disk with ReadOnly, which this one has not");
        }
        if self.encrypted && self.read_only {
            return bad("Encrypted", "makes an empty disk, which ReadOnly has no use for");
        }
        let formats = matches!(self.filesystem, Some(Filesystem::Ext4 | Filesystem::Xfs));
        if self.ensure && !formats {
            return bad("Filesystem", "is to be ext4 or xfs, where EnsureFilesystem is set");
        }
        if self.encrypted && !self.link && !self.ensure {
            return bad("Encrypted", "makes an empty disk, which is of use with EnsureFilesystem");
        }
        Ok(())
    }

    /// Mounts or links it. Gives the devices that were made for it, the outermost first: they are
    /// to be removed once it is unmounted. After a failure everything is as before, but for the
    /// contents of a disk that was formatted.
    pub(crate) fn mount(&self, device: &Path) -> Result<Vec<Mapping>> {
        let DiskAddress { controller, lun, partition } = self.address;
        let prefix = format!("scsi-contr{controller}-lun{lun}-p{partition}");
        let mappings: Vec<Mapping> = match (&self.verity, self.encrypted) {
            (Some(verity), _) => vec![verity.open(&prefix, device)?],
            (None, true) => crypt::open(&prefix, device)?.into(),
            (None, false) => Vec::new(),
        };
        let source = mappings.first().map_or(device, Mapping::device);
        let done = match self.link {
            true => link(source, &self.target),
            false => self.mount_from(source),
        };
        match (done, &self.verity, mappings.first()) {
            (Ok(()), ..) => Ok(mappings),
            (Err(error), Some(verity), Some(mapping)) => {
                Err(verity.explain(mapping, &self.address.to_string(), error))
            }
            (Err(error), ..) => Err(error),
        }
    }

    fn mount_from(&self, device: &Path) -> Result<()> {
        let filesystem = self.choose(device)?;
        crate::modules::need(filesystem.name());
        let target = self.target.as_path();
        let made = make_directory(target, 0o700)?;
        let point = MountPoint {
            source: device,
            target,
            kind: Some(filesystem.name()),
            flags: if self.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() },
            data: self.read_only.then(|| filesystem.read_only_options()).flatten(),
        };
        point.mount()?;
        for &flags in &self.propagation {
            let change =
                MountPoint { source: Path::new("none"), target, kind: None, flags, data: None };
            if let Err(error) = change.mount() {
                unmount_all(target)?;
                return Err(error);
            }
        }
        made.keep();
        Ok(())
    }

    /// What the device holds, or holds from now on.
    fn choose(&self, device: &Path) -> Result<Filesystem> {
        // A new encrypted disk holds nothing.
        let found = match self.encrypted {
            true => None,
            false => Filesystem::detect(device)?,
        };
        match (self.filesystem, found) {
            (None, Some(found)) => Ok(found),
            (Some(wanted), Some(found)) if wanted == found => Ok(wanted),
            (Some(wanted), _) if self.ensure && !self.read_only => {
                match wanted {
                    Filesystem::Xfs => format::xfs(device),
                    _ => format::ext4(device),
                }?;
                Ok(wanted)
            }
            (_, None) => {
                let what = format!("{} holds no known file system", self.address);
                Err(Error::Io { what, source: std::io::ErrorKind::InvalidData.into() })
            }
            (Some(wanted), Some(found)) => {
                let (wanted, found) = (wanted.name(), found.name());
                let reason = format!("{} holds {found}, not {wanted}", self.address);
                Err(Error::Argument { field: "Filesystem", reason })
            }
        }
    }
}

fn link(device: &Path, target: &Path) -> Result<()> {
    if let Some(parent) = target.parent() {
        make_directory(parent, 0o700)?.keep();
    }
    symlink(device, target).context(|| format!("link {} to {}", target.display(), device.display()))
}

/// Removes a link to a device; one that is not there is no error.
pub(crate) fn unlink(target: &Path) -> Result<()> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if !metadata.is_symlink() => {
            let reason = format!("{} is no link to a device", target.display());
            return Err(Error::Argument { field: "MountPath", reason });
        }
        _ => {}
    }
    fs::remove_file(target).context(|| format!("remove link {}", target.display()))
}

/// Only these of a host's options have an effect; it sends `ro` as well.
pub(crate) fn propagation(options: &[String]) -> Vec<MsFlags> {
    let flags = |option: &String| {
        let (recursive, name) = match option.strip_prefix('r') {
            Some(name) if option != "ro" => (MsFlags::MS_REC, name),
            _ => (MsFlags::empty(), option.as_str()),
        };
        let flags = match name {
            "private" => MsFlags::MS_PRIVATE,
            "shared" => MsFlags::MS_SHARED,
            "slave" => MsFlags::MS_SLAVE,
            "unbindable" => MsFlags::MS_UNBINDABLE,
            _ => return None,
        };
        Some(flags | recursive)
    };
    options.iter().filter_map(flags).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> DiskMount {
        DiskMount {
            address: DiskAddress { controller: 0, lun: 1, partition: 0 },
            target: "/run/x".into(),
            read_only: false,
            link: false,
            encrypted: false,
            verity: None,
            filesystem: None,
            ensure: false,
            propagation: Vec::new(),
        }
    }

    #[test]
    fn only_propagation_options_count() {
        let options = ["ro", "noatime", "shared", "rslave", "rw"].map(str::to_owned);
        assert_eq!(
            propagation(&options),
            [MsFlags::MS_SHARED, MsFlags::MS_SLAVE | MsFlags::MS_REC]
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused_before_the_disk_is_touched() {
        disk().check().unwrap();
        let ext4 = Some(Filesystem::Ext4);
        DiskMount { ensure: true, filesystem: ext4, ..disk() }.check().unwrap();
        DiskMount { encrypted: true, ensure: true, filesystem: ext4, ..disk() }.check().unwrap();
        DiskMount { encrypted: true, link: true, ..disk() }.check().unwrap();
        for (wrong, field) in [
            (DiskMount { ensure: true, ..disk() }, "Filesystem"),
            (DiskMount { ensure: true, filesystem: Some(Filesystem::Erofs), ..disk() }, "Filesys"),
            (DiskMount { encrypted: true, ..disk() }, "Encrypted"),
            (DiskMount { encrypted: true, read_only: true, link: true, ..disk() }, "Encrypted"),
        ] {
            let text = wrong.check().unwrap_err().to_string();
            assert!(text.starts_with(field), "{text}");
        }
    }
}
