//! A host's OCI document as the guest is to have it.
//!
//! | of the host's                              | in the guest                                     |
//! |--------------------------------------------|--------------------------------------------------|
//! | paths of namespaces                        | none, but those of a pod's processes (`/proc/PID/ns/…`) |
//! | no network namespace (the host's network)  | the utility VM's own network                     |
//! | no host name                               | this host's                                      |
//! | hooks, AppArmor and SELinux labels         | none: they are this kernel's                     |
//! | limits on devices of this host, its processors and huge pages | none                          |
//! | cgroup path                                | the guest's choice                               |
//! | 0 as a period, or as a quota               | 100000, and none                                 |

use serde_json::{Map, Value, json};

use crate::bundle::SANDBOX_ID;
use crate::error::Error;

/// What a container is in its pod.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// For the guest: a sandbox may do without adapters.
const SKIP_NETWORK: &str = "io.microsoft.cri.skip-pod-networking";

/// For the guest: the utility VM's own network.
const HOST_NETWORK: &str = "io.microsoft.virtualmachine.lcow.hostnetwork";

/// What a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It has a utility VM to itself.
    Standalone,
    /// The first of a pod; its namespaces are the pod's.
    Sandbox,
    /// One of the others.
    Workload,
}

impl Kind {
    /// What a document says that its container is.
    pub(crate) fn of(spec: &Value) -> Result<Self, Error> {
        match spec["annotations"][CONTAINER_TYPE].as_str() {
            None => Ok(Self::Standalone),
            Some("sandbox") => Ok(Self::Sandbox),
            Some("container") => Ok(Self::Workload),
            Some(other) => {
                let reason = format!("{other:?} is neither sandbox nor container");
                Err(Error::input(CONTAINER_TYPE, reason))
            }
        }
    }
}

/// Changes the document to what it is to be in the guest; its mounts are seen to elsewhere.
pub(crate) fn adapt(spec: &mut Value, kind: Kind) -> Result<(), Error> {
    let Some(document) = spec.as_object_mut() else {
        return Err(Error::input("config.json", "is no JSON object"));
    };
    document.remove("hooks");
    document.remove("windows");
    match kind {
        Kind::Workload => drop(document.remove("hostname")),
        // Without a name of its own a container has this host's.
        _ if document.get("hostname").and_then(Value::as_str).is_none_or(str::is_empty) => {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            document.insert("hostname".to_owned(), json!(name));
        }
        _ => {}
    }
    if let Some(process) = document.get_mut("process").and_then(Value::as_object_mut) {
        adapt_process(process);
    }
    let linux = object(document, "linux");
    linux.remove("mountLabel");
    linux.remove("intelRdt");
    linux.insert("cgroupsPath".to_owned(), json!(""));
    let own_network = adapt_namespaces(linux, kind);
    if kind != Kind::Workload && !has_namespace(linux, "uts") {
        // The name that it shares with this host is not the utility VM's.
        let namespaces = linux.entry("namespaces").or_insert_with(|| json!([]));
        namespaces.as_array_mut().into_iter().for_each(|all| all.push(json!({"type": "uts"})));
    }
    if let Some(resources) = linux.get_mut("resources").and_then(Value::as_object_mut) {
        adapt_resources(resources);
    }
    let annotations = object(document, "annotations");
    if kind == Kind::Sandbox {
        annotations.entry(SKIP_NETWORK).or_insert(json!("true"));
        if !annotations.contains_key(SANDBOX_ID) {
            return Err(Error::input(SANDBOX_ID, "is missing from a sandbox's annotations"));
        }
    }
    if kind != Kind::Workload && !own_network {
        annotations.insert(HOST_NETWORK.to_owned(), json!("true"));
    }
    Ok(())
}

/// The document of a sandbox that has no image: it holds what a pod shares.
pub(crate) fn of_sandbox(id: &str) -> Value {
    let namespaces: Vec<Value> =
        ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({"type": kind})).to_vec();
    json!({
        "ociVersion": "1.1.0",
        "hostname": id.chars().take(12).collect::<String>(),
        "process": {
            "args": [crate::pause::PATH], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
        },
        "root": {"readonly": true},
        "annotations": {CONTAINER_TYPE: "sandbox", SANDBOX_ID: id},
        "linux": {"namespaces": namespaces},
    })
}

/// A process, an init's or another's.
pub(crate) fn adapt_process(process: &mut Map<String, Value>) {
    process.remove("apparmorProfile");
    process.remove("selinuxLabel");
}

/// Whether it has a network namespace.
fn adapt_namespaces(linux: &mut Map<String, Value>, kind: Kind) -> bool {
    let namespaces = linux.get_mut("namespaces").and_then(Value::as_array_mut);
    for namespace in namespaces.into_iter().flatten().filter_map(Value::as_object_mut) {
        // A process that containerd knows of is one of the guest's.
        let path = namespace.get("path").and_then(Value::as_str).unwrap_or_default();
        let of_network = namespace.get("type") == Some(&json!("network"));
        if kind != Kind::Workload || of_network || !path.starts_with("/proc/") {
            namespace.remove("path");
        }
    }
    has_namespace(linux, "network")
}

fn has_namespace(linux: &Map<String, Value>, kind: &str) -> bool {
    let namespaces = linux.get("namespaces").and_then(Value::as_array);
    namespaces.is_some_and(|all| all.iter().any(|namespace| namespace["type"] == kind))
}

/// Limits, at the creation or later.
pub(crate) fn adapt_resources(resources: &mut Map<String, Value>) {
    for of_host in ["blockIO", "hugepageLimits", "network", "rdma"] {
        resources.remove(of_host);
    }
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("cpus");
        cpu.remove("mems");
        for (field, none) in [("period", json!(100_000)), ("quota", json!(-1))] {
            if cpu.get(field) == Some(&json!(0)) {
                cpu.insert(field.to_owned(), none);
            }
        }
    }
}

fn object<'a>(parent: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("was made an object")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(kind: &str) -> Value {
        json!({
            "hostname": "h",
            "hooks": {"prestart": []},
            "process": {"args": ["x"], "apparmorProfile": "a", "selinuxLabel": "s"},
            "annotations": {CONTAINER_TYPE: kind, SANDBOX_ID: "pod"},
            "linux": {
                "cgroupsPath": "/k8s/x",
                "namespaces": [
                    {"type": "pid", "path": "/proc/7/ns/pid"},
                    {"type": "network", "path": "/run/netns/x"},
                    {"type": "mount"},
                ],
                "resources": {
                    "cpu": {"shares": 2, "period": 0, "quota": 0, "cpus": "0-31"},
                    "memory": {"limit": 1},
                    "blockIO": {},
                },
            },
        })
    }

    #[test]
    fn what_belongs_to_the_host_stays_there() {
        let mut spec = pod("sandbox");
        adapt(&mut spec, Kind::Sandbox).unwrap();
        assert_eq!(spec["process"], json!({"args": ["x"]}));
        assert!(spec.get("hooks").is_none());
        assert_eq!(spec["linux"]["cgroupsPath"], "");
        let kinds = ["pid", "network", "mount", "uts"];
        let namespaces = json!(kinds.map(|kind| json!({"type": kind})));
        assert_eq!(spec["linux"]["namespaces"], namespaces);
        let resources = json!({
            "cpu": {"shares": 2, "period": 100_000, "quota": -1}, "memory": {"limit": 1},
        });
        assert_eq!(spec["linux"]["resources"], resources);
        assert_eq!(spec["hostname"], "h");
        assert_eq!(spec["annotations"][SKIP_NETWORK], "true");
        assert!(spec["annotations"].get(HOST_NETWORK).is_none());
    }

    #[test]
    fn a_workload_keeps_a_pid_namespace_of_its_pod_and_has_no_name_of_its_own() {
        let mut spec = pod("container");
        adapt(&mut spec, Kind::of(&pod("container")).unwrap()).unwrap();
        assert_eq!(spec["linux"]["namespaces"][0]["path"], "/proc/7/ns/pid");
        assert_eq!(spec["linux"]["namespaces"][1], json!({"type": "network"}));
        assert!(spec.get("hostname").is_none());
    }

    #[test]
    fn without_a_network_namespace_it_has_the_machines() {
        let mut spec = json!({"linux": {"namespaces": [{"type": "mount"}]}});
        adapt(&mut spec, Kind::Standalone).unwrap();
        assert_eq!(spec["annotations"][HOST_NETWORK], "true");
    }

    #[test]
    fn an_unknown_kind_is_told() {
        let error = Kind::of(&pod("pause")).unwrap_err().to_string();
        assert!(error.contains("\"pause\"") && error.contains(CONTAINER_TYPE), "{error}");
        assert_eq!(Kind::of(&json!({})).unwrap(), Kind::Standalone);
    }
}
