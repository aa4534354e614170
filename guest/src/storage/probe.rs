//! Which file system a device holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Result;
use crate::error::Context;

/// A file system that layers and scratch disks come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filesystem {
    Ext4,
    Xfs,
    Erofs,
    Squashfs,
}

const ALL: [(Filesystem, u64, &[u8]); 4] = [
    (Filesystem::Ext4, 1080, &[0x53, 0xef]),
    (Filesystem::Xfs, 0, b"XFSB"),
    (Filesystem::Erofs, 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    (Filesystem::Squashfs, 0, b"hsqs"),
];

impl Filesystem {
    /// The one on a device, by its magic number.
    pub(crate) fn detect(device: &Path) -> Result<Option<Self>> {
        let what = || format!("read the superblock of {}", device.display());
        let file = File::open(device).context(what)?;
        for (filesystem, offset, magic) in ALL {
            let mut bytes = [0; 4];
            match file.read_exact_at(&mut bytes[..magic.len()], offset) {
                Ok(()) if bytes.starts_with(magic) => return Ok(Some(filesystem)),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Err(error).context(what),
            }
        }
        Ok(None)
    }

    /// The kernel's name of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
        }
    }

    /// What keeps a read-only mount from replaying a journal, which would write.
    pub(crate) fn read_only_options(self) -> Option<&'static str> {
        match self {
            Self::Ext4 => Some("noload"),
            Self::Xfs => Some("norecovery"),
            Self::Erofs | Self::Squashfs => None,
        }
    }
}

impl std::str::FromStr for Filesystem {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        ALL.iter().map(|(filesystem, ..)| *filesystem).find(|fs| fs.name() == name).ok_or(())
    }
}
