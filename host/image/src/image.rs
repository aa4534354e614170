//! One image of the store, and the file systems of its layers.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use linkspan_layer::verity::VerityOptions;
use linkspan_layer::{Format, LayerBuilder, Options};

use crate::digest::Hashing;
use crate::document::{Config, Descriptor, Manifest, Top, parse, parse_top};
use crate::error::{At, Error, Result};
use crate::store::{Store, Stored};
use crate::{Digest, Platform, ProcessDefaults, Progress};

/// An image whose documents are read.
#[derive(Debug, Clone)]
pub struct Image {
    stored: Stored,
    layers: Vec<Descriptor>,
    config: Config,
}

/// How layers are made into file systems.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerForm {
    /// The file system.
    pub format: Format,
    /// With a dm-verity tree, whose root hash is noted beside it.
    pub verity: bool,
}

/// A layer as a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerImage {
    /// The image file.
    pub path: PathBuf,
    /// Root hash of its tree, if it has one: 64 hexadecimal digits.
    pub root_hash: Option<String>,
}

impl Image {
    pub(crate) fn read(store: &Store, stored: Stored) -> Result<Self> {
        let what = format!("manifest {}", stored.digest);
        let manifest = match parse_top(&what, &store.read(&stored.digest)?)? {
            Top::Manifest(manifest) => manifest,
            Top::Index(_) => return Err(Error::document(what, "it is a list of images")),
        };
        let config = check(store, &manifest)?;
        Ok(Self { stored, layers: manifest.layers, config })
    }

    /// Its full name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.stored.name
    }

    /// Digest of its manifest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.stored.digest
    }

    /// What it runs on.
    #[must_use]
    pub fn platform(&self) -> Platform {
        platform(&self.config)
    }

    /// When it was made, as it says.
    #[must_use]
    pub fn created(&self) -> Option<&str> {
        self.config.created.as_deref()
    }

    /// Digests and sizes in bytes of its layers as they came, the lowest first.
    pub fn layers(&self) -> impl Iterator<Item = (&Digest, u64)> {
        self.layers.iter().map(|layer| (&layer.digest, layer.size))
    }

    /// What it says about its process.
    #[must_use]
    pub fn process(&self) -> ProcessDefaults {
        self.config.config.clone().unwrap_or_default()
    }

    /// File systems of all layers, the lowest first. Those that are not there yet are made: each is
    /// checked against the hash of its uncompressed contents, and gets its name when it is finished.
    ///
    /// # Errors
    /// [`Error::Layer`] if a layer is no archive of a file system, [`Error::WrongDigest`] if it is
    /// not what the configuration says.
    pub fn prepare(
        &self,
        store: &Store,
        form: LayerForm,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<LayerImage>> {
        let _in_use = store.in_use()?;
        let layers = self.layers.iter().zip(&self.config.rootfs.diff_ids);
        layers.map(|(blob, diff)| prepare(store, blob, diff, form, progress)).collect()
    }
}

pub(crate) fn platform(config: &Config) -> Platform {
    Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        variant: config.variant.clone(),
    }
}

/// Reads the configuration that goes with a manifest.
pub(crate) fn check(store: &Store, manifest: &Manifest) -> Result<Config> {
    let what = format!("configuration {}", manifest.config.digest);
    let config: Config = parse(&what, &store.read(&manifest.config.digest)?)?;
    let (layers, diffs) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers != diffs {
        let reason = format!("rootfs.diff_ids has {diffs} entries, the manifest {layers} layers");
        return Err(Error::document(what, reason));
    }
    if layers == 0 {
        return Err(Error::document(what, "rootfs.diff_ids is empty: there is nothing to run"));
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| layer.media_type.contains("foreign")) {
        let reason = format!("layer {} may not be distributed", layer.digest);
        return Err(Error::document(what, reason));
    }
    Ok(config)
}

fn prepare(
    store: &Store,
    blob: &Descriptor,
    diff: &Digest,
    form: LayerForm,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<LayerImage> {
    let kind = match form.format {
        Format::Erofs => "erofs",
        _ => "ext4",
    };
    let name = |ending: &str| store.layers().join(format!("{}{ending}", diff.hex()));
    if !form.verity {
        let path = name(&format!(".{kind}"));
        if !path.is_file() {
            let (file, _) = build(store, blob, diff, form, progress)?;
            store.name(&file, &path)?;
        }
        return Ok(LayerImage { path, root_hash: None });
    }
    let (path, noted) = (name(&format!(".verity.{kind}")), name(&format!(".verity.{kind}.root")));
    if !path.is_file() || !noted.is_file() {
        let (file, root) = build(store, blob, diff, form, progress)?;
        // The same layer gives the same tree, whoever is first.
        let note = store.unnamed()?;
        io::Write::write_all(&mut &note, root.unwrap_or_default().as_bytes())
            .at("write", &noted)?;
        store.name(&note, &noted)?;
        store.name(&file, &path)?;
    }
    let root = fs::read_to_string(&noted).at("read", &noted)?;
    Ok(LayerImage { path, root_hash: Some(root) })
}

/// Layers are of a multiple of this many bytes, so that they can be persistent memory of a guest.
/// What is behind their contents is a hole.
const PIECE: u64 = 2 << 20;

fn build(
    store: &Store,
    blob: &Descriptor,
    diff: &Digest,
    form: LayerForm,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(File, Option<String>)> {
    let path = store.blob(&blob.digest);
    let tar = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::MissingBlob(blob.digest.clone()));
        }
        opened => opened.at("open", &path)?,
    };
    let layer = |cause| Error::Layer { layer: blob.digest.clone(), cause };
    let out = store.unnamed()?;
    let options = Options {
        whiteouts: true,
        format: form.format,
        verity: form.verity.then(VerityOptions::default),
        ..Options::default()
    };
    let name = blob.digest.to_string();
    let counted = Counted {
        inner: tar,
        bytes: 0,
        report: |bytes| {
            progress(Progress { what: &name, bytes, total: Some(blob.size) });
        },
    };
    let mut plain = Hashing::new(linkspan_layer::decompress(counted).at("read", &path)?);
    let mut builder = LayerBuilder::new(&out, options).map_err(layer)?;
    builder.add_tar(&name, &mut plain).map_err(layer)?;
    io::copy(&mut plain, &mut io::sink()).at("read", &path)?;
    let found = plain.finish();
    if found != *diff {
        return Err(Error::WrongDigest { expected: diff.clone(), found });
    }
    let summary = builder.finish().map_err(layer)?;
    out.set_len(summary.bytes.next_multiple_of(PIECE)).at("write a layer for", &path)?;
    Ok((out, summary.verity.map(|verity| verity.root_hex())))
}

/// Tells how much was read.
struct Counted<R, F> {
    inner: R,
    bytes: u64,
    report: F,
}

impl<R: io::Read, F: FnMut(u64)> io::Read for Counted<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        (self.report)(self.bytes);
        Ok(count)
    }
}
