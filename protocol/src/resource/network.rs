//! Network: an adapter of a network namespace.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::is_zero;

/// An adapter. The last three fields belong to Windows guests, the others to Linux ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// Compared without regard to case.
    #[serde(rename = "NamespaceID", skip_serializing_if = "is_zero")]
    pub namespace_id: String,
    /// The adapter's VMBus instance; compared without regard to case.
    #[serde(rename = "ID", skip_serializing_if = "is_zero")]
    pub id: String,
    /// For information.
    #[serde(skip_serializing_if = "is_zero")]
    pub mac_address: String,
    /// Search domains, parted by commas.
    #[serde(rename = "DNSSuffix", skip_serializing_if = "is_zero")]
    pub dns_suffix: String,
    /// Servers, parted by commas.
    #[serde(rename = "DNSServerList", skip_serializing_if = "is_zero")]
    pub dns_server_list: String,
    /// Bytes to take off the MTU.
    #[serde(skip_serializing_if = "is_zero")]
    pub encap_overhead: u16,
    /// Find the adapter through PCI.
    #[serde(rename = "VPCIAssigned", skip_serializing_if = "is_zero")]
    pub vpci_assigned: bool,
    /// Addresses; none means DHCP.
    #[serde(rename = "IPConfigs", skip_serializing_if = "is_zero")]
    pub ip_configs: Vec<IpConfig>,
    /// Routes.
    #[serde(skip_serializing_if = "is_zero")]
    pub routes: Vec<Route>,
    /// Let the guest decide on [`enable_low_metric`](Self::enable_low_metric).
    #[serde(skip_serializing_if = "is_zero")]
    pub policy_based_routing: bool,
    /// Route by source address, in a table of its own.
    #[serde(skip_serializing_if = "is_zero")]
    pub enable_low_metric: bool,
    /// Windows: the adapter. Hosts before Windows Server 2019 call it `AdapterInstanceId`.
    #[serde(alias = "AdapterInstanceId", skip_serializing_if = "is_zero")]
    pub adapter_id: String,
    /// Windows: `PreAdd`, `Add` or `Remove`, inside the outer request.
    #[serde(skip_serializing_if = "is_zero")]
    pub request_type: String,
    /// Windows: an HCN endpoint.
    #[serde(skip_serializing_if = "is_zero")]
    pub settings: Option<Value>,
}

/// The VMBus instance under which Linkspan's guest presents the virtio adapter with a MAC address, if
/// its image is for an agent that looks for VMBus instances: six bytes in hexadecimal, parted by
/// colons or dashes.
///
/// ```
/// use linkspan_protocol::resource::instance_of;
///
/// let instance = instance_of("02:4C:53:00:00:01");
/// assert_eq!(instance.as_deref(), Some("6c696e6b-7370-616e-0000-024c53000001"));
/// ```
pub fn instance_of(mac_address: &str) -> Option<String> {
    let parts: Vec<&str> = mac_address.split([':', '-']).collect();
    let hex = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_address = parts.len() == 6 && parts.iter().all(hex) && parts != ["00"; 6];
    is_address.then(|| format!("6c696e6b-7370-616e-0000-{}", parts.concat().to_ascii_lowercase()))
}

/// An address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpConfig {
    /// v4 or v6.
    #[serde(rename = "IPAddress", skip_serializing_if = "is_zero")]
    pub ip_address: String,
    /// In bits.
    #[serde(skip_serializing_if = "is_zero")]
    pub prefix_length: u8,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Route {
    /// Gateway.
    #[serde(skip_serializing_if = "is_zero")]
    pub next_hop: String,
    /// Destination, as `address/bits`.
    #[serde(skip_serializing_if = "is_zero")]
    pub destination_prefix: String,
    /// 0 for the kernel's choice.
    #[serde(skip_serializing_if = "is_zero")]
    pub metric: u16,
}
