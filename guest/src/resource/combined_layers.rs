//! A container's root.

use linkspan_protocol::resource::CombinedLayers;

use crate::Result;
use crate::guest_path::GuestPath;
use crate::storage::{Overlay, blocking, unmount};

pub(super) async fn add(layers: CombinedLayers) -> Result<()> {
    let root = GuestPath::parse("ContainerRootPath", &layers.container_root_path)?;
    let path = |path: &str| GuestPath::parse("Layers[].Path", path);
    let lower = layers.layers.iter().map(|layer| path(&layer.path)).collect::<Result<Vec<_>>>()?;
    let scratch = match layers.scratch_path.as_str() {
        "" => None,
        path => Some(GuestPath::parse("ScratchPath", path)?),
    };
    let overlay = Overlay {
        root: root.as_path().to_owned(),
        layers: lower.iter().map(|path| path.as_path().to_owned()).collect(),
        scratch: scratch.map(|path| path.as_path().to_owned()),
    };
    blocking(move || overlay.mount()).await
}

pub(super) async fn remove(layers: CombinedLayers) -> Result<()> {
    let root = GuestPath::parse("ContainerRootPath", &layers.container_root_path)?;
    blocking(move || unmount(root.as_path())).await
}
