//! The mounts of a container that name files of this host.
//!
//! | mount                                  | becomes                                            |
//! |----------------------------------------|----------------------------------------------------|
//! | a directory of this host               | a share, by virtio-fs                              |
//! | a file of this host                    | a share of a directory with nothing else in it     |
//! | `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf` that containerd has made for a pod | the guest's own |
//! | `/dev/shm` of a pod                    | memory that the pod's containers share in the guest |
//! | all others (`proc`, `tmpfs`, …)        | what they are                                      |

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use serde_json::{Value, json};
use tracing::warn;

use crate::bundle::Bundle;
use crate::error::Error;
use crate::spec::Kind;

/// What the guest writes itself, from what it knows of its network.
const OF_GUEST: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// In the paths of what containerd makes for pods.
const OF_CONTAINERD: &str = "/io.containerd.grpc.v1.cri/";

/// The same, from containerd 2.0 on.
const OF_CONTAINERD_2: &str = "/io.containerd.sandbox.controller.v1.";

/// A directory of this host that a container is to see.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    /// Only this file of it.
    pub(crate) file: Option<String>,
}

/// How many shares a document's mounts may take.
pub(crate) fn count(spec: &Value) -> usize {
    spec["mounts"].as_array().into_iter().flatten().filter(|mount| is_bind(mount)).count()
}

/// Takes what names files of this host out of a document's mounts.
pub(crate) fn take(spec: &mut Value, kind: Kind, bundle: &Bundle) -> Result<Vec<Share>, Error> {
    let Some(mounts) = spec.get_mut("mounts").and_then(Value::as_array_mut) else {
        return Ok(Vec::new());
    };
    let (mut kept, mut shares) = (Vec::new(), Vec::new());
    for mount in std::mem::take(mounts) {
        if !is_bind(&mount) {
            kept.push(mount);
            continue;
        }
        let text = |field: &str| mount[field].as_str().unwrap_or_default().to_owned();
        let (source, target) = (text("source"), text("destination"));
        let of_pod = source.contains(OF_CONTAINERD) || source.contains(OF_CONTAINERD_2);
        if of_pod && OF_GUEST.contains(&target.as_str()) {
            continue;
        }
        if target == "/dev/shm" && kind != Kind::Standalone {
            kept.push(shared_memory(kind));
            continue;
        }
        let read_only = options(&mount).any(|option| option == "ro");
        let found = fs::metadata(&source)
            .map_err(Error::io(format!("find {source}, the source of mount {target}")))?;
        if found.is_dir() {
            shares.push(Share { source: source.into(), target, read_only, file: None });
            continue;
        }
        let (directory, name) = alone(bundle, shares.len(), Path::new(&source), read_only)?;
        shares.push(Share { source: directory, target, read_only, file: Some(name) });
    }
    *mounts = kept;
    Ok(shares)
}

fn shared_memory(kind: Kind) -> Value {
    match kind {
        Kind::Workload => json!({
            "destination": "/dev/shm", "type": "bind", "source": "sandbox-tmp:///shm",
            "options": ["rbind", "rw", "nosuid", "nodev", "noexec"],
        }),
        _ => json!({
            "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "nodev", "noexec", "mode=1777", "size=65536k"],
        }),
    }
}

fn options(mount: &Value) -> impl Iterator<Item = &str> {
    mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether it brings in something of this host. What the guest resolves itself has a scheme.
fn is_bind(mount: &Value) -> bool {
    let bind = mount["type"] == "bind" || options(mount).any(|option| option.ends_with("bind"));
    bind && mount["source"].as_str().is_some_and(|source| source.starts_with('/'))
}

/// Puts a file into a directory of its own, that the guest can see no other.
fn alone(
    bundle: &Bundle,
    number: usize,
    file: &Path,
    read_only: bool,
) -> Result<(PathBuf, String), Error> {
    let what = || format!("prepare {} for the guest", file.display());
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let directory = bundle.mounts().join(number.to_string());
    fs::create_dir_all(&directory).map_err(Error::io(what()))?;
    let place = directory.join(&name);
    // What is there already may be a file of this host, from a mount that was left.
    File::create_new(&place).map_err(Error::io(what()))?;
    mount_bind(file, &place).map_err(Error::io(what()))?;
    if read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount(&place, flags, c"").map_err(Error::io(what()))?;
    }
    Ok((directory, name))
}

/// Undoes what [`take`] has mounted in a bundle, by whichever process.
pub(crate) fn take_down(bundle: &Bundle) {
    let mounts = bundle.mounts();
    for directory in fs::read_dir(&mounts).into_iter().flatten().flatten() {
        for file in fs::read_dir(directory.path()).into_iter().flatten().flatten() {
            // A file that was not mounted yet is only a file.
            let _ = unmount(file.path(), UnmountFlags::DETACH);
        }
    }
    match fs::remove_dir_all(&mounts) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(%error, directory = %mounts.display(), "remove what was prepared for the guest");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, target: &str, options: &[&str]) -> Value {
        json!({"destination": target, "type": "bind", "source": source, "options": options})
    }

    #[test]
    fn only_what_names_this_hosts_files_is_taken_out() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().display().to_string();
        let made = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/x";
        let proc = json!({"destination": "/proc", "type": "proc", "source": "proc"});
        let own = bind("sandbox://data", "/data", &["rbind"]);
        let mut spec = json!({"mounts": [
            proc,
            bind(&format!("{made}/hosts"), "/etc/hosts", &["rbind", "ro"]),
            bind(&format!("{made}/shm"), "/dev/shm", &["rbind", "ro"]),
            bind(&source, "/srv", &["rbind", "ro"]),
            own,
        ]});
        assert_eq!(count(&spec), 3);
        let bundle = Bundle::at(directory.path().join("bundle"));
        let shares = take(&mut spec, Kind::Workload, &bundle).unwrap();
        let expected =
            Share { source: source.into(), target: "/srv".into(), read_only: true, file: None };
        assert_eq!(shares, [expected]);
        assert_eq!(spec["mounts"], json!([proc, shared_memory(Kind::Workload), own]));
    }

    #[test]
    fn what_is_mounted_already_keeps_what_it_holds() {
        let place = tempfile::tempdir().unwrap();
        let (file, bundle) = (place.path().join("file"), Bundle::at(place.path().join("bundle")));
        let left = bundle.mounts().join("0/file");
        fs::create_dir_all(left.parent().unwrap()).unwrap();
        for path in [&file, &left] {
            fs::write(path, "kept").unwrap();
        }
        let error = alone(&bundle, 0, &file, false).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
        assert_eq!(fs::read_to_string(&left).unwrap(), "kept");
    }

    #[test]
    fn a_source_that_is_missing_is_named_with_its_mount() {
        let mut spec = json!({"mounts": [bind("/nonexistent/x", "/x", &["bind"])]});
        let error = take(&mut spec, Kind::Standalone, &Bundle::at("/nonexistent")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("/nonexistent/x") && error.contains("mount /x"), "{error}");
    }
}
