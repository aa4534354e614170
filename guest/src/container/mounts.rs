//! Mounts whose source or destination says more than a path.
//!
//! | written                  | means                                                        |
//! |--------------------------|--------------------------------------------------------------|
//! | source `sandbox://P`     | `P` below the pod's shared directory, made if it is missing  |
//! | source `sandbox-tmp://P` | the same, in memory                                          |
//! | source `hugepages://S/P` | a file system of huge pages of size `S`, shared as `S/P`     |
//! | source `uvm://P`         | `P` in the utility VM                                        |
//! | destination `blockdev://D` | the device that the source links to, as `D`                |
//!
//! What is below a pod's directories is the containers' own: they may put symbolic links there. A
//! path is therefore walked as if its directory were the root, and what is mounted is the place
//! that was reached, not its name.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use rustix::fs::{Mode, OFlags, ResolveFlags, fchmod, mkdirat, open, openat2};
use serde_json::{Value, json};

use super::bundle::list;
use super::{devices, pod};
use crate::error::Context;
use crate::storage::MountPoint;
use crate::{Error, Result};

/// Rewrites a workload's mounts. `root` is its pod's.
pub(super) fn resolve(spec: &mut Value, root: &Path) -> Result<()> {
    let mut block_devices = Vec::new();
    for mount in list(spec, "/mounts") {
        let source = mount["source"].as_str().unwrap_or_default().to_owned();
        let destination = mount["destination"].as_str().unwrap_or_default().to_owned();
        if let Some(path) = source.strip_prefix("sandbox://") {
            mount["source"] = json!(shared(&root.join(pod::MOUNTS), path, &source)?);
        } else if let Some(path) = source.strip_prefix("sandbox-tmp://") {
            mount["source"] = json!(shared(&root.join(pod::TMPFS_MOUNTS), path, &source)?);
        } else if let Some(path) = source.strip_prefix("hugepages://") {
            mount["source"] = json!(huge_pages(&root.join(pod::HUGE_PAGES), path, &source)?);
        } else if let Some(path) = source.strip_prefix("uvm://") {
            fs::metadata(path).context(|| format!("could not open uVM mount target {path:?}"))?;
            mount["source"] = json!(path);
        }
        if let Some(path) = destination.strip_prefix("blockdev://") {
            let options = mount["options"].as_array();
            let read_only = options.is_some_and(|all| all.iter().any(|option| option == "ro"));
            let source = mount["source"].as_str().unwrap_or_default();
            block_devices.push((devices::linked(Path::new(source))?, read_only));
            mount["destination"] = json!(path);
        }
    }
    for ((major, minor), read_only) in block_devices {
        let access = if read_only { "r" } else { "rwm" };
        devices::allow(spec, "b", Some((major, minor)), access);
    }
    Ok(())
}

/// A place below `base`, made if it is missing.
fn shared(base: &Path, path: &str, source: &str) -> Result<PathBuf> {
    let relative = below(path, source)?;
    let what = || format!("find mount source {source:?}");
    let (place, _) = reach(base, &relative).context(what)?;
    real_path(&place).context(what)
}

/// A huge page file system, mounted if it is not there yet.
fn huge_pages(base: &Path, path: &str, source: &str) -> Result<PathBuf> {
    let relative = below(path, source)?;
    let size = relative.iter().next().and_then(|size| size.to_str()).unwrap_or_default();
    let valid = |size: &str| {
        let digits = size.trim_end_matches(['K', 'M', 'G']);
        digits.len() + 1 == size.len() && digits.parse::<u32>().is_ok_and(|number| number > 0)
    };
    if !valid(size) || relative.iter().count() < 2 {
        let reason = format!("{source:?} is not hugepages://SIZE/NAME with a size such as 2M");
        return Err(Error::Argument { field: "mounts", reason });
    }
    let what = || format!("find mount source {source:?}");
    let (place, made) = reach(base, &relative).context(what)?;
    let real = real_path(&place).context(what)?;
    if made {
        let data = format!("pagesize={size}");
        let mounted = MountPoint {
            source: Path::new("none"),
            target: &real,
            kind: Some("hugetlbfs"),
            flags: MsFlags::empty(),
            data: Some(&data),
        }
        .mount();
        if mounted.is_err() {
            let _ = fs::remove_dir(&real);
        }
        mounted?;
    }
    Ok(real)
}

/// The path without `.` and `..`, which may not lead above its beginning.
pub(super) fn below(path: &str, source: &str) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if clean.pop() => {}
            Component::ParentDir => {
                let reason = format!("{source:?} leads out of the pod's directory");
                return Err(Error::Argument { field: "mounts", reason });
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

/// Walks to a place below `base`, making directories for all on the way that is missing. Says
/// whether the place itself is new.
pub(super) fn reach(base: &Path, relative: &Path) -> io::Result<(OwnedFd, bool)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let base = open(base, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let at = |path: &Path| openat2(&base, path, flags, Mode::empty(), resolve);
    match at(if relative.as_os_str().is_empty() { Path::new(".") } else { relative }) {
        Err(rustix::io::Errno::NOENT) => {}
        other => return Ok((other?, false)),
    }
    let mut walked = PathBuf::new();
    let mut place = at(Path::new("."))?;
    for name in relative {
        walked.push(name);
        place = match at(&walked) {
            Err(rustix::io::Errno::NOENT) => {
                mkdirat(&place, name, Mode::from_raw_mode(0o777))?;
                let made = openat2(
                    &place,
                    name,
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
                )?;
                // Whatever this process's umask takes off.
                fchmod(&made, Mode::from_raw_mode(0o777))?;
                made
            }
            other => other?,
        };
    }
    Ok((place, true))
}

fn real_path(place: &OwnedFd) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// Gives `/dev/shm` another size, in KiB.
pub(super) fn resize_shm(spec: &mut Value, size: &str) -> Result<()> {
    let bad = |reason| Error::Argument { field: super::annotations::SHM_SIZE, reason };
    let kib: u64 = size
        .parse()
        .map_err(|_| bad(format!("/dev/shm size must be a valid integer: {size:?}")))?;
    if kib == 0 {
        return Err(bad("/dev/shm size must be non-zero".to_owned()));
    }
    let mounts = list(spec, "/mounts");
    mounts.retain(|mount| mount["destination"] != "/dev/shm");
    let size = format!("size={kib}k");
    mounts.push(json!({
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", size],
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn pod(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("linkspan-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join(pod::MOUNTS)).unwrap();
        fs::create_dir_all(root.join(pod::TMPFS_MOUNTS)).unwrap();
        fs::create_dir_all(root.join(pod::HUGE_PAGES)).unwrap();
        root
    }

    fn resolved(root: &Path, source: &str) -> Result<String> {
        let mut spec = json!({"mounts": [{"destination": "/d", "source": source}], "linux": {}});
        resolve(&mut spec, root)?;
        Ok(spec["mounts"][0]["source"].as_str().unwrap().to_owned())
    }

    #[test]
    fn a_missing_source_is_made_for_all_to_use() {
        let root = pod("shared");
        let path = resolved(&root, "sandbox:///a/b/../c").unwrap();
        assert_eq!(Path::new(&path), root.join("sandboxMounts/a/c"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o777);
        let path = resolved(&root, "sandbox-tmp://x").unwrap();
        assert_eq!(Path::new(&path), root.join("sandboxTmpfsMounts/x"));
        fs::write(root.join("sandboxMounts/file"), "").unwrap();
        assert!(resolved(&root, "sandbox://file").unwrap().ends_with("sandboxMounts/file"));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn no_source_leads_out_of_the_pod_neither_by_dots_nor_by_a_containers_link() {
        let root = pod("links");
        for source in
            ["sandbox://../x", "sandbox://a/../../x", "sandbox-tmp://..", "hugepages://2M/../../x"]
        {
            assert!(resolved(&root, source).is_err(), "{source}");
        }
        let mounts = root.join(pod::MOUNTS);
        let outside = root.join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, mounts.join("absolute")).unwrap();
        symlink("../outside", mounts.join("relative")).unwrap();
        for source in ["sandbox://absolute/x", "sandbox://relative/x"] {
            if let Ok(path) = resolved(&root, source) {
                assert!(Path::new(&path).starts_with(&mounts), "{source} leads to {path}");
            }
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_size_of_huge_pages_is_a_size() {
        let root = pod("huge");
        for source in ["hugepages://2M", "hugepages://x/y", "hugepages://0M/y", "hugepages://M/y"] {
            let error = resolved(&root, source).unwrap_err().to_string();
            assert!(error.contains("hugepages://SIZE/NAME"), "{error}");
        }
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn what_the_utility_vm_has_not_cannot_be_mounted() {
        let error = resolved("/".as_ref(), "uvm:///no/such/thing").unwrap_err().to_string();
        assert!(error.contains("could not open uVM mount target"), "{error}");
        assert_eq!(resolved("/".as_ref(), "uvm:///proc").unwrap(), "/proc");
    }

    #[test]
    fn shared_memory_gets_its_size_or_a_reason_why_not() {
        let mut spec = json!({"mounts": [{"destination": "/dev/shm", "options": ["size=1k"]}]});
        resize_shm(&mut spec, "512").unwrap();
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["mounts"][0]["options"][4], "size=512k");
        assert!(resize_shm(&mut spec, "0").unwrap_err().to_string().contains("non-zero"));
        assert!(resize_shm(&mut spec, "64m").unwrap_err().to_string().contains("\"64m\""));
    }
}
