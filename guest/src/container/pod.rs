//! The pods of this utility VM: what a sandbox has made for the workloads that join it.
//!
//! ```text
//! <root>/hostname hosts resolv.conf      for its workloads' /etc
//! <root>/sandboxMounts                   sandbox://
//! <root>/sandboxTmpfsMounts              sandbox-tmp://, in memory
//! <root>/hugepages                       hugepages://
//! <root>/logs                            copies of output
//! ```

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::mount::{MntFlags, MsFlags, umount2};
use tracing::warn;

use crate::error::Context;
use crate::mountinfo::{is_mount_point, mounts_below};
use crate::process::Process;
use crate::storage::{MountPoint, make_directory};
use crate::{Error, Result};

pub(super) const MOUNTS: &str = "sandboxMounts";
pub(super) const TMPFS_MOUNTS: &str = "sandboxTmpfsMounts";
pub(super) const HUGE_PAGES: &str = "hugepages";
pub(super) const LOGS: &str = "logs";

/// All pods by id.
#[derive(Default)]
pub(crate) struct Pods(RefCell<HashMap<String, Pod>>);

struct Pod {
    root: PathBuf,
    host_network: bool,
    /// Its sandbox's init, once that has been made.
    init: Option<Rc<Process>>,
    workloads: HashSet<String>,
}

/// What a workload gets to know of its pod.
pub(super) struct Joined {
    pub(super) root: PathBuf,
    pub(super) host_network: bool,
    /// Its sandbox's init in the UVM's pid namespace.
    pub(super) init: u32,
}

/// A place in a pod; given up when it is dropped, unless it is kept.
pub(super) struct Membership<'a> {
    pods: &'a Pods,
    pod: String,
    id: Option<String>,
}

impl Pods {
    /// Registers the pod of a sandbox.
    pub(super) fn found(
        &self,
        pod: &str,
        id: &str,
        root: &Path,
        host_network: bool,
    ) -> Result<Membership<'_>> {
        let mut pods = self.0.borrow_mut();
        if pods.contains_key(pod) {
            let reason = format!("pod {pod} already exists");
            return Err(Error::Runtime { operation: "create", id: id.to_owned(), reason });
        }
        let made =
            Pod { root: root.to_owned(), host_network, init: None, workloads: HashSet::new() };
        pods.insert(pod.to_owned(), made);
        Ok(Membership { pods: self, pod: pod.to_owned(), id: None })
    }

    /// Registers a workload.
    pub(super) fn join(&self, pod: &str, id: &str) -> Result<(Membership<'_>, Joined)> {
        let mut pods = self.0.borrow_mut();
        let refused = |reason| Error::Runtime { operation: "create", id: id.to_owned(), reason };
        let found = pods.get_mut(pod);
        let found = found.ok_or_else(|| {
            refused(format!("pod {pod} does not exist for workload container {id}"))
        })?;
        let Some(init) = &found.init else {
            return Err(refused(format!("pod {pod} is still being created")));
        };
        if init.has_exited() {
            return Err(refused(format!("the sandbox of pod {pod} has ended")));
        }
        let joined =
            Joined { root: found.root.clone(), host_network: found.host_network, init: init.pid() };
        found.workloads.insert(id.to_owned());
        let membership = Membership { pods: self, pod: pod.to_owned(), id: Some(id.to_owned()) };
        Ok((membership, joined))
    }

    /// Says that a pod's sandbox has been made.
    pub(super) fn fill(&self, pod: &str, init: &Rc<Process>) {
        if let Some(pod) = self.0.borrow_mut().get_mut(pod) {
            pod.init = Some(Rc::clone(init));
        }
    }

    /// Forgets a workload, or with `None` the pod.
    pub(super) fn leave(&self, pod: &str, workload: Option<&str>) {
        let mut pods = self.0.borrow_mut();
        match workload {
            None => drop(pods.remove(pod)),
            Some(id) => {
                if let Some(pod) = pods.get_mut(pod) {
                    pod.workloads.remove(id);
                }
            }
        }
    }

    pub(crate) fn describe(&self) -> Vec<String> {
        let pods = self.0.borrow();
        pods.iter()
            .map(|(id, pod)| format!("pod {id}: {} workloads\n", pod.workloads.len()))
            .collect()
    }
}

impl Membership<'_> {
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.pods.leave(&self.pod, self.id.as_deref());
    }
}

/// Makes what is to be below a pod's root.
pub(super) fn make_directories(root: &Path) -> Result<()> {
    for name in [MOUNTS, TMPFS_MOUNTS, HUGE_PAGES] {
        let path = root.join(name);
        make_directory(&path, 0o755)?.keep();
        if is_mount_point(&path)? {
            continue;
        }
        if name == TMPFS_MOUNTS {
            mount("tmpfs".as_ref(), &path, Some("tmpfs"), MsFlags::empty())?;
        } else {
            mount(&path, &path, None, MsFlags::MS_BIND)?;
        }
        mount("none".as_ref(), &path, None, MsFlags::MS_SHARED | MsFlags::MS_REC)?;
    }
    let logs = root.join(LOGS);
    make_directory(&logs, 0o777)?.keep();
    fs::set_permissions(&logs, Permissions::from_mode(0o777))
        .context(|| format!("open {} to all", logs.display()))
}

fn mount(source: &Path, target: &Path, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    MountPoint { source, target, kind, flags, data: None }.mount()
}

/// Takes down what [`make_directories`] and its users have mounted.
pub(super) fn unmount_directories(root: &Path) {
    for name in [MOUNTS, TMPFS_MOUNTS, HUGE_PAGES] {
        let points = mounts_below(&root.join(name)).unwrap_or_default();
        for point in points.iter().rev() {
            if let Err(error) = umount2(point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
                warn!(%error, mount = %point.display(), "a pod's mount stays");
            }
        }
    }
}
