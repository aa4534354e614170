//! Paths that a host names.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Result};

/// An absolute path without `.`, `..` or NUL that is not the root and not inside the kernel's own
/// file systems. It is checked once, where it comes in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GuestPath(PathBuf);

const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

impl GuestPath {
    pub(crate) fn parse(field: &'static str, path: &str) -> Result<Self> {
        let bad = |why| Err(Error::Argument { field, reason: format!("path {path:?} {why}") });
        let parsed = Path::new(path);
        if path.is_empty() || !parsed.is_absolute() {
            return bad("is not absolute");
        }
        if path.contains('\0') {
            return bad("contains a NUL");
        }
        if path.len() >= 4096 {
            return bad("is too long");
        }
        let plain =
            |part: &Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if !parsed.components().all(|part| plain(&part)) || path.split('/').any(|part| part == ".")
        {
            return bad("contains a . or .. component");
        }
        let clean: PathBuf = parsed.components().collect();
        if clean == Path::new("/") {
            return bad("is the root");
        }
        if KERNEL.iter().any(|kernel| clean.starts_with(kernel)) {
            return bad("belongs to the kernel");
        }
        Ok(Self(clean))
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl AsRef<Path> for GuestPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A container's id: it becomes a path component, a cgroup's name and part of messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContainerName(String);

impl ContainerName {
    pub(crate) fn parse(id: &str) -> Result<Self> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.+".contains(&byte);
        let special = OsStr::new(id) == "." || id == "..";
        if id.is_empty() || id.len() > 128 || special || !id.bytes().all(valid) {
            let reason = format!("{id:?} is not 1 to 128 letters, digits or any of _ - . +");
            return Err(Error::Argument { field: "ContainerId", reason });
        }
        Ok(Self(id.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        for path in [
            "",
            "run/x",
            "/",
            "//",
            "/run/../etc",
            "/run/./x",
            "/proc/1/root",
            "/dev/x",
            "/sys",
            "/a\0b",
        ] {
            assert!(GuestPath::parse("MountPath", path).is_err(), "{path:?}");
        }
        let path = GuestPath::parse("MountPath", "/run//gcs/c/").unwrap();
        assert_eq!(path.as_path(), Path::new("/run/gcs/c"));
        assert!(GuestPath::parse("MountPath", "/device/x").is_ok());
    }

    #[test]
    fn ids_are_safe_path_components() {
        for id in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(129)] {
            assert!(ContainerName::parse(id).is_err(), "{id:?}");
        }
        assert!(ContainerName::parse(&"0a".repeat(32)).is_ok());
    }
}
