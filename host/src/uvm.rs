//! Utility VMs.

mod builder;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use linkspan_protocol::client::CloseReason;
use linkspan_protocol::message::{
    Capabilities, ContainerId, DumpStacks, ModifySettings, Procedure,
};
use linkspan_protocol::port;
use linkspan_protocol::resource::{ModifyType, Resource};
use tokio::sync::Notify;
use tracing::warn;

pub use builder::{Backend, Builder, Machine};

use crate::attachments::Attachments;
use crate::bridge::Bridge;
use crate::container::ContainerBuilder;
use crate::layers::{LayerKey, Layers};
use crate::process::Command;
use crate::undo::{Step, Undo};
use crate::vmm::{Accept, Disk, PortListener, ScsiAddress, VmExit, Vmm};
use crate::{Error, Result};

/// A running utility VM whose guest agent has answered. Cheap to clone.
///
/// It ends with [`terminate`](Self::terminate), or when the last clone, container and process
/// handle of it is dropped.
#[derive(Clone)]
pub struct UtilityVm {
    shared: Arc<Shared>,
}

/// What everything in a utility VM holds on to.
pub(crate) struct Shared {
    name: String,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) bridge: Bridge,
    attachments: Mutex<Attachments<LayerKey>>,
    /// Told whenever something has come or gone.
    pub(crate) attachments_changed: Notify,
    /// Held from the choice of a piece of persistent memory until it is there.
    pub(crate) pmem_order: tokio::sync::Mutex<()>,
    next_port: AtomicU32,
    /// Whether its one adapter is there and nobody's.
    pub(crate) free_adapter: AtomicBool,
}

impl UtilityVm {
    /// A utility VM to be started, with a name for people.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    fn new(name: String, vmm: Arc<dyn Vmm>, bridge: Bridge, has_network: bool) -> Self {
        // A machine that ends takes its bridge with it at once, not when a time-out says so.
        let (watched, closing) = (Arc::clone(&vmm), bridge.downgrade());
        tokio::spawn(async move {
            let exit = watched.exited().await;
            closing.close(CloseReason::Transport(format!("the utility VM ended: {}", exit.reason)));
        });
        let shared = Shared {
            attachments: Mutex::new(Attachments::new(vmm.pmem_slots())),
            attachments_changed: Notify::new(),
            pmem_order: tokio::sync::Mutex::default(),
            next_port: AtomicU32::new(port::FIRST_STDIO),
            free_adapter: AtomicBool::new(has_network),
            name,
            vmm,
            bridge,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What the guest agent says that it can do.
    pub fn capabilities(&self) -> Capabilities {
        self.shared.bridge.capabilities()
    }

    /// The machine below, for what only that can tell: its console, its description.
    pub fn vmm(&self) -> &dyn Vmm {
        &*self.shared.vmm
    }

    /// A container to be made from layers.
    pub fn container(&self, id: impl Into<String>, layers: Layers) -> ContainerBuilder {
        ContainerBuilder::new(Arc::clone(&self.shared), id.into(), layers)
    }

    /// A process in the utility VM itself, outside of any container. Its environment is exactly
    /// what it is given.
    pub fn command(&self, program: impl Into<String>) -> Command<'_> {
        Command::new(&self.shared, ContainerId::uvm(), program.into())
    }

    /// Any request of the protocol, for what this library has no function for.
    ///
    /// # Errors
    /// When the guest refuses or is gone, or does not answer within five minutes.
    pub async fn request<P: Procedure>(
        &self,
        container: &ContainerId,
        request: &P,
    ) -> Result<P::Response> {
        let what = || request.message_type().to_string();
        self.shared.bridge.call(container, request, what).await
    }

    /// What the guest agent is doing, as text.
    ///
    /// # Errors
    /// When the guest is gone or cannot tell.
    pub async fn dump_stacks(&self) -> Result<String> {
        if !self.capabilities().guest_defined_capabilities.dump_stacks_supported {
            let reason = "the guest agent cannot tell what it is doing".to_owned();
            return Err(Error::Option { option: "stacks", reason });
        }
        let what = || "dump the guest agent's stacks".to_owned();
        let answer = self.shared.bridge.call(&ContainerId::uvm(), &DumpStacks {}, what).await?;
        Ok(answer.guest_stacks)
    }

    /// Waits until the bridge to the guest is gone, and says why.
    pub async fn closed(&self) -> CloseReason {
        self.shared.bridge.closed().await
    }

    /// Waits until the machine has ended, by itself or otherwise.
    pub async fn exited(&self) -> VmExit {
        self.shared.vmm.exited().await
    }

    /// Ends it. Returns when nothing of it is left.
    pub async fn terminate(&self) {
        self.shared.bridge.close(CloseReason::Local);
        self.shared.vmm.terminate().await;
    }
}

impl fmt::Debug for UtilityVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UtilityVm").field("name", &self.name).field("vmm", &self.vmm).finish()
    }
}

impl Shared {
    pub(crate) fn attachments(&self) -> MutexGuard<'_, Attachments<LayerKey>> {
        self.attachments.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn full(&self) -> Error {
        Error::Option {
            option: "disks",
            reason: format!("all 256 SCSI slots of {:?} are in use", self.name),
        }
    }

    /// Puts a disk into a free slot.
    pub(crate) async fn attach(&self, disk: Disk, undo: &mut Undo) -> Result<ScsiAddress> {
        let address = self.attachments().take().ok_or_else(|| self.full())?;
        if let Err(error) = self.vmm.attach_disk(address, disk).await {
            self.attachments().free(address);
            return Err(error);
        }
        undo.push(Step::Detach(address));
        Ok(address)
    }

    /// Asks the guest to change a resource of the utility VM.
    pub(crate) async fn modify(
        &self,
        modify: ModifyType,
        resource: impl Into<Resource>,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        let request = ModifySettings::new(modify, resource.into());
        self.bridge.call(&ContainerId::uvm(), &request, what).await.map(drop)
    }

    /// Listens on a fresh port, if a stream is wanted.
    pub(crate) async fn listen_for_stdio(
        &self,
        wanted: bool,
        accept: Accept,
    ) -> Result<Option<PortListener>> {
        if !wanted {
            return Ok(None);
        }
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        self.vmm.listen(port, accept).await.map(Some)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Whoever can wait calls `terminate`; here it can only be set off.
        let vmm = Arc::clone(&self.vmm);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { vmm.terminate().await })),
            Err(_) => warn!(name = self.name, "dropped outside of a runtime; ended without grace"),
        }
    }
}
