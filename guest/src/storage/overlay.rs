//! A container's root: read-only layers below a writable directory.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::mount::{MountPoint, make_directory, unmount_all};
use crate::error::Context;
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
    /// Mounts it. Gives the directory above the root, if it has been brought onto the scratch disk.
    /// After a failure everything is as before.
    pub(crate) fn mount(&self) -> Result<Option<PathBuf>> {
        let bind = match &self.scratch {
            Some(scratch) => bundle_needs_bind(&self.root, scratch).map(|bundle| (bundle, scratch)),
            None => None,
        };
        let Some((bundle, scratch)) = bind else { return self.mount_root().map(|()| None) };
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
        Ok(Some(bundle))
    }

    fn mount_root(&self) -> Result<()> {
        let mut made = vec![make_directory(&self.root, 0o755)?];
        let mut upper = None;
        if let Some(scratch) = &self.scratch {
            let (above, work) = (scratch.join("upper"), scratch.join("work"));
            made.push(make_directory(&above, 0o755)?);
            made.push(make_directory(&work, 0o755)?);
            upper = Some((above, work));
        }
        match (&self.layers[..], upper) {
            ([], None) => {
                let reason = "is empty, and so is ScratchPath: there is nothing to mount";
                return Err(Error::Argument { field: "Layers", reason: reason.to_owned() });
            }
            // An overlay wants two of them. One needs none.
            ([], Some((only, _))) => self.bind(&only, MsFlags::empty())?,
            ([only], None) => self.bind(only, MsFlags::MS_RDONLY)?,
            (_, upper) => self.mount_overlay(upper.as_ref()).inspect_err(|_| {
                // Some kernels begin before they look at the layers.
                if let Some((_, work)) = &upper {
                    let _ = std::fs::remove_dir(work.join("work"));
                }
            })?,
        }
        made.into_iter().for_each(super::Made::keep);
        Ok(())
    }

    fn mount_overlay(&self, upper: Option<&(PathBuf, PathBuf)>) -> Result<()> {
        let options = |layers: &[PathBuf]| {
            let layers: Vec<String> = layers.iter().map(|path| escape(path)).collect();
            let mut options = format!("lowerdir={}", layers.join(":"));
            if let Some((upper, work)) = upper {
                options += &format!(",upperdir={},workdir={}", escape(upper), escape(work));
            }
            options
        };
        let mut data = options(&self.layers);
        let mut open = Vec::new();
        if data.len() >= PAGE {
            // By descriptor, long paths are short.
            for layer in &self.layers {
                let directory = File::options().read(true).custom_flags(O_PATH).open(layer);
                open.push(directory.context(|| format!("open layer {}", layer.display()))?);
            }
            let short =
                open.iter().map(|open| format!("/proc/self/fd/{}", open.as_raw_fd()).into());
            data = options(&short.collect::<Vec<PathBuf>>());
        }
        if data.len() >= PAGE {
            let reason =
                format!("{} layers make {} bytes of options", self.layers.len(), data.len());
            return Err(Error::Argument { field: "Layers", reason });
        }
        let read_only = if upper.is_none() { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let point = MountPoint {
            source: Path::new("overlay"),
            target: &self.root,
            kind: Some("overlay"),
            flags: read_only,
            data: Some(&data),
        };
        point.mount()
    }

    fn bind(&self, source: &Path, flags: MsFlags) -> Result<()> {
        let bind = |flags| {
            let (target, kind, data) = (self.root.as_path(), None, None);
            MountPoint { source, target, kind, flags, data }.mount()
        };
        bind(MsFlags::MS_BIND)?;
        if flags.is_empty() {
            return Ok(());
        }
        // The kernel takes a bind mount's flags only once it is there.
        bind(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags).inspect_err(|_| {
            let _ = unmount_all(&self.root);
        })
    }
}

/// The kernel copies so much of a mount's options and drops the rest without a word.
const PAGE: usize = 4096;

const O_PATH: i32 = nix::libc::O_PATH | nix::libc::O_DIRECTORY;

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
