//! Create: the documents that describe a compute system.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::JsonString;
use crate::json::is_zero;

/// Makes a container; for a Windows guest also the utility VM itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Create {
    /// Which document this holds follows from the guest: [`HostedContainer`] for a Linux
    /// container, [`HostedSystem`] for a Windows one, [`ConfidentialHostedSystem`] for one in a
    /// confidential utility VM, [`UvmDocument`] for a Windows utility VM itself. Kept as it came,
    /// for a document must not lose what this crate has no field for.
    pub container_config: JsonString<Value>,
    /// A legacy host's range of versions; guests ignore it.
    #[serde(skip_serializing_if = "is_zero")]
    pub supported_versions: Option<SupportedVersions>,
}

impl Default for Create {
    fn default() -> Self {
        let container_config = JsonString(Value::Object(serde_json::Map::new()));
        Self { container_config, supported_versions: None }
    }
}

impl Create {
    /// A request from one of the three documents.
    ///
    /// # Errors
    /// If the document cannot be written as JSON.
    pub fn new(document: &impl Serialize) -> Result<Self, serde_json::Error> {
        let container_config = JsonString(serde_json::to_value(document)?);
        Ok(Self { container_config, supported_versions: None })
    }

    /// The document as a Linux container's.
    ///
    /// # Errors
    /// Names the field that is not as it should be.
    pub fn hosted_container(&self) -> Result<HostedContainer, crate::DecodeError> {
        crate::json::read(&self.container_config.0)
    }
}

/// What Create answers; hosts look at neither.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateResponse {
    /// Never set.
    #[serde(skip_serializing_if = "is_zero")]
    pub selected_version: String,
    /// Always 0.
    pub selected_protocol_version: u32,
}

/// A legacy range of versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SupportedVersions {
    /// Schema.
    #[serde(skip_serializing_if = "is_zero")]
    pub minimum_version: String,
    /// Schema.
    #[serde(skip_serializing_if = "is_zero")]
    pub maximum_version: String,
    /// Protocol.
    pub minimum_protocol_version: u32,
    /// Protocol.
    pub maximum_protocol_version: u32,
}

/// The version of a document; ordered by `major`, then `minor`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "PascalCase", default)]
pub struct SchemaVersion {
    /// 2.
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u32,
    /// 1 or more.
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u32,
}

impl SchemaVersion {
    /// The oldest that guests accept for a container.
    pub const MINIMUM: Self = Self { major: 2, minor: 1 };
}

/// A Linux container's document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostedContainer {
    /// At least [`SchemaVersion::MINIMUM`].
    pub schema_version: SchemaVersion,
    /// The bundle's directory in the guest.
    #[serde(skip_serializing_if = "is_zero")]
    pub oci_bundle_path: String,
    /// An OCI runtime-spec document, kept as it came.
    #[serde(skip_serializing_if = "is_zero")]
    pub oci_specification: Option<Value>,
    /// The container's directory on the scratch disk; removed with the container.
    pub scratch_dir_path: String,
}

/// A Windows container's document; the inner objects are HCS schema 2.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostedSystem {
    /// 2.1.
    pub schema_version: SchemaVersion,
    /// The container.
    #[serde(skip_serializing_if = "is_zero")]
    pub container: Option<WindowsContainer>,
}

/// A Windows container in a confidential utility VM: what the guest checks against its policy, and
/// what it then makes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConfidentialHostedSystem {
    /// An OCI runtime spec; its `ociVersion` must not be empty.
    pub spec: Value,
    /// Its `Container` must be there.
    #[serde(rename = "CWCOWHostedSystem")]
    pub hosted_system: HostedSystem,
}

/// What a Windows container consists of; each value is the HCS schema's object of that name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are the HCS schema's own and say all there is")]
pub struct WindowsContainer {
    #[serde(skip_serializing_if = "is_zero")]
    pub guest_os: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub storage: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub mapped_directories: Vec<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub mapped_pipes: Vec<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub memory: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub processor: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub networking: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub hv_socket: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub container_credential_guard: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub registry_changes: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub assigned_devices: Vec<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub additional_device_namespace: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub isolation_type: String,
}

/// The document of a Windows utility VM, sent to it once after negotiation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UvmDocument {
    /// `Container`.
    pub system_type: String,
    /// The host's, or UTC; `null` where none is given.
    pub time_zone_information: Option<TimeZoneInformation>,
}

/// A Windows time zone. Biases are in minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "as in the Windows structure of this name")]
pub struct TimeZoneInformation {
    #[serde(skip_serializing_if = "is_zero")]
    pub bias: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub standard_name: String,
    pub standard_date: SystemTime,
    #[serde(skip_serializing_if = "is_zero")]
    pub standard_bias: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub daylight_name: String,
    pub daylight_date: SystemTime,
    #[serde(skip_serializing_if = "is_zero")]
    pub daylight_bias: i32,
}

/// A Windows system time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "as in the Windows structure of this name")]
pub struct SystemTime {
    #[serde(skip_serializing_if = "is_zero")]
    pub year: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub month: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub day_of_week: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub day: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub hour: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub minute: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub second: i32,
    #[serde(skip_serializing_if = "is_zero")]
    pub milliseconds: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confidential_containers_document_has_both_of_its_parts() {
        let document = serde_json::json!({
            "Spec": { "ociVersion": "1.1.0" },
            "CWCOWHostedSystem": {
                "SchemaVersion": { "Major": 2, "Minor": 1 },
                "Container": { "GuestOs": { "HostName": "web" } },
            },
        });
        let read: ConfidentialHostedSystem = crate::json::read(&document).unwrap();
        assert_eq!(read.spec["ociVersion"], "1.1.0");
        assert!(read.hosted_system.container.is_some());
        assert_eq!(serde_json::to_value(&read).unwrap(), document);
    }
}
