//! Namespaces that a container shares.

use serde_json::{Value, json};

use super::bundle::list;

/// What all containers of a pod see alike.
const SHARED: [&str; 3] = ["network", "ipc", "uts"];

/// Lets a workload join its sandbox's namespaces. Those that the spec gives a path, and kinds that
/// it does not name, stay as they are.
pub(super) fn join(spec: &mut Value, sandbox: u32) {
    for namespace in list(spec, "/linux/namespaces") {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        let own = namespace["path"].as_str().is_none_or(str::is_empty);
        if own && SHARED.contains(&kind.as_str()) {
            let name = if kind == "network" { "net" } else { &kind };
            namespace["path"] = json!(format!("/proc/{sandbox}/ns/{name}"));
        }
    }
}

/// Leaves a container in the utility VM's own network.
pub(super) fn use_host_network(spec: &mut Value) {
    list(spec, "/linux/namespaces").retain(|namespace| namespace["type"] != "network");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_joins_what_a_pod_shares_and_keeps_the_rest() {
        let mut spec = json!({"linux": {"namespaces": [
            {"type": "pid"}, {"type": "network"}, {"type": "uts", "path": "/proc/9/ns/uts"},
            {"type": "ipc", "path": ""}, {"type": "mount"},
        ]}});
        join(&mut spec, 7);
        let expected = json!([
            {"type": "pid"}, {"type": "network", "path": "/proc/7/ns/net"},
            {"type": "uts", "path": "/proc/9/ns/uts"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
            {"type": "mount"},
        ]);
        assert_eq!(spec["linux"]["namespaces"], expected);
        use_host_network(&mut spec);
        assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 4);
    }
}
