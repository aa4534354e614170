//! Confidential VMs: the policy and what it measures.

use serde::{Deserialize, Serialize};

use super::CombinedLayers;
use crate::json::is_zero;

/// What the guest is to allow; accepted once a boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SecurityPolicy {
    /// `rego`, `standard`, `open_door`, or empty.
    #[serde(skip_serializing_if = "is_zero")]
    pub enforcer_type: String,
    /// Base64 of the document.
    #[serde(skip_serializing_if = "is_zero")]
    pub encoded_security_policy: String,
    /// Base64 of a COSE file.
    #[serde(rename = "EncodedUVMReference", skip_serializing_if = "is_zero")]
    pub encoded_uvm_reference: String,
    /// Base64 of a COSE file.
    #[serde(rename = "EncodedUVMHashEnvelopeReference", skip_serializing_if = "is_zero")]
    pub encoded_uvm_hash_envelope_reference: String,
}

/// A signed addition to the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SecurityPolicyFragment {
    /// Base64 of a COSE_Sign1 document.
    #[serde(skip_serializing_if = "is_zero")]
    pub fragment: String,
    /// Empty: `application/cose-x509+rego`.
    #[serde(skip_serializing_if = "is_zero")]
    pub media_type: String,
}

/// Block CIM layers, verified and mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WcowBlockCims {
    /// The merged one first, then the layers from the top.
    #[serde(rename = "BlockCIMs", skip_serializing_if = "is_zero")]
    pub block_cims: Vec<BlockCim>,
    /// The volume to mount at.
    #[serde(rename = "VolumeGUID")]
    pub volume_guid: String,
    /// 16 from hosts.
    #[serde(skip_serializing_if = "is_zero")]
    pub mount_flags: u32,
    /// Whose.
    #[serde(rename = "ContainerID", skip_serializing_if = "is_zero")]
    pub container_id: String,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BlockCim {
    /// File name.
    pub cim_name: String,
    /// Logical unit.
    pub lun: i32,
}

/// A confidential Windows container's root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConfidentialCombinedLayers {
    /// Whose. (The capitals are the wire's.)
    #[serde(rename = "ContainerID", skip_serializing_if = "is_zero")]
    pub container_id: String,
    /// The root.
    pub combined_layers: CombinedLayers,
}
