//! Mount points: made, mounted on, taken down, and undone when a later step fails.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tracing::warn;

use crate::error::Context;
use crate::mountinfo::{is_mount_point, mounts_below};
use crate::{Error, Result};

/// A directory that was made for a purpose. Unless that is fulfilled ([`Made::keep`]) it is
/// removed again, and only if it was not there before.
#[derive(Debug)]
pub(crate) struct Made(Option<PathBuf>);

/// Makes a directory and its parents.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<Made> {
    let existed = path.is_dir();
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.context(|| format!("make directory {}", path.display()))?;
    Ok(Made((!existed).then(|| path.to_owned())))
}

impl Made {
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Never with contents: they would be somebody's.
            let _ = fs::remove_dir(path);
        }
    }
}

/// One mount to be made.
#[derive(Debug)]
pub(crate) struct MountPoint<'a> {
    pub(crate) source: &'a Path,
    pub(crate) target: &'a Path,
    pub(crate) kind: Option<&'a str>,
    pub(crate) flags: MsFlags,
    pub(crate) data: Option<&'a str>,
}

impl MountPoint<'_> {
    pub(crate) fn mount(&self) -> Result<()> {
        let Self { source, target, kind, flags, data } = *self;
        match (mount(Some(source), target, kind, flags, data), kind) {
            (Err(Errno::ENODEV), Some(kind)) => {
                let advice = match kind {
                    "9p" => " (Debian's generic kernel has it, the cloud one has not)",
                    "virtiofs" => " (module group \"share\" of the image)",
                    _ => "",
                };
                Err(Error::NotSupported(format!("{kind} by the guest's kernel{advice}")))
            }
            (result, _) => result.context(|| {
                let kind = kind.unwrap_or("bind");
                format!("mount {} on {} as {kind}", source.display(), target.display())
            }),
        }
    }
}

/// Takes down everything that is mounted at exactly `path`, then the directory. A path that is
/// not there is no error.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(|| format!("look at {}", path.display())),
        Ok(_) => {}
    }
    unmount_all(path)?;
    match fs::remove_dir(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOTEMPTY as i32) => {
            warn!(path = %path.display(), "a former mount point is not empty and stays");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.context(|| format!("remove mount point {}", path.display())),
    }
}

/// Takes down everything that is mounted at exactly `path`.
pub(crate) fn unmount_all(path: &Path) -> Result<()> {
    while is_mount_point(path)? {
        umount2(path, MntFlags::UMOUNT_NOFOLLOW)
            .context(|| format!("unmount {}", path.display()))?;
    }
    Ok(())
}

/// Removes a directory with all that is in it; of a mount point only what is in it. Refuses when
/// anything is mounted below: removal would reach into what is mounted.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let mounts = mounts_below(path)?;
    if let Some(mounted) = mounts.iter().find(|mounted| *mounted != path) {
        let what = format!("remove {}: {} is still mounted", path.display(), mounted.display());
        return Err(Error::Io { what, source: Errno::EBUSY.into() });
    }
    let what = || format!("remove {}", path.display());
    if mounts.is_empty() {
        return match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.context(what),
        };
    }
    for entry in fs::read_dir(path).context(what)? {
        let entry = entry.context(what)?;
        let removed = match entry.file_type().context(what)?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        removed.context(|| format!("remove {}", entry.path().display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_directory_goes_unless_it_is_kept_or_was_there() {
        let base = std::env::temp_dir().join(format!("linkspan-made-{}", std::process::id()));
        let path = base.join("a");
        drop(make_directory(&path, 0o700).unwrap());
        assert!(!path.exists() && base.exists());
        make_directory(&path, 0o700).unwrap().keep();
        drop(make_directory(&path, 0o700).unwrap());
        assert!(path.exists());
        fs::write(path.join("file"), "x").unwrap();
        unmount(&path).unwrap();
        assert!(path.join("file").exists(), "a plain directory's contents are not ours to remove");
        remove_tree(&base).unwrap();
        remove_tree(&base).unwrap();
        unmount(&base).unwrap();
        assert!(!base.exists());
    }
}
