//! ModifySettings: one request that changes one [`Resource`].

use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::resource::{ModifyType, Resource, ResourceError};

/// Changes a resource of the utility VM or of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ModifySettings {
    /// What to change. `None` where the key is missing, which guests refuse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<ModifyRequest>,
}

impl ModifySettings {
    /// Does `modify` with `resource`.
    pub fn new(modify: ModifyType, resource: Resource) -> Self {
        let target = ModifyTarget::Resource(resource);
        Self { request: Some(ModifyRequest { modify: Some(modify), target }) }
    }
}

/// The inner object.
#[derive(Clone, Debug, PartialEq)]
pub struct ModifyRequest {
    /// A Linux guest takes none for Add.
    pub modify: Option<ModifyType>,
    /// What.
    pub target: ModifyTarget,
}

/// What a modification is about.
#[derive(Clone, Debug, PartialEq)]
pub enum ModifyTarget {
    /// A resource, typed.
    Resource(Resource),
    /// A resource that cannot be read; kept so that the answer can say why.
    Unreadable(ResourceError),
    /// An HCS path with settings: how a Windows container is updated.
    Path {
        /// Such as `Container/Memory/SizeInMB`.
        resource_path: String,
        /// The path's own document.
        settings: Option<Value>,
    },
    /// Settings without a resource type: how hosts remove a Windows guest's network adapter.
    Untyped(Value),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Raw {
    #[serde(default)]
    request_type: Option<ModifyType>,
    #[serde(default)]
    resource_type: Option<String>,
    #[serde(default)]
    resource_path: Option<String>,
    #[serde(default)]
    settings: Option<Value>,
}

impl<'de> Deserialize<'de> for ModifyRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Raw::deserialize(deserializer)?;
        let target = match (raw.resource_type, raw.resource_path, raw.settings) {
            (Some(name), _, settings) if !name.is_empty() => {
                match Resource::read(&name, settings.as_ref()) {
                    Ok(resource) => ModifyTarget::Resource(resource),
                    Err(error @ ResourceError::UnknownType { .. }) => {
                        ModifyTarget::Unreadable(error)
                    }
                    Err(error) => return Err(D::Error::custom(error)),
                }
            }
            (_, Some(resource_path), settings) => ModifyTarget::Path { resource_path, settings },
            (_, None, Some(settings)) => ModifyTarget::Untyped(settings),
            (name, None, None) => ModifyTarget::Unreadable(ResourceError::UnknownType {
                name: name.unwrap_or_default(),
            }),
        };
        Ok(Self { modify: raw.request_type, target })
    }
}

impl Serialize for ModifyRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let ModifyTarget::Path { resource_path, .. } = &self.target {
            map.serialize_entry("ResourcePath", resource_path)?;
        }
        if let Some(modify) = &self.modify {
            map.serialize_entry("RequestType", modify)?;
        }
        match &self.target {
            ModifyTarget::Resource(resource) => {
                map.serialize_entry("ResourceType", resource.name())?;
                if resource.has_settings() {
                    map.serialize_entry("Settings", resource)?;
                }
            }
            ModifyTarget::Unreadable(error) => {
                map.serialize_entry("ResourceType", error.resource_type())?;
            }
            ModifyTarget::Path { settings: Some(settings), .. }
            | ModifyTarget::Untyped(settings) => {
                map.serialize_entry("Settings", settings)?;
            }
            ModifyTarget::Path { settings: None, .. } => {}
        }
        map.end()
    }
}
