//! MappedDirectory: a directory of the host.

use serde::{Deserialize, Serialize};

use crate::json::is_zero;

/// A share: 9p over a vsock connection in a Linux guest, vSMB in a Windows one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MappedDirectory {
    /// Where (Linux).
    #[serde(skip_serializing_if = "is_zero")]
    pub mount_path: String,
    /// Of the host's 9p server (Linux).
    #[serde(skip_serializing_if = "is_zero")]
    pub port: i32,
    /// 9p `aname` (Linux); a decimal counter from hosts.
    #[serde(skip_serializing_if = "is_zero")]
    pub share_name: String,
    /// What (Windows).
    #[serde(skip_serializing_if = "is_zero")]
    pub host_path: String,
    /// `AbsolutePath` or `VirtualSmbPipeName` (Windows).
    #[serde(skip_serializing_if = "is_zero")]
    pub host_path_type: String,
    /// Where (Windows).
    #[serde(skip_serializing_if = "is_zero")]
    pub container_path: String,
    /// Whether writes are refused.
    #[serde(skip_serializing_if = "is_zero")]
    pub read_only: bool,
}
