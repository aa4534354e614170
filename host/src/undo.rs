//! Steps that take back what was done: a rollback after a failure, the teardown after success.

use std::sync::atomic::Ordering;

use linkspan_protocol::message::{ContainerId, ModifySettings};
use linkspan_protocol::resource::{
    CombinedLayers, MappedDirectory, MappedVirtualDisk, ModifyType, Resource,
};
use tracing::warn;

use crate::Result;
use crate::layers::LayerKey;
use crate::network::UserNetwork;
use crate::uvm::Shared;
use crate::vmm::ScsiAddress;

/// One step back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Take the container's root down.
    Uncombine(CombinedLayers),
    /// Unmount a disk in the guest.
    Unmap(MappedVirtualDisk),
    /// Take a disk out of the guest, then of the machine, and free its slot.
    Detach(ScsiAddress),
    /// Take the machine's adapter out of its namespace, and let others have it.
    Disconnect,
    /// Unmount a directory of this host.
    Undirectory(MappedDirectory),
    /// Share it no longer.
    Unshare(String),
    /// Let go of a layer, which others may still use.
    Unlayer(LayerKey),
}

/// A stack of steps. It does nothing by itself: only [`Undo::run`] does.
#[derive(Debug, Default)]
#[must_use = "steps that are not run leave things behind"]
pub(crate) struct Undo {
    steps: Vec<Step>,
}

impl Undo {
    pub(crate) fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Takes the steps back, last first, up to and without the first one that `keep` says.
    pub(crate) async fn run_while(
        &mut self,
        uvm: &Shared,
        also: impl Fn(&Step) -> bool,
    ) -> Result<()> {
        let mut first = Ok(());
        while self.steps.last().is_some_and(&also)
            && let Some(step) = self.steps.pop()
        {
            if let Err(error) = take_back(uvm, &step).await {
                warn!(?step, %error, "could not take back");
                first = first.and(Err(error));
            }
        }
        first
    }

    /// Takes all steps back, last first. One that fails does not keep the others; the first
    /// failure is returned.
    pub(crate) async fn run(&mut self, uvm: &Shared) -> Result<()> {
        self.run_while(uvm, |_| true).await
    }
}

async fn take_back(uvm: &Shared, step: &Step) -> Result<()> {
    let remove = async |resource: Resource, what: String| {
        let request = ModifySettings::new(ModifyType::Remove, resource);
        uvm.bridge.call(&ContainerId::uvm(), &request, || what).await.map(drop)
    };
    match step {
        Step::Uncombine(layers) => {
            let layers = CombinedLayers {
                container_root_path: layers.container_root_path.clone(),
                ..CombinedLayers::default()
            };
            remove(layers.into(), "take the container's root down".to_owned()).await
        }
        Step::Unmap(disk) => {
            let what = format!("unmount disk {}:{}", disk.controller, disk.lun);
            remove(disk.clone().into(), what).await
        }
        Step::Disconnect => {
            let removed =
                remove(UserNetwork::adapter().into(), "disconnect the adapter".to_owned());
            let removed = removed.await;
            uvm.free_adapter.store(true, Ordering::Release);
            removed
        }
        Step::Detach(address) => {
            let unplugged = uvm.unplug(*address).await;
            uvm.attachments().free(*address);
            unplugged
        }
        Step::Undirectory(directory) => {
            let what = format!("unmount {}", directory.mount_path);
            remove(directory.clone().into(), what).await
        }
        Step::Unshare(tag) => uvm.vmm.unshare_directory(tag).await,
        Step::Unlayer(key) => uvm.release_layer(key).await,
    }
}
