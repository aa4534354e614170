//! The OCI document of a container, from what a caller cares about.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What runs in a container, and how. A caller with a runtime-spec document of its own hands that
/// to [`ContainerBuilder::spec`](crate::ContainerBuilder::spec) instead.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// The environment; `PATH`, and `TERM` with a terminal, are added where they are missing.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub cwd: String,
    /// `user`, `uid`, `user:group` and so on, resolved in the guest; root where `None`.
    pub user: Option<String>,
    /// Give it a terminal of this many rows and columns.
    pub terminal: Option<(u16, u16)>,
}

impl ProcessSpec {
    /// A program with its arguments, as root in `/`.
    pub fn new(args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: None,
            terminal: None,
        }
    }

    /// The OCI process object.
    pub(crate) fn document(&self) -> Value {
        let mut env = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
        if self.terminal.is_some() {
            env.insert("TERM".to_owned(), "xterm".to_owned());
        }
        env.extend(self.env.iter().cloned());
        let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut user = json!({"uid": 0, "gid": 0});
        if let Some(name) = &self.user {
            user["username"] = json!(name);
        }
        let capabilities: Vec<String> =
            CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
        let mut process = json!({
            "terminal": self.terminal.is_some(),
            "user": user,
            "args": self.args,
            "env": env,
            "cwd": self.cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": true,
        });
        if let Some((rows, columns)) = self.terminal {
            process["consoleSize"] = json!({"height": rows, "width": columns});
        }
        process
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What container engines leave to a container's root by default.
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A container of its own: every namespace new, the usual kernel files in place.
pub(crate) fn container_document(process: &ProcessSpec, hostname: &str) -> Value {
    let namespaces: Vec<Value> = ["pid", "mount", "ipc", "uts", "network", "cgroup"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mounts = [
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    json!({
        "ociVersion": "1.1.0",
        "process": process.document(),
        "hostname": hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "resources": {},
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/scsi", "/proc/timer_list", "/sys/firmware"
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_environment_wins_and_a_terminal_has_a_kind_and_a_size() {
        let mut process = ProcessSpec::new(["sh"]);
        process.env = vec![("PATH".into(), "/bin".into()), ("A".into(), "x=y".into())];
        process.terminal = Some((24, 80));
        let document = process.document();
        assert_eq!(document["env"], json!(["A=x=y", "PATH=/bin", "TERM=xterm"]));
        assert_eq!(document["consoleSize"], json!({"height": 24, "width": 80}));
        assert_eq!(document["terminal"], true);
    }
}
