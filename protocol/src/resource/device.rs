//! Devices: SCSI unplug, persistent memory, PCI.

use serde::{Deserialize, Serialize};

use crate::json::is_zero;

/// A disk that the host is about to detach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ScsiDevice {
    /// 0 to 3.
    #[serde(skip_serializing_if = "is_zero")]
    pub controller: u8,
    /// Logical unit.
    #[serde(skip_serializing_if = "is_zero")]
    pub lun: u8,
}

/// A persistent-memory device, mounted read-only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VpmemDevice {
    /// `N` of `/dev/pmemN`.
    #[serde(skip_serializing_if = "is_zero")]
    pub device_number: u32,
    /// Where.
    #[serde(skip_serializing_if = "is_zero")]
    pub mount_path: String,
    /// Which part of the device; all of it where there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub mapping_info: Option<VpmemMapping>,
    /// Deprecated and ignored.
    #[serde(skip_serializing_if = "is_zero")]
    pub verity_info: Option<super::VerityInfo>,
}

/// A part of a persistent-memory device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VpmemMapping {
    /// In bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub device_offset_in_bytes: u64,
    /// In bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub device_size_in_bytes: u64,
}

/// A PCI device that is to appear.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VpciDevice {
    /// Its VMBus instance.
    #[serde(rename = "VMBusGUID", skip_serializing_if = "is_zero")]
    pub vmbus_guid: String,
}
