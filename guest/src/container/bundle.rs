//! The bundle: the host's OCI spec, made fit for this machine, on disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Context;
use crate::guest_path::GuestPath;
use crate::{Error, Result};

/// What `io.kubernetes.cri.container-type` says.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// A spec that has all that the agent relies on.
pub(super) struct Bundle {
    pub(super) directory: GuestPath,
    pub(super) spec: Value,
    /// `root.path`.
    pub(super) root: PathBuf,
    pub(super) terminal: bool,
    /// Whether the kernel ends all of it together with its init.
    pub(super) owns_pid_namespace: bool,
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
        if spec.pointer("/linux/seccomp").is_some_and(|seccomp| !seccomp.is_null()) {
            return Err(Error::NotSupported("linux.seccomp".to_owned()));
        }
        match spec["annotations"][CONTAINER_TYPE].as_str() {
            None => {}
            Some(kind @ ("sandbox" | "container")) => {
                return Err(Error::NotSupported(format!("{CONTAINER_TYPE} {kind:?}")));
            }
            Some(other) => {
                let reason = format!("{other:?} is not a kind of container");
                return Err(Error::Argument { field: CONTAINER_TYPE, reason });
            }
        }
        let terminal = spec["process"]["terminal"].as_bool().unwrap_or_default();
        let owns_pid_namespace = spec["linux"]["namespaces"].as_array().is_some_and(|all| {
            all.iter()
                .any(|one| one["type"] == "pid" && one["path"].as_str().is_none_or(str::is_empty))
        });
        Ok(Self { directory, spec, root, terminal, owns_pid_namespace })
    }

    /// Puts the container below `cgroup` and takes out what has no meaning here.
    pub(super) fn adapt(&mut self, cgroup: &Path) {
        self.spec["linux"]["cgroupsPath"] = json!(cgroup);
        if let Value::Object(spec) = &mut self.spec {
            spec.remove("windows");
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

    /// Gives the container its name files, where the spec does not bring its own.
    pub(super) fn add_name_files(&mut self) -> Result<()> {
        let hostname = match self.spec["hostname"].as_str() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => nix::unistd::gethostname()
                .context(|| "read the host name".to_owned())?
                .to_string_lossy()
                .into_owned(),
        };
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if hostname.len() > 255 || !hostname.bytes().all(valid) {
            let reason = format!("{hostname:?} is no host name");
            return Err(Error::Argument { field: "hostname", reason });
        }
        let read_only = self.spec["root"]["readonly"].as_bool().unwrap_or_default();
        let directory = self.directory.clone();
        if !self.spec["mounts"].is_array() {
            self.spec["mounts"] = json!([]);
        }
        let Some(mounts) = self.spec["mounts"].as_array_mut() else { return Ok(()) };
        for (name, contents) in [
            ("hostname", format!("{hostname}\n")),
            ("hosts", hosts(&hostname)),
            ("resolv.conf", String::new()),
        ] {
            let destination = format!("/etc/{name}");
            if mounts.iter().any(|mount| mount["destination"] == destination.as_str()) {
                continue;
            }
            let source = directory.join(name);
            fs::write(&source, contents).context(|| format!("write {}", source.display()))?;
            let options = if read_only { json!(["bind", "ro"]) } else { json!(["bind"]) };
            mounts.push(json!({
                "destination": destination, "type": "bind", "source": source, "options": options,
            }));
        }
        Ok(())
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

fn hosts(hostname: &str) -> String {
    let names = match hostname.split_once('.') {
        Some((label, _)) => format!("{hostname} {label}"),
        None => hostname.to_owned(),
    };
    format!(
        "127.0.0.1 localhost\n127.0.0.1 {names}\n\n\
         # The following lines are desirable for IPv6 capable hosts\n\
         ::1     ip6-localhost ip6-loopback\nfe00::0 ip6-localnet\nff00::0 ip6-mcastprefix\n\
         ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
    )
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
        assert!(Bundle::new("/run/c", Some(document.clone())).unwrap().owns_pid_namespace);
        document["linux"]["namespaces"] = json!([{"type": "pid", "path": "/proc/1/ns/pid"}]);
        assert!(!Bundle::new("/run/c", Some(document)).unwrap().owns_pid_namespace);
    }
}
