//! The content store: an OCI image layout, and the file systems made of its layers.
//!
//! ```text
//! oci-layout, index.json     images by name
//! blobs/sha256/HEX           verified: a file gets its name here when its hash is known
//! ingest/HEX                 the beginning of a blob that is being pulled
//! layers/HEX.FORM            file systems, by the hash of the uncompressed layer
//! lock                       held while index.json is changed
//! use                        held by whoever brings blobs in, and alone by whoever removes some
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat, openat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::document::{Descriptor, FULL_NAME, Index, OCI_INDEX, REF_NAME, Top, parse, parse_top};
use crate::error::{At, Error, Result};
use crate::{Digest, Image, Platform, Reference};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const COPY: usize = 256 << 10;

/// A content store in a directory. Several processes may use it.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its full name.
    pub name: String,
    /// Digest of its manifest.
    pub digest: Digest,
    /// What it is for, where that is noted.
    pub platform: Option<Platform>,
}

impl Store {
    /// Opens the store in `root`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::File`] if that cannot be done.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        for part in ["blobs/sha256", "ingest", "layers"] {
            fs::create_dir_all(root.join(part)).at("make", root.join(part))?;
        }
        let store = Self { root };
        let layout = store.root.join("oci-layout");
        if !layout.exists() {
            store.replace(&layout, LAYOUT)?;
        }
        Ok(store)
    }

    /// Where users keep theirs: `$XDG_DATA_HOME/linkspan/store`, or below `~/.local/share`.
    #[must_use]
    pub fn default_directory() -> Option<PathBuf> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let data =
            absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
        Some(data?.join("linkspan/store"))
    }

    /// The file of a blob, whether it is there or not.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn ingest(&self, digest: &Digest) -> PathBuf {
        self.root.join("ingest").join(digest.hex())
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.blob(digest).is_file()
    }

    /// A document. What is in the store was verified when it came, and documents are once more.
    pub(crate) fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob(digest);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::MissingBlob(digest.clone()));
            }
            read => read.at("read", &path)?,
        };
        let found = Digest::of(&bytes);
        match found == *digest {
            true => Ok(bytes),
            false => Err(Error::WrongDigest { expected: digest.clone(), found }),
        }
    }

    /// An unnamed file in the store.
    pub(crate) fn unnamed(&self) -> Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(CWD, &self.root, flags, Mode::from_raw_mode(0o644));
        Ok(file.at("make an unnamed file in", &self.root)?.into())
    }

    /// Gives a file that has none a name, unless that is there already: then it stays.
    pub(crate) fn name(&self, file: &File, path: &Path) -> Result<()> {
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno).at("name", path),
        }
    }

    pub(crate) fn writer(&self) -> Result<BlobWriter<'_>> {
        let file = self.unnamed()?;
        Ok(BlobWriter { store: self, file, hash: Sha256::new(), written: 0 })
    }

    /// While this is held nothing is removed.
    pub(crate) fn in_use(&self) -> Result<File> {
        self.hold(FlockOperation::LockShared)
    }

    fn hold(&self, how: FlockOperation) -> Result<File> {
        let path = self.root.join("use");
        let lock = File::create(&path).at("open", &path)?;
        flock(&lock, how).at("lock", &path)?;
        Ok(lock)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = tempfile::NamedTempFile::new_in(&self.root).at("write in", &self.root)?;
        temporary.as_file().write_all(bytes).at("write", path)?;
        temporary.persist(path).map_err(|error| error.error).at("write", path)?;
        Ok(())
    }

    fn index(&self) -> Result<Index> {
        let path = self.root.join("index.json");
        match fs::read(&path) {
            Ok(bytes) => parse(&path.display().to_string(), &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Index {
                schema_version: 2,
                media_type: OCI_INDEX.to_owned(),
                manifests: Vec::new(),
            }),
            Err(error) => Err(error).at("read", &path),
        }
    }

    /// Changes the index, one process at a time.
    fn change<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let path = self.root.join("lock");
        let lock = File::create(&path).at("open", &path)?;
        flock(&lock, FlockOperation::LockExclusive).at("lock", &path)?;
        let mut index = self.index()?;
        let result = change(&mut index)?;
        let bytes = serde_json::to_vec_pretty(&index).map_err(io::Error::from);
        let path = self.root.join("index.json");
        self.replace(&path, &bytes.at("write", &path)?)?;
        Ok(result)
    }

    /// Gives a manifest a name, which another may have had.
    pub(crate) fn tag(&self, name: &Reference, mut manifest: Descriptor) -> Result<Stored> {
        let name = name.whole();
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag).to_owned();
        manifest.annotations.insert(FULL_NAME.to_owned(), name.clone());
        manifest.annotations.insert(REF_NAME.to_owned(), tag);
        let stored =
            Stored { name, digest: manifest.digest.clone(), platform: manifest.platform.clone() };
        self.change(|index| {
            index.manifests.retain(|other| full_name(other) != Some(&stored.name));
            index.manifests.push(manifest);
            index.manifests.sort_by(|a, b| full_name(a).cmp(&full_name(b)));
            Ok(stored)
        })
    }

    /// All images, by name.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn images(&self) -> Result<Vec<Stored>> {
        let index = self.index()?;
        let stored = index.manifests.into_iter().filter_map(|manifest| {
            let name = full_name(&manifest)?.clone();
            Some(Stored { name, digest: manifest.digest, platform: manifest.platform })
        });
        Ok(stored.collect())
    }

    /// The image of that name, or whose digest starts with these digits (twelve or more).
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none; its documents cannot be read.
    pub fn image(&self, name: &str) -> Result<Image> {
        let stored = self.find(name)?;
        Image::read(self, stored)
    }

    fn find(&self, name: &str) -> Result<Stored> {
        let images = self.images()?;
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let by_digest = digits.len() >= 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let full = name.parse::<Reference>().map(|reference| reference.whole()).ok();
        let found = images.into_iter().find(|image| {
            Some(&image.name) == full.as_ref()
                || (by_digest && image.digest.hex().starts_with(digits))
        });
        found.ok_or_else(|| Error::Unknown(name.to_owned()))
    }

    /// Forgets an image, and removes what no other image needs. Returns the bytes set free.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none of that name; files cannot be removed.
    pub fn remove(&self, name: &str) -> Result<u64> {
        let _alone = self.hold(FlockOperation::LockExclusive)?;
        let stored = self.find(name)?;
        self.change(|index| {
            index.manifests.retain(|manifest| full_name(manifest) != Some(&stored.name));
            self.sweep(index)
        })
    }

    /// Removes all blobs and layers that the index does not lead to.
    fn sweep(&self, index: &Index) -> Result<u64> {
        let mut needed = BTreeSet::new();
        let mut layers = BTreeSet::new();
        for manifest in &index.manifests {
            needed.insert(manifest.digest.hex().to_owned());
            let what = format!("manifest {}", manifest.digest);
            let Top::Manifest(found) = parse_top(&what, &self.read(&manifest.digest)?)? else {
                continue;
            };
            needed.insert(found.config.digest.hex().to_owned());
            needed.extend(found.layers.iter().map(|layer| layer.digest.hex().to_owned()));
            let config: crate::document::Config =
                parse("an image's configuration", &self.read(&found.config.digest)?)?;
            layers.extend(config.rootfs.diff_ids.iter().map(|layer| layer.hex().to_owned()));
        }
        let blobs = remove_others(&self.root.join("blobs/sha256"), &needed)?;
        Ok(blobs + remove_others(&self.layers(), &layers)?)
    }
}

/// Removes the files of a directory whose names up to a dot are not in `keep`.
fn remove_others(directory: &Path, keep: &BTreeSet<String>) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut freed = 0;
    for entry in fs::read_dir(directory).at("read", directory)? {
        let entry = entry.at("read", directory)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if keep.contains(name.split('.').next().unwrap_or_default()) {
            continue;
        }
        let size = entry.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        match fs::remove_file(entry.path()) {
            Ok(()) => freed += size,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("remove", entry.path()),
        }
    }
    Ok(freed)
}

fn full_name(manifest: &Descriptor) -> Option<&String> {
    manifest.annotations.get(FULL_NAME)
}

/// A blob on its way in: a file without a name until its hash is known.
pub(crate) struct BlobWriter<'s> {
    store: &'s Store,
    file: File,
    hash: Sha256,
    written: u64,
}

impl BlobWriter<'_> {
    /// Takes all of `reader`; `tick` is told the bytes so far.
    pub(crate) fn copy(&mut self, mut reader: impl Read, tick: &mut dyn FnMut(u64)) -> Result<()> {
        let mut buffer = vec![0; COPY];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).at("read a blob for", &self.store.root),
            };
            self.hash.update(&buffer[..count]);
            self.file.write_all(&buffer[..count]).at("write a blob in", &self.store.root)?;
            self.written += count as u64;
            tick(self.written);
        }
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Names the blob by its hash, if that is the one expected.
    pub(crate) fn finish(self, expected: Option<&Digest>) -> Result<Digest> {
        let found = Digest::finish(self.hash);
        if let Some(expected) = expected
            && found != *expected
        {
            return Err(Error::WrongDigest { expected: expected.clone(), found });
        }
        self.store.name(&self.file, &self.store.blob(&found))?;
        Ok(found)
    }
}
