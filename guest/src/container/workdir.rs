//! A process's working directory, inside a container's root.
//!
//! The path is the caller's and the links in it are the image's: both are resolved as if the
//! container's root were the machine's.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use serde_json::Value;

use super::bundle::Bundle;
use crate::{Error, Result};

/// Makes the directory in a container that does not run yet. An image need not hold it, and what
/// cannot be made may come with a mount; so a failure is left to whoever needs it.
pub(super) fn make(root: &Path, cwd: &str) {
    let _ = try_make(root, cwd);
}

/// Says so if the directory is not there.
pub(super) fn check(root: &Path, cwd: &str) -> Result<()> {
    let found = open_root(root).and_then(|root| open_directory(&root, Path::new(cwd)));
    found.map(drop).map_err(|error| Error::Argument {
        field: "cwd",
        reason: format!("{cwd:?} in the container: {error}"),
    })
}

/// Tells what the runtime does not: that the directory is something else. One that a mount may
/// bring is not judged.
pub(super) fn explain(error: Error, bundle: &Bundle) -> Error {
    let Some(cwd) = bundle.spec["process"]["cwd"].as_str() else { return error };
    let said = matches!(&error, Error::Runtime { reason, .. } if !reason.contains("executable "));
    if !said || mounted_over(&bundle.spec["mounts"], cwd) {
        return error;
    }
    check(&bundle.root, cwd).err().unwrap_or(error)
}

fn mounted_over(mounts: &Value, cwd: &str) -> bool {
    let destinations = mounts.as_array().into_iter().flatten();
    let mut destinations = destinations.filter_map(|mount| mount["destination"].as_str());
    destinations.any(|destination| Path::new(cwd).starts_with(destination))
}

fn try_make(root: &Path, cwd: &str) -> io::Result<()> {
    let root = open_root(root)?;
    let cwd = Path::new(cwd);
    let mut prefixes: Vec<&Path> = cwd.ancestors().filter(|path| path.parent().is_some()).collect();
    prefixes.reverse();
    for prefix in prefixes {
        match open_directory(&root, prefix) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = open_directory(&root, prefix.parent().unwrap_or(Path::new("/")))?;
                let name = prefix.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
            }
            other => drop(other?),
        }
    }
    Ok(())
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(open(root, DIRECTORY, Mode::empty())?)
}

fn open_directory(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, DIRECTORY, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_a_mount_may_bring_is_not_judged() {
        let mounts = serde_json::json!([{ "destination": "/data" }, { "type": "proc" }]);
        assert!(mounted_over(&mounts, "/data") && mounted_over(&mounts, "/data/in"));
        assert!(!mounted_over(&mounts, "/database") && !mounted_over(&Value::Null, "/data"));
    }

    #[test]
    fn a_directory_is_made_inside_the_root_whatever_the_image_links_to() {
        let base = std::env::temp_dir().join(format!("linkspan-cwd-{}", std::process::id()));
        let (root, outside) = (base.join("root"), base.join("outside"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        assert!(check(&root, "/a/b").unwrap_err().to_string().contains("/a/b"));
        make(&root, "/a/b");
        check(&root, "/a/b").unwrap();
        make(&root, "/link/c");
        make(&root, "/../../outside/d");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        std::fs::remove_dir_all(&base).unwrap();
    }
}
