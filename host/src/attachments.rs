//! What is attached to a machine, where, and for how many. Pure: it decides, others do.
//!
//! ```text
//!            make            made             release, the last        unmade
//!  (nothing) ────> Coming ────────> Ready(n) ───────────────> Leaving ───────> (nothing)
//!                    │ failed         ^  ^                       │ │  parked
//!                    v                │  └───── restored ────────┘ └─────────> Parked
//!                (nothing)            └─────────────── made, make <────────────────┘
//! ```
//!
//! One attachment serves all who ask for the same thing. Who asks while it comes or leaves waits
//! for that to end and asks again. What can never be detached parks: it keeps its slot, is used
//! again for the same thing, and is not used for another.
//!
//! A guest agent that breaks and is started again has forgotten its mounts. Each mount belongs to an
//! era, one per agent: what was mounted in an earlier one is attached and has to be mounted anew.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;

use crate::vmm::ScsiAddress;

const CONTROLLERS: u8 = 4;
const LUNS: u8 = 64;

/// Where something is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// A SCSI disk.
    Scsi(ScsiAddress),
    /// Persistent memory, by its number in the guest.
    Pmem(u32),
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scsi(address) => write!(f, "SCSI disk {address}"),
            Self::Pmem(number) => write!(f, "persistent memory {number}"),
        }
    }
}

/// The slots of one machine, and who is in them. `K` says what is attached.
#[derive(Debug)]
pub(crate) struct Attachments<K> {
    free: BTreeSet<Slot>,
    shared: HashMap<K, Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    slot: Slot,
    state: State,
    users: usize,
    /// Of the mount.
    era: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Coming,
    Ready,
    Leaving,
    Parked,
}

/// What to do for one who wants something attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// Nothing: it is there.
    Use(Slot),
    /// Attach and mount it, then say `made` or `failed`.
    Make(Slot),
    /// It is attached. Mount it, then say `made` or `parked`.
    Mount(Slot),
    /// Wait for a change, and ask again.
    Wait,
    /// Give up: there is no room.
    Full,
}

/// What to do when one no longer needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// Nothing: others need it.
    InUse,
    /// Unmount and detach it, then say `unmade`, `parked` or `restored`.
    Unmake(Slot),
}

impl<K: Eq + Hash + Clone> Attachments<K> {
    /// Four SCSI controllers with 64 disks each, and so many pieces of persistent memory.
    pub(crate) fn new(pmem: u32) -> Self {
        let scsi = (0..CONTROLLERS).flat_map(|controller| {
            (0..LUNS).map(move |lun| Slot::Scsi(ScsiAddress { controller, lun }))
        });
        Self { free: scsi.chain((0..pmem).map(Slot::Pmem)).collect(), shared: HashMap::new() }
    }

    /// Takes the lowest free SCSI slot for something that is not shared.
    pub(crate) fn take(&mut self) -> Option<ScsiAddress> {
        let slot = self.free.iter().copied().find_map(|slot| match slot {
            Slot::Scsi(address) => Some(address),
            Slot::Pmem(_) => None,
        })?;
        self.free.remove(&Slot::Scsi(slot));
        Some(slot)
    }

    /// Gives it back.
    pub(crate) fn free(&mut self, address: ScsiAddress) {
        self.free.insert(Slot::Scsi(address));
    }

    /// Asks for something in this era. It goes on persistent memory if it may and there is some,
    /// and else on SCSI.
    pub(crate) fn acquire(&mut self, key: &K, may_be_pmem: bool, era: u32) -> Acquired {
        if let Some(entry) = self.shared.get_mut(key) {
            return match entry.state {
                State::Ready if entry.era == era => {
                    entry.users += 1;
                    Acquired::Use(entry.slot)
                }
                State::Ready | State::Parked => {
                    (entry.state, entry.era) = (State::Coming, era);
                    Acquired::Mount(entry.slot)
                }
                State::Coming | State::Leaving => Acquired::Wait,
            };
        }
        let is_pmem = |slot: &&Slot| matches!(slot, Slot::Pmem(_));
        let pmem = self.free.iter().find(is_pmem).filter(|_| may_be_pmem).copied();
        let Some(slot) = pmem.or_else(|| self.take().map(Slot::Scsi)) else {
            return Acquired::Full;
        };
        self.free.remove(&slot);
        self.shared.insert(key.clone(), Entry { slot, state: State::Coming, users: 0, era });
        Acquired::Make(slot)
    }

    /// It has been mounted, for the one who asked.
    pub(crate) fn made(&mut self, key: &K) {
        if let Some(entry) = self.shared.get_mut(key) {
            entry.state = State::Ready;
            entry.users += 1;
        }
    }

    /// It could not be attached.
    pub(crate) fn failed(&mut self, key: &K) {
        self.unmade(key);
    }

    /// One who has asked needs it no longer.
    pub(crate) fn release(&mut self, key: &K) -> Released {
        let Some(entry) = self.shared.get_mut(key) else { return Released::InUse };
        entry.users = entry.users.saturating_sub(1);
        match (entry.users, entry.state) {
            (0, State::Ready | State::Parked) => {
                entry.state = State::Leaving;
                Released::Unmake(entry.slot)
            }
            _ => Released::InUse,
        }
    }

    /// It is detached.
    pub(crate) fn unmade(&mut self, key: &K) {
        if let Some(entry) = self.shared.remove(key) {
            self.free.insert(entry.slot);
        }
    }

    /// It is attached and not mounted.
    pub(crate) fn parked(&mut self, key: &K) {
        self.set(key, State::Parked);
    }

    /// It could not be unmounted: it stays as it is, for nobody so far.
    pub(crate) fn restored(&mut self, key: &K) {
        self.set(key, State::Ready);
    }

    fn set(&mut self, key: &K, state: State) {
        if let Some(entry) = self.shared.get_mut(key) {
            entry.state = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scsi(controller: u8, lun: u8) -> Slot {
        Slot::Scsi(ScsiAddress { controller, lun })
    }

    #[test]
    fn slots_are_given_from_below_and_given_again() {
        let mut slots = Attachments::<u32>::new(2);
        let all: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(all.len(), 256);
        assert_eq!(all[64], ScsiAddress { controller: 1, lun: 0 });
        slots.free(all[70]);
        slots.free(all[3]);
        assert_eq!(slots.take(), Some(all[3]));
        assert_eq!(slots.acquire(&1, false, 0), Acquired::Make(Slot::Scsi(all[70])));
        assert_eq!(slots.acquire(&2, false, 0), Acquired::Full);
        assert_eq!(slots.acquire(&2, true, 0), Acquired::Make(Slot::Pmem(0)));
    }

    #[test]
    fn twenty_users_are_one_attachment() {
        let mut slots = Attachments::new(0);
        assert_eq!(slots.acquire(&"base", true, 0), Acquired::Make(scsi(0, 0)));
        assert_eq!(slots.acquire(&"base", true, 0), Acquired::Wait, "the first is still at it");
        slots.made(&"base");
        for _ in 1..20 {
            assert_eq!(slots.acquire(&"base", true, 0), Acquired::Use(scsi(0, 0)));
        }
        for _ in 1..20 {
            assert_eq!(slots.release(&"base"), Released::InUse);
        }
        assert_eq!(slots.release(&"base"), Released::Unmake(scsi(0, 0)));
        assert_eq!(slots.acquire(&"base", true, 0), Acquired::Wait);
        slots.unmade(&"base");
        assert_eq!(slots.acquire(&"base", true, 0), Acquired::Make(scsi(0, 0)));
    }

    #[test]
    fn what_failed_is_tried_anew_and_what_cannot_go_is_used_again() {
        let mut slots = Attachments::new(1);
        assert_eq!(slots.acquire(&1, false, 0), Acquired::Make(scsi(0, 0)));
        slots.failed(&1);
        assert_eq!(slots.acquire(&1, false, 0), Acquired::Make(scsi(0, 0)));
        slots.made(&1);
        assert_eq!(slots.release(&1), Released::Unmake(scsi(0, 0)));
        slots.restored(&1);
        assert_eq!(slots.acquire(&1, false, 0), Acquired::Use(scsi(0, 0)));

        assert_eq!(slots.acquire(&2, true, 0), Acquired::Make(Slot::Pmem(0)));
        slots.made(&2);
        assert_eq!(slots.release(&2), Released::Unmake(Slot::Pmem(0)));
        slots.parked(&2);
        assert_eq!(slots.acquire(&3, true, 0), Acquired::Make(scsi(0, 1)), "its place is taken");
        assert_eq!(slots.acquire(&2, true, 0), Acquired::Mount(Slot::Pmem(0)));
        slots.made(&2);
        assert_eq!(slots.release(&2), Released::Unmake(Slot::Pmem(0)));
    }

    #[test]
    fn what_an_agent_has_forgotten_is_mounted_anew_and_its_users_still_count() {
        let mut slots = Attachments::new(0);
        assert_eq!(slots.acquire(&1, false, 0), Acquired::Make(scsi(0, 0)));
        slots.made(&1);
        assert_eq!(slots.acquire(&1, false, 0), Acquired::Use(scsi(0, 0)));
        // Two users; then the agent is another one.
        assert_eq!(slots.acquire(&1, false, 1), Acquired::Mount(scsi(0, 0)));
        assert_eq!(slots.acquire(&1, false, 1), Acquired::Wait);
        assert_eq!(slots.release(&1), Released::InUse);
        slots.made(&1);
        assert_eq!(slots.acquire(&1, false, 1), Acquired::Use(scsi(0, 0)));
        assert_eq!(slots.release(&1), Released::InUse);
        assert_eq!(slots.release(&1), Released::InUse);
        assert_eq!(slots.release(&1), Released::Unmake(scsi(0, 0)));
        slots.unmade(&1);

        // One that cannot be mounted anew goes with its last user.
        assert_eq!(slots.acquire(&2, false, 1), Acquired::Make(scsi(0, 0)));
        slots.made(&2);
        assert_eq!(slots.acquire(&2, false, 2), Acquired::Mount(scsi(0, 0)));
        slots.parked(&2);
        assert_eq!(slots.release(&2), Released::Unmake(scsi(0, 0)));
    }

    /// What an outsider knows of one key.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Known {
        Coming(Slot),
        There(Slot, usize),
        Leaving(Slot),
        Parked(Slot),
    }

    impl Known {
        fn slot(self) -> Slot {
            match self {
                Self::Coming(slot)
                | Self::There(slot, _)
                | Self::Leaving(slot)
                | Self::Parked(slot) => slot,
            }
        }
    }

    proptest! {
        /// Whatever is asked in whatever order: no slot is given twice, nobody is given what is not
        /// there, and who counts the users comes to the same.
        #[test]
        fn no_slot_has_two_occupants(steps in prop::collection::vec((0..7u8, 0..6u8), 0..400)) {
            let mut slots = Attachments::new(2);
            let mut known = HashMap::<u8, Known>::new();
            let mut taken = Vec::new();
            for (step, key) in steps {
                match step {
                    0 | 1 => {
                        let before = known.get(&key).copied();
                        let got = slots.acquire(&key, key % 2 == 0, 0);
                        let now = match (before, got) {
                            (None, Acquired::Make(slot)) => Known::Coming(slot),
                            (Some(Known::There(slot, users)), Acquired::Use(same)) => {
                                prop_assert_eq!(slot, same);
                                Known::There(slot, users + 1)
                            }
                            (Some(Known::Parked(slot)), Acquired::Mount(same)) => {
                                prop_assert_eq!(slot, same);
                                Known::Coming(slot)
                            }
                            (Some(busy @ (Known::Coming(_) | Known::Leaving(_))), Acquired::Wait) => busy,
                            other => return Err(TestCaseError::fail(format!("{other:?}"))),
                        };
                        known.insert(key, now);
                    }
                    2 => if let Some(Known::Coming(slot)) = known.get(&key).copied() {
                        slots.made(&key);
                        known.insert(key, Known::There(slot, 1));
                    },
                    3 => if let Some(Known::Coming(_)) = known.get(&key).copied() {
                        slots.failed(&key);
                        known.remove(&key);
                    },
                    4 => match (known.get(&key).copied(), slots.release(&key)) {
                        (Some(Known::There(slot, 0 | 1)), Released::Unmake(same)) => {
                            prop_assert_eq!(slot, same);
                            known.insert(key, Known::Leaving(slot));
                        }
                        (Some(Known::There(slot, users)), Released::InUse) => {
                            known.insert(key, Known::There(slot, users - 1));
                        }
                        // What is parked has no users; whoever releases it is mistaken.
                        (Some(Known::Parked(slot)), Released::Unmake(same)) => {
                            prop_assert_eq!(slot, same);
                            known.insert(key, Known::Leaving(slot));
                        }
                        (_, Released::InUse) => {}
                        other => return Err(TestCaseError::fail(format!("{other:?}"))),
                    },
                    5 => if let Some(Known::Leaving(slot)) = known.get(&key).copied() {
                        let (what, how): (_, fn(&mut Attachments<u8>, &u8)) = match (slot, key) {
                            (Slot::Pmem(_), _) => (Some(Known::Parked(slot)), Attachments::parked),
                            (_, 0..3) => (None, Attachments::unmade),
                            _ => (Some(Known::There(slot, 0)), Attachments::restored),
                        };
                        how(&mut slots, &key);
                        match what {
                            Some(now) => drop(known.insert(key, now)),
                            None => drop(known.remove(&key)),
                        }
                    },
                    _ => match key {
                        0..3 => taken.extend(slots.take().map(Slot::Scsi)),
                        _ => if let Some(Slot::Scsi(address)) = taken.pop() {
                            slots.free(address);
                        },
                    },
                }
                let used: Vec<_> = known.values().map(|known| known.slot()).chain(taken.iter().copied()).collect();
                let distinct: BTreeSet<_> = used.iter().copied().collect();
                prop_assert_eq!(used.len(), distinct.len(), "{:?}", used);
                prop_assert_eq!(slots.free.len() + used.len(), 256 + 2);
                prop_assert!(slots.free.is_disjoint(&distinct));
            }
        }
    }
}
