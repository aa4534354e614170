//! A container's root.

use linkspan_protocol::resource::CombinedLayers;

use crate::Result;
use crate::guest_path::GuestPath;
use crate::storage::{Overlay, blocking, unmount};
use crate::uvm::Uvm;

pub(super) async fn add(uvm: &Uvm, layers: CombinedLayers) -> Result<()> {
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
    if let Some(bundle) = blocking(move || overlay.mount()).await? {
        uvm.mounted.keep_bundle(root.as_path(), bundle);
    }
    Ok(())
}

pub(super) async fn remove(uvm: &Uvm, layers: CombinedLayers) -> Result<()> {
    let root = GuestPath::parse("ContainerRootPath", &layers.container_root_path)?;
    // A container takes its bundle down itself; one that never came to be does not.
    let bundle = uvm.mounted.bundle_of(root.as_path());
    let bundle = bundle.filter(|bundle| !uvm.has_bundle(bundle));
    let path = root.as_path().to_owned();
    blocking(move || {
        unmount(&path)?;
        bundle.map_or(Ok(()), |bundle| unmount(&bundle))
    })
    .await?;
    uvm.mounted.forget_bundle(root.as_path());
    Ok(())
}
