//! What QEMU says over vhost-user: which memory the guest has, where its rings are, which features it took.
//!
//! The `vhost` crate decodes the messages and calls [`Frontend`]; the worker then finds the result here. Both
//! happen on the worker's thread.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::ring::{MAX_SIZE, Ring};

/// Ring on which the guest receives.
pub(crate) const RX: usize = 0;
/// Ring on which the guest sends.
pub(crate) const TX: usize = 1;

const VIRTIO_RING_F_INDIRECT_DESC: u64 = 1 << 28;
const VIRTIO_RING_F_EVENT_IDX: u64 = 1 << 29;
const VIRTIO_F_VERSION_1: u64 = 1 << 32;

/// Memory regions in all; one per DIMM or pmem device plus a handful. The kernel's own vhost has as many.
const MAX_REGIONS: usize = 509;

struct Mapping {
    user_address: u64,
    guest_address: u64,
    size: u64,
}

/// The state QEMU sets up.
pub(crate) struct Frontend {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) rings: [Ring; 2],
    /// The guest's driver started anew: the connections it had are gone.
    pub(crate) restarted: bool,
    mappings: Vec<Mapping>,
    features: u64,
    guest_cid: u64,
    epoll: Arc<Epoll>,
    kick_tokens: [u64; 2],
}

impl Frontend {
    /// A device QEMU has not set up yet. Kicks of the two rings arrive at `epoll` under `kick_tokens`.
    pub(crate) fn new(
        guest_cid: u64,
        epoll: Arc<Epoll>,
        kick_tokens: [u64; 2],
    ) -> io::Result<Self> {
        let ring = || Ring::new().map_err(io::Error::other);
        Ok(Self {
            memory: GuestMemoryMmap::new(),
            rings: [ring()?, ring()?],
            restarted: false,
            mappings: Vec::new(),
            features: 0,
            guest_cid,
            epoll,
            kick_tokens,
        })
    }

    /// Whether the guest's driver is up: both rings run.
    pub(crate) fn is_running(&self) -> bool {
        self.rings.iter().all(Ring::is_running)
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn guest_address(&self, user_address: u64) -> Result<GuestAddress> {
        self.mappings
            .iter()
            .find_map(|mapping| {
                let offset = user_address.checked_sub(mapping.user_address)?;
                (offset < mapping.size)
                    .then(|| mapping.guest_address.checked_add(offset).map(GuestAddress))?
            })
            .ok_or(Error::InvalidParam)
    }

    fn map(region: &VhostUserMemoryRegion, file: File) -> Result<(GuestRegionMmap, Mapping)> {
        let mapped =
            GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(region.guest_phys_addr))
                .ok_or(Error::InvalidParam)?;
        let mapping = Mapping {
            user_address: region.user_addr,
            guest_address: region.guest_phys_addr,
            size: region.memory_size,
        };
        Ok((mapped, mapping))
    }

    fn stop_watching(&mut self, index: usize) {
        if let Some(kick) = self.rings[index].kick.take() {
            // It was added when it came; a descriptor epoll no longer knows needs no removal.
            let _ = self.epoll.delete(kick.as_fd());
        }
    }
}

fn refused<T>() -> Result<T> {
    Err(Error::InvalidOperation("the vsock device has no such request"))
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl VhostUserBackendReqHandlerMut for Frontend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.restarted = true;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(VIRTIO_F_VERSION_1
            | VIRTIO_RING_F_EVENT_IDX
            | VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_features()? != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        let enabled_at_once = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for ring in &mut self.rings {
            ring.queue.set_event_idx(features & VIRTIO_RING_F_EVENT_IDX != 0);
            ring.enabled |= enabled_at_once;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let (mapped, mappings) = regions
            .iter()
            .zip(files)
            .map(|(region, file)| Self::map(region, file))
            .collect::<Result<(Vec<_>, Vec<_>)>>()?;
        self.memory = GuestMemoryMmap::from_regions(mapped).map_err(broken)?;
        self.mappings = mappings;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        if self.mappings.len() >= MAX_REGIONS {
            return Err(Error::InvalidParam);
        }
        let (mapped, mapping) = Self::map(region, file)?;
        self.memory = self.memory.insert_region(Arc::new(mapped)).map_err(broken)?;
        self.mappings.push(mapping);
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let start = region.guest_phys_addr;
        self.mappings.retain(|mapping| mapping.guest_address != start);
        if self.mappings.is_empty() {
            self.memory = GuestMemoryMmap::new(); // a collection may not become empty by removal
            return Ok(());
        }
        let (memory, _) =
            self.memory.remove_region(GuestAddress(start), region.memory_size).map_err(broken)?;
        self.memory = memory;
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|&n| n <= MAX_SIZE).ok_or(Error::InvalidParam)?;
        self.ring(index)?.queue.try_set_size(size).map_err(broken)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let descriptor = self.guest_address(descriptor)?;
        let available = self.guest_address(available)?;
        let used = self.guest_address(used)?;
        let ring = self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)?;
        ring.queue.try_set_desc_table_address(descriptor).map_err(broken)?;
        ring.queue.try_set_avail_ring_address(available).map_err(broken)?;
        ring.queue.try_set_used_ring_address(used).map_err(broken)?;
        // Only the available index is told (set_vring_base); the used one is where the guest's memory has it.
        let used = ring
            .queue
            .used_idx(&self.memory, std::sync::atomic::Ordering::Relaxed)
            .map_err(broken)?;
        ring.queue.set_next_used(used.0);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = base as u16;
        let ring = self.ring(index)?;
        // A paused machine goes on where it stopped. Any other index means that a new driver owns the ring.
        let resumed = ring.queue.next_avail() == base;
        ring.queue.set_next_avail(base);
        self.restarted |= !resumed;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        ring.queue.set_ready(false);
        ring.call = None;
        let base = ring.queue.next_avail();
        self.stop_watching(index as usize);
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let at = usize::from(index);
        self.ring(u32::from(index))?;
        self.stop_watching(at);
        let Some(kick) = file else { return Ok(()) };
        // Edge-triggered, so that nobody has to read the counter back.
        let event =
            EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, self.kick_tokens[at]);
        self.epoll.add(kick.as_fd(), event).map_err(broken)?;
        let ring = &mut self.rings[at];
        ring.kick = Some(kick);
        ring.queue.set_ready(true);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.call = file;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.ring(u32::from(index)).map(|_| ())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = self.guest_cid.to_le_bytes();
        let end = offset.checked_add(size).ok_or(Error::InvalidParam)?;
        let part = config.get(offset as usize..end as usize).ok_or(Error::InvalidParam)?;
        Ok(part.to_vec())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        refused()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        refused()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        refused()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        refused()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        refused()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        refused()
    }

    fn check_device_state(&mut self) -> Result<()> {
        refused()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        refused()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        refused()
    }
}

/// The frontend as the `vhost` crate wants to share it.
pub(crate) type SharedFrontend = Arc<Mutex<Frontend>>;
