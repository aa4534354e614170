//! NegotiateProtocol: which version, and what the guest can do.

use serde::{Deserialize, Serialize};

use super::SchemaVersion;
use crate::VERSION;
use crate::json::is_zero;

/// The range of versions that the host speaks. Goes to nobody ([`ContainerId::none`]).
///
/// [`ContainerId::none`]: super::ContainerId::none
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NegotiateProtocol {
    /// The oldest.
    pub minimum_version: u32,
    /// The newest.
    pub maximum_version: u32,
    /// Ours alone: the host is Linkspan's, and takes what only it knows (see
    /// [`NotificationType::LinkspanOomKill`](super::NotificationType)). Other guests pass over it.
    #[serde(skip_serializing_if = "is_zero")]
    pub linkspan: Option<LinkspanHost>,
}

/// Where Linkspan's host stands, so that a lost connection costs neither an answer nor a
/// notification, and doubles none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LinkspanHost {
    /// One number for all connections of a bridge. Another number is another host, to which answers
    /// to the one before mean nothing.
    pub session: u64,
    /// Requests that were written, in whole or in part, and not answered.
    pub pending: Vec<u64>,
    /// How many notifications have come.
    pub notified: u64,
}

/// What Linkspan's guest says to that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LinkspanGuest {
    /// Pending requests that have never come whole: they are to be written again.
    pub unknown: Vec<u64>,
}

impl NegotiateProtocol {
    /// A host that speaks one version.
    pub fn exactly(version: u32) -> Self {
        Self { minimum_version: version, maximum_version: version, linkspan: None }
    }
}

/// The version that the guest chose, and its capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NegotiateProtocolResponse {
    /// From now on, on this connection.
    pub version: u32,
    /// What the guest can do.
    pub capabilities: Capabilities,
    /// To a host that is Linkspan's.
    #[serde(skip_serializing_if = "is_zero")]
    pub linkspan: Option<LinkspanGuest>,
}

/// What a guest can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Capabilities {
    /// The host is to send a Create for the utility VM itself (Windows guests).
    #[serde(skip_serializing_if = "is_zero")]
    pub send_host_create_message: bool,
    /// And then a Start; counts only together with the former.
    #[serde(skip_serializing_if = "is_zero")]
    pub send_host_start_message: bool,
    /// Declared; hosts do not look at it.
    #[serde(skip_serializing_if = "is_zero")]
    pub hv_socket_config_on_startup: bool,
    /// Windows guests declare it; hosts do not look at it.
    #[serde(skip_serializing_if = "is_zero")]
    pub send_lifecycle_notifications: bool,
    /// Windows guests declare it; hosts do not look at it.
    #[serde(skip_serializing_if = "is_zero")]
    pub modify_service_settings_supported: bool,
    /// Versions of the container document.
    pub supported_schema_versions: Vec<SchemaVersion>,
    /// `Linux`, or `Windows` (which an empty string means as well).
    #[serde(skip_serializing_if = "is_zero")]
    pub runtime_os_type: String,
    /// Always there: hosts give up on a guest that leaves it out.
    pub guest_defined_capabilities: GuestDefinedCapabilities,
}

impl Capabilities {
    /// What an LCOW guest declares.
    pub fn linux() -> Self {
        Self {
            supported_schema_versions: vec![SchemaVersion { major: 2, minor: 1 }],
            runtime_os_type: "Linux".to_owned(),
            guest_defined_capabilities: GuestDefinedCapabilities {
                namespace_add_request_supported: true,
                signal_process_supported: true,
                dump_stacks_supported: true,
                delete_container_state_supported: true,
                ..GuestDefinedCapabilities::default()
            },
            ..Self::default()
        }
    }

    /// Whether the guest has to be talked to as a Windows guest. Every OS but Windows counts as
    /// Linux, and an unnamed one as Windows, as hosts do it.
    pub fn is_windows(&self) -> bool {
        self.runtime_os_type.is_empty() || self.runtime_os_type.eq_ignore_ascii_case("windows")
    }
}

/// Which optional requests the host may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GuestDefinedCapabilities {
    /// Network and NetworkNamespace resources.
    #[serde(skip_serializing_if = "is_zero")]
    pub namespace_add_request_supported: bool,
    /// Signals other than kill.
    #[serde(skip_serializing_if = "is_zero")]
    pub signal_process_supported: bool,
    /// DumpStacks.
    #[serde(skip_serializing_if = "is_zero")]
    pub dump_stacks_supported: bool,
    /// DeleteContainerState.
    #[serde(skip_serializing_if = "is_zero")]
    pub delete_container_state_supported: bool,
    /// UpdateContainer; unused.
    #[serde(skip_serializing_if = "is_zero")]
    pub update_container_supported: bool,
    /// ModifyServiceSettings for logs (Windows).
    #[serde(skip_serializing_if = "is_zero")]
    pub log_forwarding_supported: bool,
    /// Host process containers (Windows).
    #[serde(skip_serializing_if = "is_zero")]
    pub host_process_container_supported: bool,
    /// Ours alone: how often the agent has been started again since the boot. Containers and
    /// processes from before are gone. Other hosts do not know the key and pass over it.
    #[serde(skip_serializing_if = "is_zero")]
    pub linkspan_restarts: u32,
    /// Ours alone: the guest knows [`LinkspanStdio`](super::LinkspanStdio).
    #[serde(skip_serializing_if = "is_zero")]
    pub linkspan_stdio: bool,
}

impl NegotiateProtocol {
    /// Whether [`VERSION`] lies in the range.
    pub fn includes_ours(&self) -> bool {
        (self.minimum_version..=self.maximum_version).contains(&VERSION)
    }
}
