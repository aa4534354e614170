//! One virtqueue: taking chains, giving them back, and telling the guest about it no oftener than it asked.

use std::fs::File;
use std::io::Write;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

/// The largest ring QEMU may set up; its own vsock devices have 128 entries.
pub(crate) const MAX_SIZE: u16 = 1024;

/// A virtqueue with the descriptors that announce its progress.
pub(crate) struct Ring {
    pub(crate) queue: Queue,
    /// Readable when the guest made chains available.
    pub(crate) kick: Option<File>,
    /// Written when chains were given back.
    pub(crate) call: Option<File>,
    pub(crate) enabled: bool,
    unannounced: bool,
}

impl Ring {
    /// A ring that is not set up yet.
    pub(crate) fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(MAX_SIZE)?,
            kick: None,
            call: None,
            enabled: false,
            unannounced: false,
        })
    }

    /// Whether chains may be taken from it.
    pub(crate) fn is_running(&self) -> bool {
        self.enabled && self.queue.ready()
    }

    /// The next chain the guest made available.
    pub(crate) fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if !self.is_running() {
            return None;
        }
        self.queue.iter(memory).ok()?.next()
    }

    /// Undoes the last [`Ring::pop`].
    pub(crate) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back with `len` bytes written to it.
    pub(crate) fn give_back(&mut self, memory: &GuestMemoryMmap, head: u16, len: u32) {
        if self.queue.add_used(memory, head, len).is_ok() {
            self.unannounced = true;
        }
    }

    /// Tells the guest of the chains given back, if there are any and it wants to know.
    pub(crate) fn announce(&mut self, memory: &GuestMemoryMmap) {
        if !std::mem::take(&mut self.unannounced) {
            return;
        }
        if self.queue.needs_notification(memory).unwrap_or(true)
            && let Some(mut call) = self.call.as_ref()
        {
            // Only a full counter could refuse, and then a notification is pending anyway.
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }

    /// Asks the guest not to announce chains while we look anyway.
    pub(crate) fn hush(&mut self, memory: &GuestMemoryMmap) {
        if self.is_running() {
            let _ = self.queue.disable_notification(memory);
        }
    }

    /// Asks the guest to announce its next chain. Returns whether there is one already.
    pub(crate) fn listen(&mut self, memory: &GuestMemoryMmap) -> bool {
        // A ring whose index jumped further than its size is broken and yields nothing, now or later.
        self.is_running()
            && self.queue.enable_notification(memory).unwrap_or(false)
            && self.queue.iter(memory).is_ok()
    }
}
