//! Which devices were made for what is mounted: a host that unmounts does not say it again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::mapping::Mapping;
use super::{blocking, unlink, unmount};
use crate::Result;

/// Devices by mount path, those of the last mount on it first, the outermost first.
#[derive(Debug, Default)]
pub(crate) struct Mounted(RefCell<HashMap<PathBuf, Vec<Mapping>>>);

impl Mounted {
    /// Remembers what was made for a mount.
    pub(crate) fn keep(&self, target: &Path, mut mappings: Vec<Mapping>) {
        if mappings.is_empty() {
            return;
        }
        let mut table = self.0.borrow_mut();
        let kept = table.entry(target.to_owned()).or_default();
        mappings.append(kept);
        *kept = mappings;
    }

    /// Takes down what is mounted at a path, or the link that is there, and then what was made for
    /// it. Nothing at all is fine as well.
    pub(crate) async fn take_down(&self, target: &Path, link: bool) -> Result<()> {
        let mappings = self.0.borrow_mut().remove(target).unwrap_or_default();
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
}
