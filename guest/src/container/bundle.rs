//! The bundle: the host's OCI spec, made fit for this machine, on disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Context;
use crate::guest_path::GuestPath;
use crate::{Error, Result};

/// A spec that has all that the agent relies on.
pub(super) struct Bundle {
    pub(super) directory: GuestPath,
    pub(super) spec: Value,
    /// `root.path`.
    pub(super) root: PathBuf,
    pub(super) terminal: bool,
}

impl Bundle {
    pub(super) fn new(directory: &str, spec: Option<Value>) -> Result<Self> {
        let directory = GuestPath::parse("OciBundlePath", directory)?;
        let spec = spec.ok_or_else(|| missing("OciSpecification"))?;
        for (pointer, field) in [
            ("/process", "OciSpecification.process"),
            ("/root", "OciSpecification.root"),
            ("/linux", "OciSpecification.linux"),
        ] {
            if !spec.pointer(pointer).is_some_and(Value::is_object) {
                return Err(missing(field));
            }
        }
        let root = spec["root"]["path"].as_str().ok_or_else(|| missing("root.path"))?;
        let root = match root.starts_with('/') {
            true => GuestPath::parse("root.path", root)?.as_path().to_owned(),
            false => {
                GuestPath::parse("root.path", &format!("{directory}/{root}"))?.as_path().into()
            }
        };
        let terminal = spec["process"]["terminal"].as_bool().unwrap_or_default();
        Ok(Self { directory, spec, root, terminal })
    }

    /// Whether the kernel ends all of it together with its init.
    pub(super) fn owns_pid_namespace(&self) -> bool {
        self.owns_namespace("pid")
    }

    /// Whether it has a network that nobody has set up.
    pub(super) fn owns_network_namespace(&self) -> bool {
        self.owns_namespace("network")
    }

    fn owns_namespace(&self, kind: &str) -> bool {
        self.spec["linux"]["namespaces"].as_array().is_some_and(|all| {
            all.iter()
                .any(|one| one["type"] == kind && one["path"].as_str().is_none_or(str::is_empty))
        })
    }

    /// Puts the container below `cgroup` and takes out what has no meaning here.
    pub(super) fn adapt(&mut self, cgroup: &Path) {
        self.spec["linux"]["cgroupsPath"] = json!(cgroup);
        if let Value::Object(spec) = &mut self.spec {
            spec.remove("windows");
        }
        // Version 1 begins with leave for everything, which the runtime does not take back.
        if !crate::cgroup::is_unified() {
            let refusal = json!({"allow": false, "type": "a", "access": "rwm"});
            list(&mut self.spec, "/linux/resources/devices").insert(0, refusal);
        }
        // The runtime mounts version 1 hierarchies writable, whatever the options say.
        if !crate::cgroup::is_unified()
            && let Some(mounts) = self.spec["mounts"].as_array_mut()
        {
            let asks_read_only = |mount: &Value| {
                let options = mount["options"].as_array();
                options.is_some_and(|options| options.iter().any(|option| option == "ro"))
            };
            mounts.retain(|mount| mount["type"] != "cgroup" || !asks_read_only(mount));
        }
    }

    pub(super) fn write(&self) -> Result<()> {
        let path = self.directory.join("config.json");
        let text = serde_json::to_vec(&self.spec).map_err(std::io::Error::from);
        let written = text.and_then(|text| fs::write(&path, text));
        written.context(|| format!("write {}", path.display()))
    }
}

fn missing(field: &'static str) -> Error {
    Error::Document { field, reason: "is missing".to_owned() }
}

/// The list at `pointer`. It is made, with the objects around it, where something else is.
pub(super) fn list<'a>(spec: &'a mut Value, pointer: &str) -> &'a mut Vec<Value> {
    let mut place = spec;
    for key in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[key];
    }
    if !place.is_array() {
        *place = json!([]);
    }
    match place {
        Value::Array(list) => list,
        _ => unreachable!("was just made a list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({"process": {}, "linux": {}, "root": {"path": "rootfs"}})
    }

    #[test]
    fn a_spec_without_what_the_agent_needs_is_refused_by_name() {
        for field in ["process", "linux", "root"] {
            let mut spec = spec();
            spec[field] = Value::Null;
            let error = Bundle::new("/run/c", Some(spec)).err().unwrap();
            assert!(error.to_string().contains(field), "{error}");
        }
        assert!(Bundle::new("/run/c", None).is_err());
        assert!(Bundle::new("../c", Some(spec())).is_err());
        let mut escaping = spec();
        escaping["root"]["path"] = json!("../../etc");
        assert!(Bundle::new("/run/c", Some(escaping)).is_err());
        assert_eq!(Bundle::new("/run/c", Some(spec())).unwrap().root, Path::new("/run/c/rootfs"));
    }

    #[test]
    fn a_pid_namespace_with_a_path_is_somebody_elses() {
        let mut document = spec();
        document["linux"]["namespaces"] = json!([{"type": "pid"}]);
        assert!(Bundle::new("/run/c", Some(document.clone())).unwrap().owns_pid_namespace());
        document["linux"]["namespaces"] = json!([{"type": "pid", "path": "/proc/1/ns/pid"}]);
        assert!(!Bundle::new("/run/c", Some(document)).unwrap().owns_pid_namespace());
    }

    #[test]
    fn a_list_is_made_where_none_is() {
        let mut document = json!({"linux": null, "mounts": [1]});
        assert_eq!(list(&mut document, "/mounts").len(), 1);
        list(&mut document, "/linux/resources/devices").push(json!(2));
        assert_eq!(document["linux"], json!({"resources": {"devices": [2]}}));
    }
}
