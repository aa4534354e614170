//! What a container's root is: a container image or a file system, and which.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use linkspan_image::{
    Credentials, Image, LayerForm, Platform, ProcessDefaults, Reference, Registry, RegistryOptions,
    Store, Stored,
};

use crate::control::LayerFile;
use crate::error::{Context, Error};
use crate::options::absolute;
use crate::progress::Progress;

/// Where container images are kept.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoreOptions {
    /// Directory of the image store [default: ~/.local/share/linkspan/store]
    #[arg(long, env = "LINKSPAN_STORE", value_name = "DIR", help_heading = "Images")]
    store: Option<PathBuf>,
}

impl StoreOptions {
    pub(crate) fn open(&self) -> Result<Store, Error> {
        let directory = self.store.clone().or_else(Store::default_directory);
        let directory =
            directory.ok_or_else(|| Error::input("--store", "is needed without HOME"))?;
        Ok(Store::open(absolute(directory)?)?)
    }
}

/// Which image of several, and from where.
#[derive(Args, Clone, Debug)]
pub(crate) struct PullOptions {
    /// The image for this platform [default: linux on this machine's processor]
    #[arg(long, value_name = "OS/ARCH", help_heading = "Images")]
    platform: Option<Platform>,
    /// Speak HTTP without TLS to the registry
    #[arg(long, help_heading = "Images")]
    plain_http: bool,
}

impl PullOptions {
    pub(crate) fn platform(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::of_this_machine)
    }

    pub(crate) fn pull(
        &self,
        store: &Store,
        name: &Reference,
        credentials: Option<Credentials>,
        progress: Progress,
    ) -> Result<Stored, Error> {
        let mut bar = progress.transfer("pulling");
        let options = RegistryOptions { plain_http: self.plain_http, credentials };
        let registry = Registry::of(name, options);
        let platform = self.platform();
        let pulled =
            registry.pull(store, name, &platform, &mut |at| bar.at(at.what, at.bytes, at.total));
        Ok(pulled?)
    }
}

/// A file system of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatName {
    #[default]
    Ext4,
    /// Smaller; the guest's kernel must have it
    Erofs,
}

impl From<FormatName> for linkspan_layer::Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Ext4 => Self::Ext4,
            FormatName::Erofs => Self::Erofs,
        }
    }
}

/// How an image becomes a container's root.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImageOptions {
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pull: PullOptions,
    /// Run this in place of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    pub(crate) entrypoint: Option<String>,
    /// The file system that the image's layers are made into
    #[arg(long, value_enum, default_value_t, help_heading = "Images")]
    layer_format: FormatName,
    /// Let the guest check every block of the layers, by dm-verity with root hashes from here
    #[arg(long, help_heading = "Images")]
    verity: bool,
}

/// A container's root, and what it says about its process.
pub(crate) struct Root {
    pub(crate) layers: Vec<LayerFile>,
    pub(crate) process: ProcessDefaults,
}

impl ImageOptions {
    /// Finds a root by what the user wrote, before a machine is booted for it.
    pub(crate) fn find(&self, root: &Path, progress: Progress) -> Result<Root, Error> {
        match root.metadata() {
            Ok(_) if linkspan_image::is_image(root) => {
                let store = self.store.open()?;
                let stored = import_nameless(&store, root, &self.pull.platform(), progress)?;
                self.prepare(&store, &store.image(&stored.name)?, progress)
            }
            Ok(_) => {
                check(root)?;
                let path = absolute(root.to_owned())?;
                let layers = vec![LayerFile { path, root_hash: None }];
                Ok(Root { layers, process: ProcessDefaults::default() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.by_name(root, progress),
            Err(error) => Err(error).context(|| format!("ROOTFS {}", root.display())),
        }
    }

    fn by_name(&self, root: &Path, progress: Progress) -> Result<Root, Error> {
        let nothing = |more: &str| {
            let reason = format!(
                "{}: there is neither such a file nor an image of that name in the store{more}",
                root.display()
            );
            Error::input("IMAGE", reason)
        };
        let text = root.to_str().filter(|text| !text.starts_with(['/', '.']));
        let text = text.ok_or_else(|| nothing(""))?;
        let store = self.store.open()?;
        let image = match store.image(text) {
            Err(linkspan_image::Error::Unknown(_)) => {
                let name: Reference = text.parse().map_err(|_| nothing(""))?;
                if !names_registry(text) {
                    return Err(nothing(&format!("; `linkspan image pull {text}` fetches one")));
                }
                let stored = self.pull.pull(&store, &name, None, progress)?;
                store.image(&stored.name)?
            }
            found => found?,
        };
        self.prepare(&store, &image, progress)
    }

    fn prepare(&self, store: &Store, image: &Image, progress: Progress) -> Result<Root, Error> {
        let mut bar = progress.transfer("making a file system of");
        let form = LayerForm { format: self.layer_format.into(), verity: self.verity };
        let made = image.prepare(store, form, &mut |at| bar.at(at.what, at.bytes, at.total))?;
        let files = made
            .into_iter()
            .map(|layer| LayerFile { path: layer.path, root_hash: layer.root_hash });
        Ok(Root { layers: files.collect(), process: image.process() })
    }
}

/// An image whose name matters to nobody gets one by its path.
fn import_nameless(
    store: &Store,
    path: &Path,
    platform: &Platform,
    progress: Progress,
) -> Result<Stored, Error> {
    let mut bar = progress.transfer("importing");
    let mut tick = |at: linkspan_image::Progress<'_>| bar.at(at.what, at.bytes, at.total);
    match linkspan_image::import(store, path, None, platform, &mut tick) {
        Err(linkspan_image::Error::NotAnImage { reason, .. }) if reason.contains("--name") => {
            let digest = linkspan_image::Digest::of(
                absolute(path.to_owned())?.as_os_str().as_encoded_bytes(),
            );
            let name = format!("localhost/path/{}:latest", &digest.hex()[..16]);
            let name: Reference =
                name.parse().map_err(|_| Error::input("IMAGE", format!("{name:?} is no name")))?;
            Ok(linkspan_image::import(store, path, Some(&name), platform, &mut tick)?)
        }
        imported => Ok(imported?),
    }
}

/// Whether a name says which registry it is of; others are not pulled unasked.
fn names_registry(name: &str) -> bool {
    name.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
}

/// Says what is wrong with a file system.
fn check(path: &Path) -> Result<(), Error> {
    match linkspan_layer::detect(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            let mut reason = error.to_string();
            if !reason.contains(&*path.to_string_lossy()) {
                reason = format!("{}: {reason}", path.display());
            }
            Err(Error::input("ROOTFS", reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_registry_are_pulled_unasked() {
        for name in ["registry.example/app", "localhost/app:1", "127.0.0.1:5000/a/b"] {
            assert!(names_registry(name), "{name}");
        }
        for name in ["debian:12", "library/debian", "rootfs.tar.gz", "a/b.c"] {
            assert!(!names_registry(name), "{name}");
        }
    }
}
