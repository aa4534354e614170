//! What a caller may choose about an image, and what it is told.

use crate::verity::{Verity, VerityOptions};

/// How an image is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Turn the whiteouts of OCI layers (`.wh.name`, `.wh..wh..opq`) into those of overlayfs.
    /// Off by default: in a plain root file system such a name is just a name.
    pub whiteouts: bool,
    /// Let the image be mounted for writing. Off by default: the kernel then refuses to.
    /// A writable image still has hardly any free space.
    pub writable: bool,
    /// The image may not grow beyond this many bytes; room for its group descriptors is set
    /// aside accordingly (32 bytes per 128 MiB). 1 TiB by default, 16 TiB at most.
    pub max_size: u64,
    /// The size of the image is a multiple of this many bytes: 4096 (the default) or a multiple.
    pub size_multiple: u64,
    /// UUID of the file system; by default one derived from what the image holds.
    pub uuid: Option<[u8; 16]>,
    /// Volume label, 16 bytes, padded with zeros.
    pub label: [u8; 16],
    /// The file system. ext4 by default.
    pub format: Format,
    /// Append a dm-verity superblock and hash tree. Off by default.
    pub verity: Option<VerityOptions>,
}

/// Which file system an image has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// What every host and guest of the bridge takes.
    #[default]
    Ext4,
    /// Read-only by design, and the smaller one: small files lie beside their inodes. For guests
    /// whose kernel has it.
    Erofs,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            whiteouts: false,
            writable: false,
            max_size: 1 << 40,
            size_multiple: 4096,
            uuid: None,
            label: [0; 16],
            format: Format::Ext4,
            verity: None,
        }
    }
}

/// How far a build has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the source consumed: compressed bytes of an archive, file bytes of a directory.
    pub bytes: u64,
    /// What `bytes` will be at the end, when that is known: the size of an archive file.
    pub total: Option<u64>,
    /// Entries of the source seen: files, directories, links and so on.
    pub entries: u64,
}

/// A finished image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Size of the image in bytes, hash tree included; a multiple of 4096.
    pub bytes: u64,
    /// Bytes of the file system.
    pub file_system_bytes: u64,
    /// Inodes in use, the reserved ones not counted.
    pub inodes: u64,
    /// Bytes of the blocks that hold file contents.
    pub data_bytes: u64,
    /// Extended attributes left out because the file system has no name space for them.
    pub skipped_xattrs: u64,
    /// UUID of the file system.
    pub uuid: [u8; 16],
    /// The hash tree, if there is one.
    pub verity: Option<Verity>,
}

impl Summary {
    pub(crate) fn of_scratch(bytes: u64, uuid: [u8; 16]) -> Self {
        let (inodes, data_bytes, skipped_xattrs) = (2, 0, 0);
        let (file_system_bytes, verity) = (bytes, None);
        Self { bytes, file_system_bytes, inodes, data_bytes, skipped_xattrs, uuid, verity }
    }
}
