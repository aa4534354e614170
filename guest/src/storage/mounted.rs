//! Which devices were made for what is mounted: a host that unmounts does not say it again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::mapping::Mapping;
use super::{blocking, unlink, unmount};
use crate::Result;

/// What the agent has made on its own for what a host has had mounted.
#[derive(Debug, Default)]
pub(crate) struct Mounted {
    /// Devices by mount path, those of the last mount on it first, the outermost first.
    devices: RefCell<HashMap<PathBuf, Vec<Mapping>>>,
    /// By a container's root, the bundle that was brought onto its scratch disk.
    bundles: RefCell<HashMap<PathBuf, PathBuf>>,
}

impl Mounted {
    /// Remembers what was made for a mount.
    pub(crate) fn keep(&self, target: &Path, mut mappings: Vec<Mapping>) {
        if mappings.is_empty() {
            return;
        }
        let mut table = self.devices.borrow_mut();
        let kept = table.entry(target.to_owned()).or_default();
        mappings.append(kept);
        *kept = mappings;
    }

    /// Takes down what is mounted at a path, or the link that is there, and then what was made for
    /// it. Nothing at all is fine as well.
    pub(crate) async fn take_down(&self, target: &Path, link: bool) -> Result<()> {
        let mappings = self.devices.borrow_mut().remove(target).unwrap_or_default();
        let path = target.to_owned();
        let (done, left) = blocking(move || {
            let done = if link { unlink(&path) } else { unmount(&path) };
            if done.is_err() {
                return Ok((done, mappings));
            }
            // One that fails does not keep the others.
            let removed = mappings.into_iter().map(Mapping::remove);
            Ok((removed.fold(Ok(()), Result::and), Vec::new()))
        })
        .await?;
        self.keep(target, left);
        done
    }

    /// Remembers that a bundle was brought onto the scratch disk.
    pub(crate) fn keep_bundle(&self, root: &Path, bundle: PathBuf) {
        self.bundles.borrow_mut().insert(root.to_owned(), bundle);
    }

    /// The bundle that was brought onto the scratch disk for a root.
    pub(crate) fn bundle_of(&self, root: &Path) -> Option<PathBuf> {
        self.bundles.borrow().get(root).cloned()
    }

    /// The root is gone.
    pub(crate) fn forget_bundle(&self, root: &Path) {
        self.bundles.borrow_mut().remove(root);
    }
}
