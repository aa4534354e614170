//! What a container's root is made of, and the order in which it is put together.
//!
//! A [`Layers`] says what; a [`LayerSource`] is one layer, looked at; a [`LayerPlan`] says how the
//! guest puts them together, as data: it is made without IO, and each of its steps can be taken
//! back.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use linkspan_layer::Kind;
use linkspan_protocol::resource::{
    CombinedLayers, Layer, MappedVirtualDisk, Resource, VerityInfo, VpmemDevice,
};

use crate::attachments::Slot;
use crate::error::Context;
use crate::verity::RootHash;
use crate::vmm::{Disk, ScsiAddress};
use crate::{Error, Result};

/// How large a scratch disk looks to the container unless told otherwise, in MiB. It takes no
/// more room than is written to it.
pub const DEFAULT_SCRATCH_MIB: u64 = 10 << 10;

/// The layers of a container's root, and the size of its writable disk.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The top-most first.
    layers: Vec<(PathBuf, Option<String>)>,
    scratch_mib: u64,
}

impl Layers {
    /// A root of one layer: a directory, a tar archive (compressed or not), or an ext4 image with
    /// or without a VHD footer. It is writable; what is written goes to a scratch disk that ends
    /// with the container.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self { layers: vec![(path.into(), None)], scratch_mib: DEFAULT_SCRATCH_MIB }
    }

    /// Puts a further layer on top.
    #[must_use]
    pub fn layer(mut self, path: impl Into<PathBuf>) -> Self {
        self.layers.insert(0, (path.into(), None));
        self
    }

    /// Pins the root hash of the layer that was named last, as 64 hexadecimal digits. The layer has
    /// to be an image with a dm-verity hash tree. The guest refuses one that has another hash, and
    /// checks every block that it reads.
    #[must_use]
    pub fn pin(mut self, root_hash: impl Into<String>) -> Self {
        if let Some((_, pin)) = self.layers.first_mut() {
            *pin = Some(root_hash.into());
        }
        self
    }

    /// The size of the scratch disk in MiB.
    #[must_use]
    pub fn scratch_mib(mut self, size: u64) -> Self {
        self.scratch_mib = size;
        self
    }

    /// Looks at each layer, and makes the scratch disk. `directories` says whether the machine can
    /// use a directory of this host as it is.
    ///
    /// # Errors
    /// [`Error::Layer`] names the layer.
    pub(crate) fn read(self, directories: bool) -> Result<(Vec<LayerSource>, Disk)> {
        let sources = self.layers.into_iter().map(|(path, pin)| {
            let pin = pin.as_deref().map(RootHash::parse).transpose()?;
            LayerSource::read(path, pin, directories)
        });
        let sources = sources.collect::<Result<_>>()?;
        Ok((sources, scratch_disk(self.scratch_mib)?))
    }
}

/// What is being done with a layer that takes a while.
#[derive(Clone, Copy, Debug)]
pub struct LayerProgress<'a> {
    /// Which.
    pub path: &'a Path,
    /// Bytes of it that have been read.
    pub bytes: u64,
    /// How many there are, where that is known.
    pub total: Option<u64>,
    /// Files that have been made.
    pub entries: u64,
}

/// What makes two layers the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayerKey {
    /// The same bytes, as far as a file's metadata tells, pinned to the same hash.
    File { device: u64, inode: u64, size: u64, modified: (i64, i64), pin: Option<String> },
    /// Nobody else's.
    Own(u64),
}

/// One layer that has been looked at.
#[derive(Debug)]
pub(crate) struct LayerSource {
    pub(crate) key: LayerKey,
    pub(crate) path: PathBuf,
    /// What the guest is to check it against.
    pub(crate) verity: Option<VerityInfo>,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// Visible to the guest under its path.
    Directory,
    /// A disk, so many bytes of this file.
    Image(File, u64),
    /// An image is to be made of it.
    Source,
}

impl LayerSource {
    fn read(path: PathBuf, pin: Option<RootHash>, directories: bool) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let kind = linkspan_layer::detect(&path).map_err(|error| layer_error(&path, error))?;
        let own = || LayerKey::Own(NEXT.fetch_add(1, Ordering::Relaxed));
        let (key, form) = match kind {
            Kind::Directory if directories => {
                let path =
                    std::fs::canonicalize(&path).context(|| format!("find {}", path.display()))?;
                return match pin {
                    None => Ok(Self { key: own(), path, verity: None, form: Form::Directory }),
                    Some(_) => Err(layer_error(&path, "a directory has no root hash to pin")),
                };
            }
            // It can change, and nothing would show it.
            Kind::Directory => (own(), Form::Source),
            kind => {
                let file = File::open(&path).context(|| format!("open {}", path.display()))?;
                let key = LayerKey::of(&file, pin.as_ref())
                    .context(|| format!("look at {}", path.display()))?;
                let form = match kind {
                    Kind::Ext4 { size }
                    | Kind::Erofs { size }
                    | Kind::Vhd { payload_size: size } => Form::Image(file, size),
                    _ => Form::Source,
                };
                (key, form)
            }
        };
        let verity = match (pin, &form) {
            (None, _) => None,
            (Some(pin), Form::Image(file, _)) => {
                let pinned = pin.info(file);
                Some(pinned.map_err(|error| layer_error(&path, error))?)
            }
            (Some(_), _) => {
                let reason =
                    "only an image has a root hash to pin; make one with a hash tree of it";
                return Err(layer_error(&path, reason));
            }
        };
        Ok(Self { key, path, verity, form })
    }

    /// The path under which the guest sees it without more ado.
    pub(crate) fn shared(&self) -> Option<String> {
        matches!(self.form, Form::Directory).then(|| self.path.display().to_string())
    }

    /// Bytes of its disk, where it is one already.
    pub(crate) fn size(&self) -> Option<u64> {
        match self.form {
            Form::Image(_, size) => Some(size),
            _ => None,
        }
    }

    /// The disk to attach; an image is made if it is none, of a multiple of `unit` bytes.
    ///
    /// # Errors
    /// [`Error::Layer`] names the layer.
    pub(crate) fn into_disk(self, unit: u64, progress: &dyn Fn(LayerProgress<'_>)) -> Result<Disk> {
        let (file, size) = match self.form {
            Form::Image(file, size) => (file, size),
            Form::Source | Form::Directory => {
                let file = unnamed_file()?;
                let path = self.path.as_path();
                let report = |done: linkspan_layer::Progress| {
                    let linkspan_layer::Progress { bytes, total, entries } = done;
                    progress(LayerProgress { path, bytes, total, entries });
                };
                let size_multiple = unit;
                let options = linkspan_layer::Options { size_multiple, ..Default::default() };
                let summary = linkspan_layer::build_image(path, &file, options, report)
                    .map_err(|error| layer_error(path, error))?;
                (file, summary.bytes)
            }
        };
        Ok(Disk { file, size, read_only: true })
    }
}

impl LayerKey {
    fn of(file: &File, pin: Option<&RootHash>) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self::File {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            pin: pin.map(|pin| pin.as_str().to_owned()),
        })
    }
}

fn layer_error(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Layer { path: path.display().to_string(), source: source.into() }
}

fn scratch_disk(size_mib: u64) -> Result<Disk> {
    let bad = |reason: String| Error::Option { option: "scratch size", reason };
    let size = size_mib
        .checked_mul(1 << 20)
        .filter(|&size| (16 << 20..=15u64 << 40).contains(&size))
        .ok_or_else(|| bad(format!("{size_mib} MiB is not between 16 MiB and 15 TiB")))?;
    let file = unnamed_file()?;
    linkspan_layer::scratch::format(
        &file,
        size,
        &linkspan_layer::scratch::ScratchOptions::default(),
    )
    .map_err(|error| bad(error.to_string()))?;
    Ok(Disk { file, size, read_only: false })
}

/// A file that is gone with its last descriptor, however this process ends.
fn unnamed_file() -> Result<File> {
    tempfile::tempfile()
        .context(|| format!("make an unnamed file in {} (TMPDIR)", std::env::temp_dir().display()))
}

/// How the guest mounts a layer that is attached.
pub(crate) fn mount_of(slot: Slot, verity: Option<VerityInfo>) -> Resource {
    match slot {
        Slot::Scsi(address) => {
            let mount_path = format!("/run/mounts/scsi/{}_{}", address.controller, address.lun);
            let disk = disk_at(address, mount_path, true);
            MappedVirtualDisk { verity_info: verity, ..disk }.into()
        }
        Slot::Pmem(number) => VpmemDevice {
            device_number: number,
            mount_path: format!("/run/layers/p{number}"),
            mapping_info: None,
            verity_info: verity,
        }
        .into(),
    }
}

/// Where it is mounted then.
pub(crate) fn mount_path(slot: Slot) -> String {
    match mount_of(slot, None) {
        Resource::MappedVirtualDisk(disk) => disk.mount_path,
        Resource::VpmemDevice(device) => device.mount_path,
        _ => String::new(),
    }
}

/// The guest's side of a container's storage, once its layers are mounted.
#[derive(Debug, PartialEq)]
pub(crate) struct LayerPlan {
    pub(crate) scratch: MappedVirtualDisk,
    pub(crate) combined: CombinedLayers,
    pub(crate) bundle: String,
    pub(crate) scratch_directory: String,
}

impl LayerPlan {
    /// `layers` are paths in the guest, the top-most first. `scratch` is the writable disk's slot.
    pub(crate) fn new(container: &str, layers: Vec<String>, scratch: ScsiAddress) -> Self {
        let bundle = format!("/run/gcs/c/{container}");
        let scratch_directory = format!("{bundle}/scratch/{container}");
        let combined = CombinedLayers {
            container_id: container.to_owned(),
            container_root_path: format!("{bundle}/rootfs"),
            layers: layers.into_iter().map(|path| Layer { path, ..Layer::default() }).collect(),
            scratch_path: scratch_directory.clone(),
            ..CombinedLayers::default()
        };
        let scratch = disk_at(scratch, bundle.clone(), false);
        Self { scratch, combined, bundle, scratch_directory }
    }
}

fn disk_at(address: ScsiAddress, mount_path: String, read_only: bool) -> MappedVirtualDisk {
    MappedVirtualDisk {
        mount_path,
        controller: address.controller,
        lun: address.lun,
        read_only,
        options: if read_only { vec!["ro".to_owned()] } else { Vec::new() },
        ..MappedVirtualDisk::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_keeps_the_order_of_layers_and_writes_to_the_scratch() {
        let address = ScsiAddress { controller: 1, lun: 5 };
        let layer = mount_path(Slot::Scsi(ScsiAddress { controller: 1, lun: 4 }));
        assert_eq!(layer, "/run/mounts/scsi/1_4");
        let layers = vec![layer, mount_path(Slot::Pmem(3)), "/srv/base".to_owned()];
        let plan = LayerPlan::new("web", layers, address);
        let disk = plan.scratch;
        assert_eq!(
            (disk.lun, disk.mount_path.as_str(), disk.read_only),
            (5, "/run/gcs/c/web", false)
        );
        let paths: Vec<_> = plan.combined.layers.iter().map(|layer| layer.path.as_str()).collect();
        assert_eq!(paths, ["/run/mounts/scsi/1_4", "/run/layers/p3", "/srv/base"]);
        assert_eq!(plan.combined.container_root_path, "/run/gcs/c/web/rootfs");
        assert_eq!(plan.combined.scratch_path, "/run/gcs/c/web/scratch/web");
    }

    #[test]
    fn the_same_file_is_the_same_layer_until_it_changes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let image = linkspan_layer::scratch::format;
        image(file.as_file(), 1 << 20, &linkspan_layer::scratch::ScratchOptions::default())
            .unwrap();
        let key = || {
            let source = LayerSource::read(file.path().to_owned(), None, false).unwrap();
            source.key
        };
        assert_eq!(key(), key());
        let before = key();
        file.as_file().set_len(2 << 20).unwrap();
        assert_ne!(before, key());
        let directory = tempfile::tempdir().unwrap();
        let of = |path: &Path| LayerSource::read(path.to_owned(), None, false).unwrap().key;
        assert_ne!(of(directory.path()), of(directory.path()), "nothing shows whether it changes");
    }
}
