//! MappedVirtualDisk: a disk at a guest path.

use serde::{Deserialize, Serialize};

use crate::json::is_zero;

/// A SCSI disk that is mounted, or linked, at a path. A Windows guest reads only
/// [`container_path`](Self::container_path) and [`lun`](Self::lun).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MappedVirtualDisk {
    /// Where (Linux). Empty: nothing happens but the wait for the disk.
    #[serde(skip_serializing_if = "is_zero")]
    pub mount_path: String,
    /// Where (Windows).
    #[serde(skip_serializing_if = "is_zero")]
    pub container_path: String,
    /// Logical unit.
    #[serde(skip_serializing_if = "is_zero")]
    pub lun: u8,
    /// Controller, 0 to 3.
    #[serde(skip_serializing_if = "is_zero")]
    pub controller: u8,
    /// 1-based; 0 is the whole disk.
    #[serde(skip_serializing_if = "is_zero")]
    pub partition: u64,
    /// Mount read-only.
    #[serde(skip_serializing_if = "is_zero")]
    pub read_only: bool,
    /// Put dm-crypt between, with a fresh key.
    #[serde(skip_serializing_if = "is_zero")]
    pub encrypted: bool,
    /// Of these only propagation flags (`private`, `rshared`, …) have an effect.
    #[serde(skip_serializing_if = "is_zero")]
    pub options: Vec<String>,
    /// Make a symbolic link to the device in place of a mount.
    #[serde(skip_serializing_if = "is_zero")]
    pub block_dev: bool,
    /// Deprecated and ignored: guests read the superblock.
    #[serde(skip_serializing_if = "is_zero")]
    pub verity_info: Option<VerityInfo>,
    /// Format the disk where it does not hold [`filesystem`](Self::filesystem).
    #[serde(skip_serializing_if = "is_zero")]
    pub ensure_filesystem: bool,
    /// `ext4` or `xfs`; the detected one where empty.
    #[serde(skip_serializing_if = "is_zero")]
    pub filesystem: String,
}

/// How a layer's contents are verified; deprecated on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VerityInfo {
    /// Where the tree begins, in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub ext4_size_in_bytes: i64,
    /// Of the on-disk format.
    #[serde(skip_serializing_if = "is_zero")]
    pub version: i32,
    /// `sha256`.
    #[serde(skip_serializing_if = "is_zero")]
    pub algorithm: String,
    /// Whether there is a superblock.
    #[serde(skip_serializing_if = "is_zero")]
    pub super_block: bool,
    /// Hex.
    #[serde(skip_serializing_if = "is_zero")]
    pub root_digest: String,
    /// Hex.
    #[serde(skip_serializing_if = "is_zero")]
    pub salt: String,
    /// In bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub block_size: i32,
}
