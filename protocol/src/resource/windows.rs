//! What only Windows guests have.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json::is_zero;
use crate::message::SchemaVersion;

/// The utility VM's socket addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HvSocket {
    /// The VM's runtime id.
    #[serde(skip_serializing_if = "is_zero")]
    pub local_address: String,
    /// `894cc2d6-9d79-424f-93fe-42969ae6d8d1`.
    #[serde(skip_serializing_if = "is_zero")]
    pub parent_address: String,
}

/// An HCN namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkNamespace {
    /// GUID.
    #[serde(rename = "ID", skip_serializing_if = "is_zero")]
    pub id: String,
    /// Number.
    #[serde(skip_serializing_if = "is_zero")]
    pub namespace_id: u32,
    /// `Host`, `HostDefault`, `Guest` or `GuestDefault`.
    #[serde(rename = "Type", skip_serializing_if = "is_zero")]
    pub kind: String,
    /// What is in it.
    #[serde(skip_serializing_if = "is_zero")]
    pub resources: Vec<NetworkNamespaceResource>,
    /// Of this document.
    #[serde(skip_serializing_if = "is_zero")]
    pub schema_version: SchemaVersion,
}

/// Something in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkNamespaceResource {
    /// `Container` or `Endpoint`.
    #[serde(rename = "Type", skip_serializing_if = "is_zero")]
    pub kind: String,
    /// Its own document.
    #[serde(skip_serializing_if = "is_zero")]
    pub data: Map<String, Value>,
}
