//! The JSON documents of images, as far as they are used. OCI's and docker's differ in their media
//! types alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::{Digest, Platform};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Where an index notes the name of an image.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Where containerd and docker note the full one.
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";
/// Longest document in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// Names a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Self { media_type, digest, size, platform: None, annotations: BTreeMap::new() }
    }
}

/// A list of images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    /// The lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// What an image says about its process and its layers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<ProcessDefaults>,
    pub(crate) rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    /// Hashes of the uncompressed layers, the lowest first.
    #[serde(default)]
    pub(crate) diff_ids: Vec<Digest>,
}

/// What an image says about the process that is run from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[non_exhaustive]
pub struct ProcessDefaults {
    /// `user`, `uid`, `user:group` and so on; empty for root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `NAME=VALUE` each.
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// Comes before the command, whoever gives that.
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, unless another is given.
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// Where it starts; empty for `/`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Name or number of the signal that ends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
}

/// Docker writes null for no list.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

impl ProcessDefaults {
    /// The command line: the entrypoint, unless another takes its place, and `command`, or the
    /// image's own where that is empty. As with docker, another entrypoint comes without the image's
    /// command.
    #[must_use]
    pub fn arguments(&self, entrypoint: Option<&str>, command: &[String]) -> Vec<String> {
        let mut arguments = match entrypoint {
            Some("") => Vec::new(),
            Some(program) => vec![program.to_owned()],
            None => self.entrypoint.clone(),
        };
        match (command.is_empty(), entrypoint) {
            (true, None) => arguments.extend_from_slice(&self.cmd),
            (true, Some(_)) => {}
            (false, _) => arguments.extend_from_slice(command),
        }
        arguments
    }

    /// The environment as pairs; what has no `=` is left out.
    pub fn environment(&self) -> impl Iterator<Item = (String, String)> {
        let pairs = self.env.iter().filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned()))
    }
}

/// Either kind of document that a name can stand for.
pub(crate) enum Top {
    Index(Index),
    Manifest(Manifest),
}

pub(crate) fn parse<T: for<'de> Deserialize<'de>>(what: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::document(what, error.to_string()))
}

/// Tells them apart by what they hold, for media types are often wrong or missing.
pub(crate) fn parse_top(what: &str, bytes: &[u8]) -> Result<Top> {
    let value: serde_json::Value = parse(what, bytes)?;
    let kind = |field| value.get(field).is_some_and(serde_json::Value::is_array);
    if kind("manifests") {
        return Ok(Top::Index(parse(what, bytes)?));
    }
    if kind("layers") {
        return Ok(Top::Manifest(parse(what, bytes)?));
    }
    let reason = match value.get("schemaVersion").and_then(serde_json::Value::as_u64) {
        Some(1) => "schemaVersion 1 is of a form that has been given up; push it anew".to_owned(),
        _ => "it has neither manifests nor layers".to_owned(),
    };
    Err(Error::document(what, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn entrypoint_and_command_combine_as_docker_has_it() {
        let image = ProcessDefaults {
            entrypoint: words("/entry --flag"),
            cmd: words("serve"),
            ..ProcessDefaults::default()
        };
        assert_eq!(image.arguments(None, &[]), words("/entry --flag serve"));
        assert_eq!(image.arguments(None, &words("x y")), words("/entry --flag x y"));
        assert_eq!(image.arguments(Some("sh"), &[]), words("sh"));
        assert_eq!(image.arguments(Some("sh"), &words("-c x")), words("sh -c x"));
        assert_eq!(image.arguments(Some(""), &words("ls")), words("ls"));
    }

    #[test]
    fn nulls_of_docker_are_empty_lists() {
        let text = r#"{"Env":null,"Cmd":null,"Entrypoint":["a"],"Healthcheck":{}}"#;
        let found: ProcessDefaults = parse("test", text.as_bytes()).unwrap();
        assert_eq!((found.entrypoint, found.cmd), (words("a"), Vec::new()));
    }

    #[test]
    fn documents_that_are_neither_are_refused() {
        assert!(parse_top("x", br#"{"schemaVersion":1,"fsLayers":[]}"#).is_err());
        assert!(parse_top("x", b"[]").is_err());
        assert!(parse_top("x", br#"{"layers":[],"config":{"digest":"md5:1","size":1}}"#).is_err());
    }
}
