//! A snapshot's mounts as the layers of a container.
//!
//! | mount of the snapshotter | becomes                                                        |
//! |--------------------------|----------------------------------------------------------------|
//! | `overlay`                | each `lowerdir` an image from the cache; what `upperdir` holds already, one more |
//! | `bind`, read-only        | an image from the cache                                        |
//! | `bind`                   | an image of its own                                            |
//! | `ext4`, `erofs`          | its source, a disk image, as it is                             |
//!
//! The container writes to a disk of its own, which goes with it: the snapshot is not changed.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use linkspan_host::{LayerCache, Layers};
use serde_json::Value;
use tracing::warn;

use crate::error::Error;
use crate::options::Options;

/// Where one layer comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// A directory that never changes.
    Fixed(PathBuf),
    /// A directory that may change, or an image.
    Own(PathBuf),
}

/// The layers of a container's root. Blocks while images are made.
pub(crate) fn layers(mounts: &[Mount], spec: &Value, options: &Options) -> Result<Layers, Error> {
    let sources = match mounts {
        [] => vec![root(spec)?],
        [mount] => sources(mount)?,
        many => {
            let kinds: Vec<&str> = many.iter().map(|mount| mount.type_.as_str()).collect();
            return Err(Error::Unsupported(format!("a root of mounts {}", kinds.join(", "))));
        }
    };
    let cache = LayerCache::open(&options.layer_cache)?;
    if let Err(error) = cache.tidy() {
        warn!(%error, "tidy the cache of layers");
    }
    let paths = sources.into_iter().map(|source| match source {
        Source::Fixed(directory) => Ok(cache.image_of(&directory, options.layers())?),
        Source::Own(path) => Ok(path),
    });
    let paths = paths.collect::<Result<Vec<_>, Error>>()?;
    let mut layers = paths.into_iter();
    let bottom = layers.next().ok_or_else(|| Error::input("rootfs", "has no layers"))?;
    let layers = layers.fold(Layers::of(bottom), Layers::layer);
    Ok(layers.scratch_mib(options.scratch_mib))
}

/// Where the bundle says that its root is, for containers without a snapshot.
fn root(spec: &Value) -> Result<Source, Error> {
    let path = spec["root"]["path"].as_str().unwrap_or_default();
    match path.starts_with('/') {
        true => Ok(Source::Own(path.into())),
        false => {
            let reason = format!("there is no snapshot, and root.path {path:?} is not absolute");
            Err(Error::input("rootfs", reason))
        }
    }
}

/// The layers of one mount, the lowest first.
fn sources(mount: &Mount) -> Result<Vec<Source>, Error> {
    let Mount { type_: kind, source, options, .. } = mount;
    let has = |name: &str| options.iter().any(|option| option == name);
    match kind.as_str() {
        "overlay" => overlay(options),
        "bind" | "rbind" if has("ro") => Ok(vec![Source::Fixed(source.into())]),
        "bind" | "rbind" | "ext4" | "erofs" => Ok(vec![Source::Own(source.into())]),
        other => Err(Error::Unsupported(format!("a root of mount type {other:?} ({source})"))),
    }
}

fn overlay(options: &[String]) -> Result<Vec<Source>, Error> {
    let value =
        |name: &str| options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    let lower =
        value("lowerdir").ok_or_else(|| Error::input("rootfs", "an overlay without lowerdir"))?;
    let mut layers: Vec<Source> = directories(lower).into_iter().rev().map(Source::Fixed).collect();
    if let Some(upper) = value("upperdir").map(Path::new)
        && holds_something(upper)
    {
        layers.push(Source::Own(upper.into()));
    }
    Ok(layers)
}

/// `lowerdir`, the topmost first; a colon in a name has a backslash before it.
fn directories(text: &str) -> Vec<PathBuf> {
    let mut names = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let last = names.len() - 1;
        match character {
            ':' => names.push(String::new()),
            '\\' => names[last].extend(characters.next()),
            other => names[last].push(other),
        }
    }
    names.into_iter().filter(|name| !name.is_empty()).map(PathBuf::from).collect()
}

fn holds_something(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn an_overlays_layers_come_lowest_first_and_an_empty_upper_is_none() {
        let upper = tempfile::tempdir().unwrap();
        let option = format!("upperdir={}", upper.path().display());
        let overlay =
            mount("overlay", "overlay", &["workdir=/w", &option, "lowerdir=/3:/2:/a\\:1"]);
        let fixed = |path: &str| Source::Fixed(path.into());
        assert_eq!(sources(&overlay).unwrap(), [fixed("/a:1"), fixed("/2"), fixed("/3")]);
        std::fs::write(upper.path().join("written"), "before").unwrap();
        let own = Source::Own(upper.path().to_owned());
        assert_eq!(sources(&overlay).unwrap().last(), Some(&own));
    }

    #[test]
    fn only_what_cannot_change_comes_from_the_cache() {
        let of = |kind, options: &[&str]| sources(&mount(kind, "/s", options)).unwrap().remove(0);
        assert_eq!(of("bind", &["ro", "rbind"]), Source::Fixed("/s".into()));
        assert_eq!(of("bind", &["rw", "rbind"]), Source::Own("/s".into()));
        assert_eq!(of("ext4", &["loop"]), Source::Own("/s".into()));
        assert_eq!(root(&json!({"root": {"path": "/r"}})).unwrap(), Source::Own("/r".into()));
    }

    #[test]
    fn a_root_that_cannot_be_had_is_told_with_its_type() {
        let error = sources(&mount("zfs", "tank/x", &[])).unwrap_err().to_string();
        assert!(error.contains("zfs") && error.contains("tank/x"), "{error}");
        assert!(root(&json!({"root": {"path": "rootfs"}})).is_err());
        assert!(sources(&mount("overlay", "overlay", &["upperdir=/u"])).is_err());
    }
}
