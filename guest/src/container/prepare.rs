//! What has to be true before a container can be made, by its kind.
//!
//! | step                   | sandbox             | workload            | standalone     |
//! |------------------------|---------------------|---------------------|----------------|
//! | its pod                | is made             | is joined           |                |
//! | hostname, hosts, …     | written for others  | mounted             | written, mounted |
//! | shared directories     | made                | mounts are resolved |                |
//! | cgroup below `/pods`   | `<pod>/<id>`        | `<pod>/<id>`        | `<id>`         |

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::annotations::{self, Annotations};
use super::bundle::{Bundle, list};
use super::kind::Kind;
use super::pod::{self, Membership};
use super::{assigned, devices, limits, mounts, namespaces, network_files, tee, user};
use crate::network::Claim;
use crate::storage::{Made, make_directory};
use crate::uvm::Uvm;
use crate::{Error, Result, cgroup};

/// What has been done for a container; undone when it is dropped, unless it is kept.
pub(super) struct Prepared<'a> {
    membership: Option<Membership<'a>>,
    pod_directories: Option<PodDirectories>,
    files: Files,
    made: Vec<Made>,
    /// Its network namespace, as hosts name it.
    pub(super) claim: Option<Claim<'a>>,
    /// Follows the adapters.
    pub(super) resolv_conf: Option<PathBuf>,
    pub(super) host_network: bool,
    /// From the root of the hierarchy.
    pub(super) cgroup: PathBuf,
    /// Where the pod's files are; a standalone container's own.
    pub(super) pod_root: PathBuf,
    /// Gets the init's output as well.
    pub(super) tee: Option<PathBuf>,
}

/// Files that go unless the container is made.
#[derive(Default)]
struct Files(Vec<PathBuf>);

/// A pod's directories and mounts.
struct PodDirectories(PathBuf);

impl Prepared<'_> {
    /// Keeps it all. Returns the id of the network namespace.
    pub(super) fn keep(self) -> Option<String> {
        if let Some(membership) = self.membership {
            membership.keep();
        }
        if let Some(mut directories) = self.pod_directories {
            directories.0 = PathBuf::new();
        }
        let mut files = self.files;
        files.0.clear();
        self.made.into_iter().for_each(Made::keep);
        self.claim.map(Claim::keep)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = fs::remove_file(file);
        }
    }
}

impl Drop for PodDirectories {
    fn drop(&mut self) {
        let Self(root) = self;
        if root.as_os_str().is_empty() {
            return;
        }
        pod::unmount_directories(root);
        for name in [pod::MOUNTS, pod::TMPFS_MOUNTS, pod::HUGE_PAGES, pod::LOGS] {
            let _ = fs::remove_dir(root.join(name));
        }
    }
}

pub(super) async fn prepare<'a>(
    uvm: &'a Uvm,
    id: &str,
    kind: &Kind,
    bundle: &mut Bundle,
) -> Result<Prepared<'a>> {
    let directory = bundle.directory.as_path().to_owned();
    let mut prepared = Prepared {
        membership: None,
        pod_directories: None,
        files: Files(vec![directory.join("config.json")]),
        made: Vec::new(),
        claim: None,
        resolv_conf: None,
        host_network: asks_for_host_network(&bundle.spec),
        cgroup: match kind.pod() {
            Some(pod) => uvm.cgroup.join(pod).join(id),
            None => uvm.cgroup.join(id),
        },
        pod_root: directory.clone(),
        tee: None,
    };
    let hostname = bundle.spec["hostname"].as_str().unwrap_or_default().to_owned();
    match kind {
        Kind::Sandbox { pod, root, is_virtual } => {
            let hostname = network_files::hostname(&hostname)?;
            let host_network = prepared.host_network;
            prepared.claim = claim_for_sandbox(uvm, id, &bundle.spec, *is_virtual)?;
            let resolv_conf = resolv_conf(uvm, prepared.claim.as_ref())?;
            prepared.resolv_conf = Some(root.join("resolv.conf"));
            prepared.membership = Some(uvm.pods.found(pod, id, root, host_network)?);
            prepared.pod_root.clone_from(root);
            prepared.made.push(make_directory(root, 0o755)?);
            prepared.pod_directories = Some(PodDirectories(root.clone()));
            pod::make_directories(root)?;
            for name in network_files::NAMES {
                prepared.files.0.push(root.join(name));
                network_files::write(root, name, &hostname, &resolv_conf)?;
            }
            cgroup::make(&uvm.cgroup.join(pod));
            if host_network {
                namespaces::use_host_network(&mut bundle.spec);
            }
        }
        Kind::Workload { pod } => {
            if !hostname.is_empty() {
                let reason = format!("workload container must not change hostname: {hostname}");
                return Err(Error::Argument { field: "hostname", reason });
            }
            let (membership, joined) = uvm.pods.join(pod, id)?;
            prepared.membership = Some(membership);
            prepared.pod_root.clone_from(&joined.root);
            mounts::resolve(&mut bundle.spec, &joined.root)?;
            network_files::mount(&mut bundle.spec, &joined.root, |_| Ok(()))?;
            match joined.host_network {
                true => namespaces::use_host_network(&mut bundle.spec),
                false => namespaces::join(&mut bundle.spec, joined.init),
            }
        }
        Kind::Standalone => {
            let hostname = network_files::hostname(&hostname)?;
            prepared.made.push(make_directory(&directory, 0o755)?);
            let namespace = network_namespace(&bundle.spec);
            if !namespace.is_empty() {
                prepared.claim = uvm.networks.claim(&namespace, id, true)?;
            }
            let resolv_conf = resolv_conf(uvm, prepared.claim.as_ref())?;
            let files = &mut prepared.files.0;
            let follows = &mut prepared.resolv_conf;
            network_files::mount(&mut bundle.spec, &directory, |name| {
                files.push(directory.join(name));
                if name == "resolv.conf" {
                    *follows = Some(directory.join(name));
                }
                network_files::write(&directory, name, &hostname, &resolv_conf)
            })?;
            if prepared.host_network {
                namespaces::use_host_network(&mut bundle.spec);
            }
        }
    }
    prepared.made.push(make_directory(&directory, 0o755)?);
    follow_annotations(kind, bundle, &mut prepared)?;
    assigned::add(uvm, bundle).await?;
    user::resolve(&mut bundle.spec["process"], &bundle.root)?;
    bundle.adapt(&prepared.cgroup);
    Ok(prepared)
}

fn follow_annotations(kind: &Kind, bundle: &mut Bundle, prepared: &mut Prepared<'_>) -> Result<()> {
    let spec = &mut bundle.spec;
    // A copy, for the spec is about to change; without annotations it is nothing.
    let annotations = json!({"annotations": spec["annotations"]});
    let annotations = Annotations::of(&annotations);
    if let Some(size) = annotations.get(annotations::SHM_SIZE) {
        mounts::resize_shm(spec, size)?;
    }
    match annotations.flag(annotations::PRIVILEGED, false) {
        true => devices::add_all(spec)?,
        false => devices::look_up(spec, matches!(kind, Kind::Workload { .. }))?,
    }
    if let Some(limit) = annotations.get(annotations::CORE_LIMIT) {
        limits::core(spec, limit)?;
    }
    if let Some(place) = annotations.get(annotations::TEE_LOG_MOUNT) {
        let logs = prepared.pod_root.join(pod::LOGS);
        tee::make_directory(&logs)?;
        list(spec, "/mounts").push(json!({
            "destination": place, "type": "bind", "source": logs, "options": ["bind"],
        }));
    }
    if let Some(path) = annotations.get(annotations::TEE_LOG_PATH) {
        prepared.tee = Some(tee::file(&prepared.pod_root.join(pod::LOGS), path)?);
    }
    if annotations.flag(annotations::SECURITY_CONTEXT, true)
        && let Some(certificate) = annotations.get(annotations::CERTIFICATE)
    {
        add_security_context(spec, &bundle.root, certificate)?;
    }
    Ok(())
}

fn asks_for_host_network(spec: &Value) -> bool {
    Annotations::of(spec).flag(annotations::HOST_NETWORK, false)
}

fn network_namespace(spec: &Value) -> String {
    spec["windows"]["network"]["networkNamespace"].as_str().unwrap_or_default().to_owned()
}

/// A sandbox's network has to be there before it, unless it may do without.
fn claim_for_sandbox<'a>(
    uvm: &'a Uvm,
    id: &str,
    spec: &Value,
    is_virtual: bool,
) -> Result<Option<Claim<'a>>> {
    let skip = Annotations::of(spec).get(annotations::SKIP_NETWORK);
    let dispensable = is_virtual || skip.is_some_and(|skip| skip.eq_ignore_ascii_case("true"));
    let namespace = network_namespace(spec);
    if namespace.is_empty() && dispensable {
        return Ok(None);
    }
    let claim = uvm.networks.claim(&namespace, id, dispensable)?;
    claim.map(Some).ok_or_else(|| Error::NotFound(format!("network namespace {namespace:?}")))
}

fn resolv_conf(uvm: &Uvm, claim: Option<&Claim<'_>>) -> Result<String> {
    claim.map_or(Ok(String::new()), |claim| uvm.networks.resolv_conf(claim.key()))
}

/// A directory in the container that holds what vouches for the VM.
fn add_security_context(spec: &mut Value, root: &Path, certificate: &str) -> Result<()> {
    use crate::error::Context;
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid")
        .context(|| "read a random name".to_owned())?;
    let name = format!("security-context-{}", random.trim());
    let directory = root.join(&name);
    fs::create_dir(&directory).context(|| "create the security context directory".to_owned())?;
    let file = directory.join("host-amd-cert-base64");
    fs::write(&file, certificate).context(|| format!("write {}", file.display()))?;
    list(spec, "/process/env").push(json!(format!("UVM_SECURITY_CONTEXT_DIR=/{name}")));
    Ok(())
}
