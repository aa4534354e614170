//! Which SCSI slots are in use. Pure.

use std::collections::BTreeSet;

use crate::vmm::ScsiAddress;

const CONTROLLERS: u8 = 4;
const LUNS: u8 = 64;

/// The slots of one utility VM.
#[derive(Debug, Default)]
pub(crate) struct ScsiSlots {
    used: BTreeSet<ScsiAddress>,
}

impl ScsiSlots {
    /// The lowest free slot; `None` when all 256 are taken.
    pub(crate) fn take(&mut self) -> Option<ScsiAddress> {
        let all = (0..CONTROLLERS)
            .flat_map(|controller| (0..LUNS).map(move |lun| ScsiAddress { controller, lun }));
        let free = all.into_iter().find(|address| !self.used.contains(address))?;
        self.used.insert(free);
        Some(free)
    }

    pub(crate) fn free(&mut self, address: ScsiAddress) {
        self.used.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_given_from_below_and_given_again() {
        let mut slots = ScsiSlots::default();
        let all: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(all.len(), 256);
        assert_eq!(all[64], ScsiAddress { controller: 1, lun: 0 });
        slots.free(all[70]);
        slots.free(all[3]);
        assert_eq!(slots.take(), Some(all[3]));
        assert_eq!(slots.take(), Some(all[70]));
        assert_eq!(slots.take(), None);
    }
}
