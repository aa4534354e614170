//! Images of directories that never change, kept from one machine to the next.
//!
//! Who unpacks container images into directories (containerd's snapshots, say) promises that a
//! layer's directory is never changed again. Its image is then made once, and found by what the
//! directory is: device, inode, and when that was made and last changed.
//!
//! ```text
//! <directory>/<key>.img      an image, complete as soon as it has its name
//! <directory>/<key>.source   the path of its directory: when that is no more, both go;
//!                            locked by whoever makes the image, or removes it
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use linkspan_layer::Options;
use rustix::fs::{AtFlags, CWD, FlockOperation, Statx, StatxFlags, flock, linkat, statx};
use rustix::io::Errno;

use crate::error::Context;
use crate::{Error, Result};

/// A directory of images.
#[derive(Clone, Debug)]
pub struct LayerCache {
    directory: PathBuf,
}

impl LayerCache {
    /// The cache in that directory, which is made if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        fs::create_dir_all(&directory).context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// The image of a directory that nobody changes any more; it is made first if it is not there.
    /// Blocks until it is, also where another process is making it.
    ///
    /// # Errors
    /// [`Error::Layer`] names the directory. Nothing half made is left.
    pub fn image_of(&self, layer: &Path, options: Options) -> Result<PathBuf> {
        let what = || format!("look at {}", layer.display());
        let layer = fs::canonicalize(layer).context(what)?;
        let key = key(&layer, &options).context(what)?;
        let image = self.directory.join(format!("{key}.img"));
        if image.exists() {
            return Ok(image);
        }
        let source = self.directory.join(format!("{key}.source"));
        let held = locked(&source).context(|| format!("lock {}", source.display()))?;
        if !image.exists() {
            let made = note(&held, &layer)
                .map_err(Into::into)
                .and_then(|()| self.make(&layer, &image, options));
            if let Err(cause) = made {
                let _ = fs::remove_file(&source);
                return Err(Error::Layer { path: layer.display().to_string(), source: cause });
            }
        }
        Ok(image)
    }

    /// The image has no name before it is complete: nothing half made can be left behind.
    fn make(
        &self,
        layer: &Path,
        image: &Path,
        options: Options,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let file = tempfile::tempfile_in(&self.directory)?;
        linkspan_layer::build_image(layer, &file, options, |_| {})?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, unnamed, CWD, image, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the images of directories that are not there any more, but those that are being
    /// made. One that is in use stays in use: a machine has it open.
    ///
    /// # Errors
    /// When the cache cannot be listed.
    pub fn tidy(&self) -> Result<()> {
        let what = || format!("list {}", self.directory.display());
        for entry in fs::read_dir(&self.directory).context(what)?.flatten() {
            let source = entry.path();
            if source.extension().is_none_or(|extension| extension != "source") {
                continue;
            }
            let Some((_held, layer)) = unused(&source) else { continue };
            if !layer.exists() {
                let _ = fs::remove_file(source.with_extension("img"));
                let _ = fs::remove_file(source);
            }
        }
        Ok(())
    }
}

/// Opens and locks a file that others may make, lock and remove: waits for them.
fn locked(path: &Path) -> io::Result<File> {
    loop {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// Locks a `.source` that nobody else has locked, and reads it. `None` also where its writer was
/// lost before it wrote.
fn unused(source: &Path) -> Option<(File, PathBuf)> {
    let mut file = File::open(source).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    let mut layer = Vec::new();
    file.read_to_end(&mut layer).ok()?;
    let told = !layer.is_empty() && is_at(&file, source).ok()?;
    told.then(|| (file, OsStr::from_bytes(&layer).into()))
}

/// Whether that is still the file of that name: one that was removed can be locked all the same.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a layer's path in the place of what a lost writer has left.
fn note(mut file: &File, layer: &Path) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(layer.as_os_str().as_bytes())
}

/// What a directory is, as a file name. Inode numbers are used again, times are not.
fn key(layer: &Path, options: &Options) -> io::Result<String> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let Statx { stx_dev_major, stx_dev_minor, stx_ino, stx_btime, stx_ctime, .. } =
        statx(CWD, layer, AtFlags::empty(), wanted)?;
    let mut hasher = DefaultHasher::new();
    (stx_btime.tv_sec, stx_btime.tv_nsec, stx_ctime.tv_sec, stx_ctime.tv_nsec).hash(&mut hasher);
    (layer, format!("{options:?}"), env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    let times = hasher.finish();
    Ok(format!("{stx_dev_major:x}-{stx_dev_minor:x}-{stx_ino:x}-{times:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(within: &Path, name: &str) -> PathBuf {
        let layer = within.join(name);
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("file"), name).unwrap();
        layer
    }

    #[test]
    fn an_image_is_made_once_and_goes_with_its_directory() {
        let place = tempfile::tempdir().unwrap();
        let cache = LayerCache::open(place.path().join("cache")).unwrap();
        let layer = layer(place.path(), "layer");
        let image = cache.image_of(&layer, Options::default()).unwrap();
        let made = fs::metadata(&image).unwrap().modified().unwrap();
        assert_eq!(cache.image_of(&layer, Options::default()).unwrap(), image);
        assert_eq!(fs::metadata(&image).unwrap().modified().unwrap(), made);
        cache.tidy().unwrap();
        assert!(image.exists());
        fs::remove_dir_all(&layer).unwrap();
        cache.tidy().unwrap();
        assert_eq!(fs::read_dir(place.path().join("cache")).unwrap().count(), 0);
    }

    #[test]
    fn many_may_want_the_same_layer_while_others_tidy() {
        let place = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let cache = LayerCache::open(place.path().join(format!("cache-{round}"))).unwrap();
            let layer = layer(place.path(), &round.to_string());
            let together = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for number in 0..8 {
                    let (cache, layer, together) = (&cache, &layer, &together);
                    scope.spawn(move || {
                        together.wait();
                        for _ in 0..20 {
                            if number % 2 == 0 {
                                let image = cache.image_of(layer, Options::default()).unwrap();
                                assert!(image.exists());
                            } else {
                                cache.tidy().unwrap();
                            }
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn another_directory_in_the_same_place_is_another_layer() {
        let place = tempfile::tempdir().unwrap();
        let cache = LayerCache::open(place.path().join("cache")).unwrap();
        let first = layer(place.path(), "layer");
        let image = cache.image_of(&first, Options::default()).unwrap();
        fs::rename(&first, place.path().join("aside")).unwrap();
        let second = layer(place.path(), "layer");
        assert_ne!(cache.image_of(&second, Options::default()).unwrap(), image);
    }

    #[test]
    fn a_layer_that_cannot_be_made_leaves_nothing_and_is_named() {
        let place = tempfile::tempdir().unwrap();
        let cache = LayerCache::open(place.path().join("cache")).unwrap();
        let layer = layer(place.path(), "layer");
        fs::write(layer.join("large"), vec![1; 1 << 20]).unwrap();
        let small = Options { max_size: 512 << 10, ..Options::default() };
        let error = cache.image_of(&layer, small).unwrap_err().to_string();
        assert!(error.contains(&layer.display().to_string()), "{error}");
        assert_eq!(fs::read_dir(place.path().join("cache")).unwrap().count(), 0);
    }
}
