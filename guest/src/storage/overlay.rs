//! A container's root: read-only layers below a writable directory.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::mount::{MountPoint, make_directory, unmount_all};
use crate::{Error, Result};

/// What is to be mounted.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(crate) root: PathBuf,
    /// The top-most first.
    pub(crate) layers: Vec<PathBuf>,
    /// Gets `upper` and `work`; none for a read-only root.
    pub(crate) scratch: Option<PathBuf>,
}

/// Whether the directory above the root has to be brought onto the scratch disk, so that all that
/// is written there is as well.
pub(crate) fn bundle_needs_bind(root: &Path, scratch: &Path) -> Option<PathBuf> {
    root.parent().filter(|bundle| !scratch.starts_with(bundle)).map(Path::to_owned)
}

impl Overlay {
    /// Mounts it. After a failure everything is as before.
    pub(crate) fn mount(&self) -> Result<()> {
        let bind = match &self.scratch {
            Some(scratch) => bundle_needs_bind(&self.root, scratch).map(|bundle| (bundle, scratch)),
            None => None,
        };
        let Some((bundle, scratch)) = bind else { return self.mount_root() };
        let source = scratch.join("bundle");
        let made = [make_directory(&source, 0o755)?, make_directory(&bundle, 0o755)?];
        let point = MountPoint {
            source: &source,
            target: &bundle,
            kind: None,
            flags: MsFlags::MS_BIND,
            data: None,
        };
        point.mount()?;
        if let Err(error) = self.mount_root() {
            unmount_all(&bundle)?;
            return Err(error);
        }
        made.into_iter().for_each(super::Made::keep);
        Ok(())
    }

    fn mount_root(&self) -> Result<()> {
        let layers: Vec<String> = self.layers.iter().map(|path| escape(path)).collect();
        let mut data = format!("lowerdir={}", layers.join(":"));
        let mut made = vec![make_directory(&self.root, 0o755)?];
        if let Some(scratch) = &self.scratch {
            let (upper, work) = (scratch.join("upper"), scratch.join("work"));
            made.push(make_directory(&upper, 0o755)?);
            made.push(make_directory(&work, 0o755)?);
            data += &format!(",upperdir={},workdir={}", escape(&upper), escape(&work));
        }
        // The kernel copies one page and drops the rest without a word.
        if data.len() >= 4096 {
            let reason = format!("{} layers make {} bytes of options", layers.len(), data.len());
            return Err(Error::Argument { field: "Layers", reason });
        }
        let read_only = self.scratch.is_none();
        let point = MountPoint {
            source: Path::new("overlay"),
            target: &self.root,
            kind: Some("overlay"),
            flags: if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() },
            data: Some(&data),
        };
        point.mount()?;
        made.into_iter().for_each(super::Made::keep);
        Ok(())
    }
}

/// Overlay's options part at commas, its layers at colons; a backslash takes the meaning away.
fn escape(path: &Path) -> String {
    let mut out = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_bound_only_when_the_scratch_is_elsewhere() {
        let needs =
            |root: &str, scratch: &str| bundle_needs_bind(Path::new(root), Path::new(scratch));
        assert_eq!(needs("/run/gcs/c/a/rootfs", "/run/gcs/c/a/scratch/a"), None);
        assert_eq!(
            needs("/run/gcs/c/a/rootfs", "/run/gcs/c/ab/scratch"),
            Some(PathBuf::from("/run/gcs/c/a"))
        );
    }

    #[test]
    fn separators_in_a_path_stay_part_of_it() {
        assert_eq!(escape(Path::new("/a:b,c\\d")), "/a\\:b\\,c\\\\d");
    }
}
