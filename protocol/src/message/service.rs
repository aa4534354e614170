//! ModifyServiceSettings: a Windows guest's log forwarding.

use serde::{Deserialize, Serialize};

use crate::json::is_zero;

/// Configures, starts or stops a service of a Windows guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ModifyServiceSettings {
    /// `LogForwardService`, the only one.
    pub property_type: String,
    /// What to do.
    #[serde(skip_serializing_if = "is_zero")]
    pub settings: Option<LogForwardSettings>,
}

/// What the log forwarding service is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogForwardSettings {
    /// `ModifyServiceSettings`, `StartLogForwarding` or `StopLogForwarding`.
    #[serde(rename = "RPCType", skip_serializing_if = "is_zero")]
    pub rpc_type: String,
    /// Base64 of the providers' document, with `ModifyServiceSettings` only.
    #[serde(skip_serializing_if = "is_zero")]
    pub settings: String,
}
