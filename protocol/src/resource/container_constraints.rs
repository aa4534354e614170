//! ContainerConstraints: a container's limits.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json::is_zero;

/// New limits for a running container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConstraints {
    /// Windows' resources; Linux guests ignore them.
    pub windows: Map<String, Value>,
    /// OCI `linux.resources`, kept as they came.
    #[serde(skip_serializing_if = "is_zero")]
    pub linux: Option<Value>,
}
