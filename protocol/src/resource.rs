//! What ModifySettings can change: one line per resource type.
//!
//! A new type is one struct in a file below `resource/` and one line in the table; the compiler
//! then points at the guest's dispatch.

mod combined_layers;
mod confidential;
mod container_constraints;
mod device;
mod mapped_directory;
mod mapped_virtual_disk;
mod network;
mod windows;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

pub use combined_layers::{CombinedLayers, Layer};
pub use confidential::{
    BlockCim, ConfidentialCombinedLayers, SecurityPolicy, SecurityPolicyFragment, WcowBlockCims,
};
pub use container_constraints::ContainerConstraints;
pub use device::{ScsiDevice, VpciDevice, VpmemDevice, VpmemMapping};
pub use mapped_directory::MappedDirectory;
pub use mapped_virtual_disk::{MappedVirtualDisk, VerityInfo};
pub use network::{IpConfig, Network, Route, instance_of};
pub use windows::{HvSocket, NetworkNamespace, NetworkNamespaceResource};

use crate::DecodeError;
use crate::json;

/// What to do with a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ModifyType {
    /// Make it available. What a Linux guest assumes where nothing is said.
    Add,
    /// Take it away.
    Remove,
    /// Change it.
    Update,
    /// Announce it (Windows network adapters).
    PreAdd,
    /// A word that is not known here.
    Other(String),
}

impl From<String> for ModifyType {
    fn from(text: String) -> Self {
        match text.as_str() {
            "Add" | "" => Self::Add,
            "Remove" => Self::Remove,
            "Update" => Self::Update,
            "PreAdd" => Self::PreAdd,
            _ => Self::Other(text),
        }
    }
}

impl From<ModifyType> for String {
    fn from(modify: ModifyType) -> Self {
        modify.as_str().to_owned()
    }
}

impl ModifyType {
    /// The wire's word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Add => "Add",
            Self::Remove => "Remove",
            Self::Update => "Update",
            Self::PreAdd => "PreAdd",
            Self::Other(text) => text,
        }
    }
}

/// Why a resource could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// Nobody knows the type.
    #[error("ResourceType {name:?} is not known")]
    UnknownType {
        /// As it came.
        name: String,
    },
    /// There are no settings.
    #[error("Settings of {name} are missing")]
    NoSettings {
        /// The resource type.
        name: &'static str,
    },
    /// The settings are not of the type's shape.
    #[error("Settings of {name}: {reason}")]
    Settings {
        /// The resource type.
        name: &'static str,
        /// Which field, and why.
        reason: String,
    },
}

impl ResourceError {
    /// The resource type it is about.
    pub fn resource_type(&self) -> &str {
        match self {
            Self::UnknownType { name } => name,
            Self::NoSettings { name } | Self::Settings { name, .. } => name,
        }
    }
}

macro_rules! resources {
    ($($(#[$doc:meta])* $name:ident($settings:ty) = $text:literal,)*) => {
        /// A resource with its settings.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Resource {
            $($(#[$doc])* $name($settings),)*
            /// The memory limit that all pods share: the guest is to compute it anew. It has no
            /// settings.
            PodCgroupMemoryLimit,
        }

        impl Resource {
            /// The wire's name of the type.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => $text,)*
                    Self::PodCgroupMemoryLimit => "PodCgroupMemoryLimit",
                }
            }

            /// Reads the settings of the type called `name`.
            ///
            /// # Errors
            /// [`ResourceError`] says what is not as it should be.
            pub fn read(name: &str, settings: Option<&Value>) -> Result<Self, ResourceError> {
                match name {
                    $($text => settings_of($text, settings).map(Self::$name),)*
                    "PodCgroupMemoryLimit" => Ok(Self::PodCgroupMemoryLimit),
                    _ => Err(ResourceError::UnknownType { name: name.to_owned() }),
                }
            }
        }

        impl Serialize for Resource {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$name(settings) => settings.serialize(serializer),)*
                    Self::PodCgroupMemoryLimit => serializer.serialize_unit(),
                }
            }
        }

        $(impl From<$settings> for Resource {
            fn from(settings: $settings) -> Self {
                Self::$name(settings)
            }
        })*
    };
}

resources! {
    /// A disk, mounted or linked at a guest path.
    MappedVirtualDisk(MappedVirtualDisk) = "MappedVirtualDisk",
    /// A disk before its removal from the VM.
    ScsiDevice(ScsiDevice) = "SCSIDevice",
    /// A directory of the host.
    MappedDirectory(MappedDirectory) = "MappedDirectory",
    /// A persistent-memory device.
    VpmemDevice(VpmemDevice) = "VPMemDevice",
    /// A container's root: layers below a scratch directory.
    CombinedLayers(CombinedLayers) = "CombinedLayers",
    /// A network adapter of a namespace.
    Network(Network) = "Network",
    /// An HCN namespace (Windows).
    NetworkNamespace(NetworkNamespace) = "NetworkNamespace",
    /// A PCI device.
    VpciDevice(VpciDevice) = "VPCIDevice",
    /// A running container's limits.
    ContainerConstraints(ContainerConstraints) = "ContainerConstraints",
    /// The utility VM's socket addresses (Windows).
    HvSocket(HvSocket) = "HvSocket",
    /// What the guest is to allow.
    SecurityPolicy(SecurityPolicy) = "SecurityPolicy",
    /// A signed addition to it.
    SecurityPolicyFragment(SecurityPolicyFragment) = "SecurityPolicyFragment",
    /// Block CIM layers (confidential Windows).
    WcowBlockCims(WcowBlockCims) = "WCOWBlockCims",
    /// A scratch disk that is formatted before it is mapped (confidential Windows).
    ScratchDisk(ScratchDisk) = "MappedVirtualDiskForContainerScratch",
    /// A container's root (confidential Windows).
    ConfidentialCombinedLayers(ConfidentialCombinedLayers) = "CWCOWCombinedLayers",
}

/// The settings of [`Resource::ScratchDisk`]: those of a mapped disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScratchDisk(pub MappedVirtualDisk);

impl Resource {
    /// Whether the wire carries settings for it.
    pub fn has_settings(&self) -> bool {
        !matches!(self, Self::PodCgroupMemoryLimit)
    }
}

fn settings_of<T: serde::de::DeserializeOwned>(
    name: &'static str,
    settings: Option<&Value>,
) -> Result<T, ResourceError> {
    let settings = settings.ok_or(ResourceError::NoSettings { name })?;
    json::read(settings)
        .map_err(|error: DecodeError| ResourceError::Settings { name, reason: error.to_string() })
}
