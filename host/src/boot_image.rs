//! Where boot images lie.

use std::env;
use std::path::{Path, PathBuf};

use crate::{Backend, Error, Result};

/// The directory of a boot image that suits the backend: the one that was named, or the first of
/// those where they usually are.
///
/// # Errors
/// [`Error::NoImage`] says where it was looked for, and what an image has to hold.
pub fn find(named: Option<&Path>, backend: Backend) -> Result<PathBuf> {
    let places = match named {
        Some(path) => vec![path.to_owned()],
        None => places(|name| env::var_os(name).map(PathBuf::from), env::current_exe().ok()),
    };
    let suits = |place: &&PathBuf| match backend {
        Backend::Qemu => {
            let kernel = ["vmlinux", "vmlinuz"].iter().any(|name| place.join(name).is_file());
            kernel && place.join("initrd").is_file()
        }
        Backend::Loopback => place.join("agent").is_file(),
    };
    if let Some(place) = places.iter().find(suits) {
        return Ok(place.clone());
    }
    let (backend, needs) = match backend {
        Backend::Qemu => ("qemu", "vmlinux or vmlinuz, and initrd"),
        Backend::Loopback => ("loopback", "agent"),
    };
    Err(Error::NoImage { backend, needs, places })
}

/// Where images are put unless told otherwise.
pub fn default_directory() -> Option<PathBuf> {
    user_directory(|name| env::var_os(name).map(PathBuf::from))
}

fn user_directory(environment: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let data = environment("XDG_DATA_HOME").filter(|path| path.is_absolute());
    let home = || environment("HOME").map(|home| home.join(".local/share"));
    Some(data.or_else(home)?.join("linkspan/image"))
}

fn places(
    environment: impl Fn(&str) -> Option<PathBuf>,
    executable: Option<PathBuf>,
) -> Vec<PathBuf> {
    let mut places = Vec::new();
    // In a checkout, its own image goes before an installed one.
    if let Some(executable) = executable {
        let targets = executable.ancestors().filter(|path| path.ends_with("target"));
        places.extend(targets.map(|target| target.join("linkspan/image")));
    }
    places.extend(user_directory(&environment));
    let home = environment("HOME").map(|home| home.join(".local/share/linkspan/image"));
    places.extend(home.filter(|home| !places.contains(home)));
    places.push(PathBuf::from("/usr/share/linkspan/image"));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_goes_before_the_user_and_the_user_before_the_system() {
        let environment = |name: &str| match name {
            "HOME" => Some("/home/a".into()),
            "XDG_DATA_HOME" => Some("/data".into()),
            _ => None,
        };
        let places = places(environment, Some("/src/target/debug/linkspan".into()));
        let expected = [
            "/src/target/linkspan/image",
            "/data/linkspan/image",
            "/home/a/.local/share/linkspan/image",
            "/usr/share/linkspan/image",
        ];
        assert_eq!(places, expected.map(PathBuf::from));
    }

    #[test]
    fn an_image_that_was_named_is_the_only_one_looked_at() {
        let empty = tempfile::tempdir().unwrap();
        let error = find(Some(empty.path()), Backend::Loopback).unwrap_err();
        assert!(matches!(error, Error::NoImage { places, .. } if places == [empty.path()]));
    }
}
