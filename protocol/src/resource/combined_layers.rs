//! CombinedLayers: a container's root.

use serde::{Deserialize, Serialize};

use crate::json::is_zero;

/// An overlay of read-only layers and, with a scratch path, a writable directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CombinedLayers {
    /// Whose root. (The capitals are the wire's.)
    #[serde(rename = "ContainerID", skip_serializing_if = "is_zero")]
    pub container_id: String,
    /// Where the root appears.
    #[serde(skip_serializing_if = "is_zero")]
    pub container_root_path: String,
    /// The top-most first.
    #[serde(skip_serializing_if = "is_zero")]
    pub layers: Vec<Layer>,
    /// Gets `upper` and `work`; empty for a read-only root.
    #[serde(skip_serializing_if = "is_zero")]
    pub scratch_path: String,
    /// Windows: `UnionFS`; left out for `WCIFS`, which old guests take for granted.
    #[serde(skip_serializing_if = "is_zero")]
    pub filter_type: String,
}

/// One layer; Linux guests look at the path only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Layer {
    /// Windows: a GUID.
    #[serde(skip_serializing_if = "is_zero")]
    pub id: String,
    /// Where it is mounted in the guest.
    #[serde(skip_serializing_if = "is_zero")]
    pub path: String,
    /// Windows: `AbsolutePath` or `VirtualSmbShareName`.
    #[serde(skip_serializing_if = "is_zero")]
    pub path_type: String,
    /// Windows.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: String,
}
