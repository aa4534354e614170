//! Images from files into the store.

use std::fs::File;
use std::io;
use std::path::Path;

use linkspan_layer::Kind;

use crate::archive::{Archive, Saved};
use crate::blob::{self, Source};
use crate::digest::Hashing;
use crate::document::{
    Config, Descriptor, FULL_NAME, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
    ProcessDefaults, REF_NAME, RootFs, Top, parse, parse_top,
};
use crate::error::{At, Error, Result};
use crate::image::{check, platform};
use crate::layout::Layout;
use crate::store::{Store, Stored};
use crate::{Platform, Progress, Reference};

/// Longest chain of lists of images.
const MAX_DEPTH: usize = 4;

/// Takes in what `path` holds: an OCI image layout (a directory, or a tar of one), an archive of
/// `docker save`, or a root file system as tar. `name` is needed where the source has none, and
/// chooses among several images if it is that of one.
///
/// # Errors
/// Blobs that are missing or not what their digests say; documents that do not parse; no image
/// for `platform`; no name.
pub fn import(
    store: &Store,
    path: &Path,
    name: Option<&Reference>,
    platform: &Platform,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Stored> {
    let _in_use = store.in_use()?;
    let not_one = |reason: String| Error::NotAnImage { path: path.to_owned(), reason };
    if path.is_dir() {
        if !Layout::is_one(path) {
            let reason = "it is a directory, but no OCI image layout (oci-layout, index.json); \
                          for a root file system, import a tar of it, or run it as it is";
            return Err(not_one(reason.to_owned()));
        }
        let (layout, index) = Layout::open(path)?;
        return from_index(store, &layout, index, path, name, platform, progress);
    }
    match linkspan_layer::detect(path).map_err(|error| not_one(said(&error)))? {
        Kind::Tar(_) => {}
        _ => return Err(not_one("it is no tar archive; run it as it is".to_owned())),
    }
    // The members of a root file system are too many to be listed, and it is none of the others.
    match Archive::open(path) {
        Ok(archive) if archive.has("index.json") && archive.has("oci-layout") => {
            let index = parse("index.json", &archive.document("index.json")?)?;
            from_index(store, &archive, index, path, name, platform, progress)
        }
        Ok(archive) if archive.has("manifest.json") => {
            from_saved(store, &archive, path, name, progress)
        }
        Ok(_) | Err(Error::NotAnImage { .. }) => from_root(store, path, name, platform, progress),
        Err(error) => Err(error),
    }
}

/// Whether `path` holds an image, and not a root file system: an OCI image layout, or an archive,
/// not compressed, that begins as those of images do.
#[must_use]
pub fn is_image(path: &Path) -> bool {
    match path.is_dir() {
        true => Layout::is_one(path),
        false => Archive::begins_like_one(path).unwrap_or(false),
    }
}

fn said(error: &linkspan_layer::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

fn from_index(
    store: &Store,
    source: &dyn Source,
    index: Index,
    path: &Path,
    name: Option<&Reference>,
    platform: &Platform,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Stored> {
    let names = |image: &Descriptor| -> Vec<String> {
        let annotation = |key: &str| image.annotations.get(key).cloned();
        [annotation(FULL_NAME), annotation(REF_NAME)].into_iter().flatten().collect()
    };
    let wanted = name.map(Reference::whole);
    let is_wanted = |image: &&Descriptor| {
        let named = names(image).into_iter().filter_map(|name| name.parse::<Reference>().ok());
        wanted.as_ref().is_some_and(|wanted| named.map(|name| name.whole()).any(|n| n == *wanted))
    };
    let chosen = index.manifests.iter().find(is_wanted);
    let labels: Vec<_> = index.manifests.iter().map(names).collect();
    let several = labels.iter().flatten().collect::<std::collections::BTreeSet<_>>().len() > 1
        && labels.iter().filter(|names| !names.is_empty()).count() > 1;
    let chosen = match (chosen, several) {
        (Some(chosen), _) => Some(chosen),
        (None, true) => {
            let names: Vec<_> = labels.into_iter().filter_map(|n| n.into_iter().next()).collect();
            let reason = format!("it holds several images; name one of {}", names.join(", "));
            return Err(Error::NotAnImage { path: path.to_owned(), reason });
        }
        (None, false) => None,
    };
    let full = chosen.or(index.manifests.first()).and_then(|image| {
        image.annotations.get(FULL_NAME).and_then(|name| name.parse::<Reference>().ok())
    });
    let name = name.cloned().or(full).ok_or_else(|| Error::NotAnImage {
        path: path.to_owned(),
        reason: "it does not say its name; give one with --name".to_owned(),
    })?;
    let top = match chosen {
        Some(image) if !matches!(&image.platform, Some(of) if !platform.takes(of)) => {
            Index { manifests: vec![image.clone()], ..index }
        }
        _ => index,
    };
    resolve(store, source, top, &name, platform, progress)
}

/// From a list of images to the one for a platform, and all of that into the store.
pub(crate) fn resolve(
    store: &Store,
    source: &dyn Source,
    mut index: Index,
    name: &Reference,
    platform: &Platform,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Stored> {
    for _ in 0..MAX_DEPTH {
        let chosen = choose(&index, name, platform)?;
        let what = format!("manifest {}", chosen.digest);
        match parse_top(&what, &blob::document(source, store, chosen, progress)?)? {
            Top::Index(next) => index = next,
            Top::Manifest(manifest) => {
                let chosen = chosen.clone();
                return complete(store, source, &chosen, &manifest, name, platform, progress);
            }
        }
    }
    Err(Error::document(name.whole(), "lists of images lead to one another"))
}

fn choose<'i>(index: &'i Index, name: &Reference, platform: &Platform) -> Result<&'i Descriptor> {
    let fits = |image: &&Descriptor| image.platform.as_ref().is_some_and(|of| platform.takes(of));
    // Where it is not said what an image is for, its configuration will tell.
    let silent = |image: &&Descriptor| image.platform.is_none();
    let images = || index.manifests.iter();
    images().find(fits).or_else(|| images().find(silent)).ok_or_else(|| {
        let found = images().filter_map(|image| image.platform.as_ref()).map(Platform::to_string);
        let found = found.filter(|platform| platform != "unknown/unknown").collect::<Vec<_>>();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        Error::NoPlatform { image: name.whole(), wanted: platform.to_string(), found }
    })
}

fn complete(
    store: &Store,
    source: &dyn Source,
    descriptor: &Descriptor,
    manifest: &Manifest,
    name: &Reference,
    wanted: &Platform,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Stored> {
    blob::document(source, store, &manifest.config, progress)?;
    let config = check(store, manifest)?;
    let found = platform(&config);
    if !wanted.takes(&found) {
        let (wanted, found) = (wanted.to_string(), found.to_string());
        return Err(Error::NoPlatform { image: name.whole(), wanted, found });
    }
    for layer in &manifest.layers {
        if !store.has(&layer.digest) {
            source.fetch(store, layer, progress)?;
        }
    }
    let mut descriptor = descriptor.clone();
    descriptor.platform = Some(found);
    store.tag(name, descriptor)
}

/// What `docker save` wrote before it wrote OCI layouts: configurations and layers by path.
fn from_saved(
    store: &Store,
    archive: &Archive,
    path: &Path,
    name: Option<&Reference>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Stored> {
    let images: Vec<Saved> = parse("manifest.json", &archive.document("manifest.json")?)?;
    let not_one = |reason: String| Error::NotAnImage { path: path.to_owned(), reason };
    let tags = |image: &Saved| -> Vec<Reference> {
        let tags = image.repo_tags.iter().flatten();
        tags.filter_map(|tag| tag.parse().ok()).collect()
    };
    let named = name.and_then(|name| {
        images.iter().find(|image| tags(image).iter().any(|tag| tag.whole() == name.whole()))
    });
    let image = match (named, images.as_slice()) {
        (Some(image), _) | (None, [image]) => image,
        (None, []) => return Err(not_one("its manifest.json names no image".to_owned())),
        (None, several) => {
            let names: Vec<_> = several.iter().flat_map(tags).map(|tag| tag.whole()).collect();
            let reason = format!("it holds several images; name one of {}", names.join(", "));
            return Err(not_one(reason));
        }
    };
    let name = name.cloned().or_else(|| tags(image).into_iter().next());
    let name =
        name.ok_or_else(|| not_one("it does not say its name; give one with --name".to_owned()))?;
    let config_bytes = archive.document(&image.config)?;
    let config: Config = parse(&image.config, &config_bytes)?;
    let diffs = &config.rootfs.diff_ids;
    if diffs.len() != image.layers.len() {
        let (layers, diffs) = (image.layers.len(), diffs.len());
        let reason = format!("rootfs.diff_ids has {diffs} entries, manifest.json {layers} layers");
        return Err(Error::document(image.config.clone(), reason));
    }
    let mut layers = Vec::new();
    for layer in &image.layers {
        let (reader, size) = archive.member(layer)?;
        let mut writer = store.writer()?;
        writer.copy(reader, &mut |bytes| {
            progress(Progress { what: layer, bytes, total: Some(size) });
        })?;
        // Its contents are checked against the configuration when a file system is made of it.
        layers.push(Descriptor::new(OCI_LAYER, writer.finish(None)?, size));
    }
    put_image(store, &name, &config, &config_bytes, layers)
}

/// A root file system becomes an image of one layer that says nothing about its process.
fn from_root(
    store: &Store,
    path: &Path,
    name: Option<&Reference>,
    platform: &Platform,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Stored> {
    let name = name.ok_or_else(|| Error::NotAnImage {
        path: path.to_owned(),
        reason: "a root file system has no name; give one with --name".to_owned(),
    })?;
    let file = File::open(path).at("open", path)?;
    let size = file.metadata().at("read", path)?.len();
    let what = path.display().to_string();
    let mut writer = store.writer()?;
    writer.copy(file, &mut |bytes| {
        progress(Progress { what: &what, bytes, total: Some(size) });
    })?;
    let size = writer.written();
    let blob = writer.finish(None)?;
    let stored = store.blob(&blob);
    let plain = linkspan_layer::decompress(File::open(&stored).at("open", &stored)?);
    let mut plain = Hashing::new(plain.at("uncompress", path)?);
    io::copy(&mut plain, &mut io::sink()).at("uncompress", path)?;
    let config = Config {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        created: None,
        config: Some(ProcessDefaults::default()),
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![plain.finish()] },
    };
    let bytes = serde_json::to_vec(&config).map_err(io::Error::from).at("describe", path)?;
    put_image(store, name, &config, &bytes, vec![Descriptor::new(OCI_LAYER, blob, size)])
}

fn put_image(
    store: &Store,
    name: &Reference,
    config: &Config,
    config_bytes: &[u8],
    layers: Vec<Descriptor>,
) -> Result<Stored> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: blob::put(store, OCI_CONFIG, config_bytes)?,
        layers,
    };
    check(store, &manifest)?;
    let bytes = serde_json::to_vec(&manifest).map_err(io::Error::from);
    let mut descriptor = blob::put(store, OCI_MANIFEST, &bytes.at("describe", name.whole())?)?;
    descriptor.platform = Some(platform(config));
    store.tag(name, descriptor)
}
