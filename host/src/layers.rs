//! What a container's root is made of, and the order in which it is put together.
//!
//! A [`Layers`] says what; a [`LayerPlan`] says how, as data: it is made without IO and carried
//! out step by step, each of which can be taken back.

use std::fs::File;
use std::path::{Path, PathBuf};

use linkspan_layer::Kind;
use linkspan_protocol::resource::{CombinedLayers, Layer, MappedVirtualDisk};

use crate::error::Context;
use crate::vmm::{Disk, ScsiAddress};
use crate::{Error, Result};

/// How large a scratch disk looks to the container unless told otherwise, in MiB. It takes no
/// more room than is written to it.
pub const DEFAULT_SCRATCH_MIB: u64 = 10 << 10;

/// The layers of a container's root, and the size of its writable disk.
#[derive(Clone, Debug)]
pub struct Layers {
    layers: Vec<PathBuf>,
    scratch_mib: Option<u64>,
}

impl Layers {
    /// A root of one layer: a directory, a tar archive (compressed or not), or an ext4 image with
    /// or without a VHD footer. It is writable; what is written goes to a scratch disk that ends
    /// with the container.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self { layers: vec![path.into()], scratch_mib: Some(DEFAULT_SCRATCH_MIB) }
    }

    /// Puts a further layer on top.
    #[must_use]
    pub fn layer(mut self, path: impl Into<PathBuf>) -> Self {
        self.layers.insert(0, path.into());
        self
    }

    /// The size of the scratch disk in MiB.
    #[must_use]
    pub fn scratch_mib(mut self, size: u64) -> Self {
        self.scratch_mib = Some(size);
        self
    }

    /// Looks at each layer, and makes images of those that are none. `directories` says whether
    /// the machine can use a directory of this host as it is.
    ///
    /// # Errors
    /// [`Error::Layer`] names the layer.
    pub(crate) fn prepare(
        self,
        directories: bool,
        progress: &dyn Fn(LayerProgress<'_>),
    ) -> Result<Prepared> {
        let mut sources = Vec::new();
        for path in self.layers {
            sources.push(prepare_one(&path, directories, progress)?);
        }
        let scratch = self.scratch_mib.map(scratch_disk).transpose()?;
        Ok(Prepared { sources, scratch })
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

/// Layers in a form that a machine can take; the top-most first.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) sources: Vec<Source>,
    pub(crate) scratch: Option<Disk>,
}

/// One layer.
#[derive(Debug)]
pub(crate) enum Source {
    /// To be attached and mounted.
    Disk(Disk),
    /// Visible to the guest under this very path.
    Directory(PathBuf),
}

fn prepare_one(
    path: &Path,
    directories: bool,
    progress: &dyn Fn(LayerProgress<'_>),
) -> Result<Source> {
    let layer_error = |source: Box<dyn std::error::Error + Send + Sync>| Error::Layer {
        path: path.display().to_string(),
        source,
    };
    match linkspan_layer::detect(path).map_err(|error| layer_error(error.into()))? {
        Kind::Directory if directories => {
            let path =
                std::fs::canonicalize(path).context(|| format!("find {}", path.display()))?;
            Ok(Source::Directory(path))
        }
        Kind::Ext4 { size } | Kind::Vhd { payload_size: size } => {
            let file = File::open(path).context(|| format!("open {}", path.display()))?;
            Ok(Source::Disk(Disk { file, size, read_only: true }))
        }
        // A directory that the machine cannot see, or an archive.
        _ => {
            let file = unnamed_file()?;
            let report = |done: linkspan_layer::Progress| {
                let linkspan_layer::Progress { bytes, total, entries } = done;
                progress(LayerProgress { path, bytes, total, entries });
            };
            let options = linkspan_layer::Options::default();
            let summary = linkspan_layer::build_image(path, &file, options, report)
                .map_err(|error| layer_error(error.into()))?;
            Ok(Source::Disk(Disk { file, size: summary.bytes, read_only: true }))
        }
    }
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

/// The guest's side of a container's storage.
#[derive(Debug, PartialEq)]
pub(crate) struct LayerPlan {
    /// In this order; the scratch disk, if there is one, last.
    pub(crate) disks: Vec<MappedVirtualDisk>,
    pub(crate) combined: CombinedLayers,
    pub(crate) bundle: String,
    pub(crate) scratch_directory: String,
}

impl LayerPlan {
    /// `layers` top-most first: the slot of a disk, or a path that the guest sees. `scratch` is
    /// the writable disk's slot.
    pub(crate) fn new(
        container: &str,
        layers: &[Result<ScsiAddress, PathBuf>],
        scratch: Option<ScsiAddress>,
    ) -> Self {
        let bundle = format!("/run/gcs/c/{container}");
        let mut disks = Vec::new();
        let mut paths = Vec::new();
        for layer in layers {
            match layer {
                Ok(address) => {
                    let disk = disk_at(*address, mount_path(*address), true);
                    paths.push(disk.mount_path.clone());
                    disks.push(disk);
                }
                Err(path) => paths.push(path.display().to_string()),
            }
        }
        let scratch_directory = format!("{bundle}/scratch/{container}");
        let mut combined = CombinedLayers {
            container_id: container.to_owned(),
            container_root_path: format!("{bundle}/rootfs"),
            layers: paths.into_iter().map(|path| Layer { path, ..Layer::default() }).collect(),
            ..CombinedLayers::default()
        };
        if let Some(address) = scratch {
            disks.push(disk_at(address, bundle.clone(), false));
            combined.scratch_path = scratch_directory.clone();
        }
        Self { disks, combined, bundle, scratch_directory }
    }
}

fn mount_path(address: ScsiAddress) -> String {
    format!("/run/mounts/scsi/{}_{}", address.controller, address.lun)
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
    fn a_plan_mounts_layers_first_then_the_scratch_and_keeps_their_order() {
        let at = |lun| ScsiAddress { controller: 1, lun };
        let layers = [Ok(at(4)), Err(PathBuf::from("/srv/base"))];
        let plan = LayerPlan::new("web", &layers, Some(at(5)));
        let disks: Vec<_> = plan
            .disks
            .iter()
            .map(|disk| (disk.lun, disk.mount_path.as_str(), disk.read_only))
            .collect();
        assert_eq!(disks, [(4, "/run/mounts/scsi/1_4", true), (5, "/run/gcs/c/web", false)]);
        let paths: Vec<_> = plan.combined.layers.iter().map(|layer| layer.path.as_str()).collect();
        assert_eq!(paths, ["/run/mounts/scsi/1_4", "/srv/base"]);
        assert_eq!(plan.combined.container_root_path, "/run/gcs/c/web/rootfs");
        assert_eq!(plan.combined.scratch_path, "/run/gcs/c/web/scratch/web");
    }
}
