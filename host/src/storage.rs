//! Layers of a running machine: each is attached and mounted once, for all containers that want it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use linkspan_protocol::resource::{MappedDirectory, ModifyType, Resource, ScsiDevice, VerityInfo};
use tracing::warn;

use crate::attachments::{Acquired, Attachments, Released, Slot};
use crate::error::Context;
use crate::layers::{LayerKey, LayerProgress, LayerSource, mount_of, mount_path};
use crate::undo::{Step, Undo};
use crate::uvm::Shared;
use crate::vmm::ScsiAddress;
use crate::{Error, Result};

/// Where it is told how far the making of an image has come. One image is made at a time.
pub(crate) type Reporter = Arc<Mutex<Box<dyn Fn(LayerProgress<'_>) + Send>>>;

impl Shared {
    /// Mounts layers, all at once, and gives their paths in the guest in the same order. What is
    /// to be taken back later goes to `undo`, after a failure as well.
    pub(crate) async fn mount_layers(
        self: &Arc<Self>,
        sources: Vec<LayerSource>,
        reporter: Reporter,
        undo: &mut Undo,
    ) -> Result<Vec<String>> {
        let mut tasks = Vec::new();
        for source in sources {
            if let Some(path) = source.shared() {
                tasks.push(Err(path));
                continue;
            }
            let (uvm, reporter, key) =
                (Arc::clone(self), Arc::clone(&reporter), source.key.clone());
            let task = tokio::spawn(async move { uvm.mount_layer(source, reporter).await });
            tasks.push(Ok((key, task)));
        }
        let (mut paths, mut first) = (Vec::new(), Ok(()));
        for task in tasks {
            let (key, task) = match task {
                Ok(task) => task,
                Err(path) => {
                    paths.push(path);
                    continue;
                }
            };
            match task.await.unwrap_or_else(|panic| Err(Error::Vmm(panic.into()))) {
                Ok(slot) => {
                    undo.push(Step::Unlayer(key));
                    paths.push(mount_path(slot));
                }
                Err(error) => first = first.and(Err(error)),
            }
        }
        first.map(|()| paths)
    }

    async fn mount_layer(&self, source: LayerSource, reporter: Reporter) -> Result<Slot> {
        let (key, verity) = (source.key.clone(), source.verity.clone());
        let unit = self.vmm.pmem_unit();
        let fits = source.size().is_none_or(|size| size.is_multiple_of(unit));
        let may_be_pmem = fits && self.vmm.pmem_slots() > 0;
        let mut source = Some(source);
        loop {
            // The guest numbers its pieces as they come: the next number is the next to come.
            let order = match may_be_pmem {
                true => Some(self.pmem_order.lock().await),
                false => None,
            };
            // Before the question, so that no change is missed.
            let changed = self.attachments_changed.notified();
            let era = self.bridge.capabilities().guest_defined_capabilities.linkspan_restarts;
            let acquired = self.attachments().acquire(&key, may_be_pmem, era);
            let outcome = match (acquired, source.take()) {
                (Acquired::Use(slot), _) => return Ok(slot),
                (Acquired::Wait, kept) => {
                    source = kept;
                    drop(order);
                    changed.await;
                    continue;
                }
                (Acquired::Full, _) => return Err(self.full()),
                (Acquired::Make(slot), Some(source)) => {
                    match self.make(slot, source, reporter, verity).await {
                        Ok(()) => Ok(slot),
                        Err((stays, error)) => {
                            let left =
                                if stays { Attachments::parked } else { Attachments::failed };
                            left(&mut self.attachments(), &key);
                            Err(error)
                        }
                    }
                }
                (Acquired::Mount(slot), _) => {
                    let mounted = self.mount(slot, verity).await;
                    if mounted.is_err() {
                        self.attachments().parked(&key);
                    }
                    mounted.map(|()| slot)
                }
                (Acquired::Make(_), None) => unreachable!("it is taken only where this returns"),
            };
            if outcome.is_ok() {
                self.attachments().made(&key);
            }
            self.attachments_changed.notify_waiters();
            return outcome;
        }
    }

    /// An error comes with whether the disk is attached all the same.
    async fn make(
        &self,
        slot: Slot,
        source: LayerSource,
        reporter: Reporter,
        verity: Option<VerityInfo>,
    ) -> Result<(), (bool, Error)> {
        let unit = match slot {
            Slot::Scsi(_) => 4096,
            Slot::Pmem(_) => self.vmm.pmem_unit(),
        };
        let disk = tokio::task::spawn_blocking(move || {
            let report = reporter.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            source.into_disk(unit, &**report)
        });
        let disk = disk.await.unwrap_or_else(|panic| Err(Error::Vmm(panic.into())));
        let disk = disk.map_err(|error| (false, error))?;
        let attached = match slot {
            Slot::Scsi(address) => self.vmm.attach_disk(address, disk).await,
            Slot::Pmem(number) => {
                // The guest notices it only if its drivers are there; they are once it answers.
                let what = || format!("prepare for {slot}");
                match self.remove(mount_of(slot, None), what).await {
                    Ok(()) => self.vmm.attach_pmem(number, disk).await,
                    Err(error) => Err(error),
                }
            }
        };
        attached.map_err(|error| (false, error))?;
        let Err(error) = self.mount(slot, verity).await else { return Ok(()) };
        match slot {
            Slot::Pmem(_) => Err((true, error)),
            Slot::Scsi(address) => {
                // The first failure says what went wrong; what follows from it is logged.
                if let Err(error) = self.unplug(address).await {
                    warn!(%slot, %error, "could not take back");
                }
                Err((false, error))
            }
        }
    }

    async fn mount(&self, slot: Slot, verity: Option<VerityInfo>) -> Result<()> {
        self.modify(ModifyType::Add, mount_of(slot, verity), || format!("mount {slot}")).await
    }

    /// Says that one container no longer needs a layer. The last one's word takes it away.
    pub(crate) async fn release_layer(&self, key: &LayerKey) -> Result<()> {
        let Released::Unmake(slot) = self.attachments().release(key) else { return Ok(()) };
        let unmounted = self.remove(mount_of(slot, None), || format!("unmount {slot}")).await;
        let outcome = match (unmounted, slot) {
            (Err(error), _) => {
                self.attachments().restored(key);
                Err(error)
            }
            (Ok(()), Slot::Pmem(_)) => {
                self.attachments().parked(key);
                Ok(())
            }
            (Ok(()), Slot::Scsi(address)) => {
                let unplugged = self.unplug(address).await;
                self.attachments().unmade(key);
                unplugged
            }
        };
        self.attachments_changed.notify_waiters();
        outcome
    }

    /// Shares a directory, mounts it in the guest at `place` if it is not visible there anyway, and
    /// gives its path there.
    pub(crate) async fn share(
        &self,
        directory: &Path,
        read_only: bool,
        place: String,
        undo: &mut Undo,
    ) -> Result<String> {
        if self.vmm.shares_directories() {
            let found = std::fs::canonicalize(directory);
            let found = found.context(|| format!("find {}", directory.display()))?;
            return Ok(found.display().to_string());
        }
        let tag = self.vmm.share_directory(directory, read_only).await?;
        undo.push(Step::Unshare(tag.clone()));
        let mapped = MappedDirectory {
            mount_path: place.clone(),
            share_name: tag,
            read_only,
            ..MappedDirectory::default()
        };
        let what = || format!("mount {} in the guest", directory.display());
        self.modify(ModifyType::Add, mapped.clone(), what).await?;
        undo.push(Step::Undirectory(mapped));
        Ok(place)
    }

    /// Takes a disk out of the guest, then out of the machine.
    pub(crate) async fn unplug(&self, address: ScsiAddress) -> Result<()> {
        let ScsiAddress { controller, lun } = address;
        let what = || format!("unplug disk {address}");
        let unplugged = self.remove(ScsiDevice { controller, lun }, what).await;
        let detached = self.vmm.detach_disk(address).await;
        unplugged.and(detached)
    }

    /// Removes a resource of the guest's. A guest that is gone holds nothing.
    async fn remove(
        &self,
        resource: impl Into<Resource>,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        match self.modify(ModifyType::Remove, resource, what).await {
            Err(Error::Closed { .. }) => Ok(()),
            other => other,
        }
    }
}
