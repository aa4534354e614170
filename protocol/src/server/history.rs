//! What has been written and may have been lost with the connection.
//!
//! A frame that was written whole has reached the other machine's kernel at best. Those that the
//! host has not read are written again on its next connection; it says which they are.

use std::collections::{HashMap, VecDeque};

use crate::frame::HEADER_LEN;
use crate::message::LinkspanHost;
use crate::{Kind, MessageType};

/// Most bytes that are kept: more than sockets hold on their way.
const LIMIT: usize = 256 << 10;

/// One session with Linkspan's own host.
#[derive(Debug, Default)]
pub(super) struct History {
    session: u64,
    /// Frames in the order in which they were written; a notification with its number.
    frames: VecDeque<(Vec<u8>, Option<u64>)>,
    bytes: usize,
    notified: u64,
    /// Requests that are being worked on.
    working: HashMap<u64, usize>,
}

impl History {
    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// A host that is not the one before. Whatever works on, works for nobody.
    pub(super) fn begin(&mut self, session: u64) {
        *self = Self { session, ..Self::default() };
    }

    pub(super) fn came(&mut self, id: u64) {
        *self.working.entry(id).or_default() += 1;
    }

    pub(super) fn answered(&mut self, id: u64) {
        if let Some(count) = self.working.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.working.remove(&id);
            }
        }
    }

    /// A frame is being written.
    pub(super) fn wrote(&mut self, frame: &[u8]) {
        if self.session == 0 {
            return;
        }
        let number = is_notification(frame).then(|| {
            self.notified += 1;
            self.notified
        });
        self.bytes += frame.len();
        self.frames.push_back((frame.to_owned(), number));
        while self.bytes > LIMIT
            && let Some((frame, _)) = self.frames.pop_front()
        {
            self.bytes -= frame.len();
        }
    }

    /// The last frame was not written in full: it will be again.
    pub(super) fn take_back(&mut self) {
        if let Some((frame, number)) = self.frames.pop_back() {
            self.bytes -= frame.len();
            self.notified -= u64::from(number.is_some());
        }
    }

    /// What the host has not read, to be written again before what is `held`, and which of its
    /// requests have never come.
    pub(super) fn resume(
        &mut self,
        host: &LinkspanHost,
        held: &VecDeque<Vec<u8>>,
    ) -> (VecDeque<Vec<u8>>, Vec<u64>) {
        let is_held = |id| held.iter().any(|frame| !is_notification(frame) && id_of(frame) == id);
        let mut unread = VecDeque::new();
        for (frame, number) in std::mem::take(&mut self.frames) {
            let missed = match number {
                Some(number) => number > host.notified,
                None => host.pending.contains(&id_of(&frame)),
            };
            if missed {
                unread.push_back(frame);
            }
        }
        self.bytes = 0;
        self.notified = host.notified;
        let known = |id: &u64| {
            self.working.contains_key(id)
                || is_held(*id)
                || unread.iter().any(|frame| !is_notification(frame) && id_of(frame) == *id)
        };
        let unknown = host.pending.iter().copied().filter(|id| !known(id)).collect();
        (unread, unknown)
    }
}

pub(super) fn is_notification(frame: &[u8]) -> bool {
    let bytes = frame.first_chunk().copied().unwrap_or_default();
    MessageType(u32::from_le_bytes(bytes)).kind() == Kind::Notification
}

fn id_of(frame: &[u8]) -> u64 {
    let bytes = frame.get(8..HEADER_LEN).and_then(|bytes| bytes.first_chunk().copied());
    u64::from_le_bytes(bytes.unwrap_or_default())
}
