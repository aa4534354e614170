//! What each step takes, and what it does.

use crate::{Guest, Piece, Reconnects, State, Step, ToGuest, ToHost, Variant};

/// Pieces that may wait for the host's word that they have come.
const UNACKNOWLEDGED: u8 = 2;

/// Pieces that come before the host says that it has them.
const ACKNOWLEDGE: u8 = 2;

impl State {
    pub(crate) fn allows(&self, step: Step, model: &Reconnects) -> bool {
        let Self { bridge, stream, host, guest } = self;
        let variant = model.variant;
        match step {
            Step::HostWrites => bridge.is_up && host.negotiated && host.queued,
            Step::HostReads => !bridge.to_host.is_empty(),
            Step::GuestReads => !bridge.to_guest.is_empty(),
            Step::GuestWrites => {
                bridge.is_up
                    && (!guest.outgoing.is_empty()
                        || (variant == Variant::SpeaksBeforeNegotiation && !guest.held.is_empty()))
            }
            Step::GuestAnswers => {
                let drained = guest.drained || variant == Variant::ExitBeforeDrain;
                guest.working && guest.exited && drained
            }
            Step::GuestNotifies => {
                let early = variant == Variant::NotifiesEarly && guest.exited;
                (guest.answered || early) && !guest.told
            }
            Step::CutBridge => bridge.is_up && bridge.cuts < model.bounds.bridge_cuts,
            Step::Reconnect => !bridge.is_up,
            Step::ProcessWrites => {
                guest.produced < model.bounds.pieces
                    && guest.produced - guest.acknowledged < UNACKNOWLEDGED
            }
            Step::ProcessExits => guest.produced == model.bounds.pieces && !guest.exited,
            Step::RelayReads => !stream.to_guest.is_empty(),
            Step::RelayWrites => {
                stream.is_up && guest.greeted && (guest.has_output() || guest.may_end(variant))
            }
            Step::RelayEnds => {
                let has_all = guest.ended && guest.acknowledged == guest.produced;
                has_all && host.complete && stream.to_guest.is_empty() && !guest.drained
            }
            Step::RelayGivesUp => !stream.is_up && host.complete && guest.exited && !guest.drained,
            Step::HostTakes => !stream.to_host.is_empty() && !host.complete,
            Step::CutStream => {
                stream.is_up && !guest.drained && stream.cuts < model.bounds.stream_cuts
            }
            // A host that has all does not listen any more.
            Step::DialStream => !stream.is_up && !host.complete,
        }
    }

    pub(crate) fn take(&mut self, step: Step, model: &Reconnects) {
        let variant = model.variant;
        match step {
            Step::HostWrites => {
                self.host.queued = false;
                self.bridge.to_guest.push(ToGuest::Wait);
            }
            Step::HostReads => self.host_reads(),
            Step::GuestReads => self.guest_reads(variant),
            Step::GuestWrites => {
                let queue = match self.guest.outgoing.is_empty() {
                    true => &mut self.guest.held,
                    false => &mut self.guest.outgoing,
                };
                let frame = queue.remove(0);
                self.guest.wrote(frame);
                self.bridge.to_host.push(frame);
            }
            Step::GuestAnswers => {
                self.guest.working = false;
                self.guest.answered = true;
                self.guest.send(ToHost::Exit);
            }
            Step::GuestNotifies => {
                self.guest.told = true;
                self.guest.send(ToHost::Notification);
            }
            Step::CutBridge => self.cut_bridge(),
            Step::Reconnect => {
                let pending = !self.host.queued && self.host.told == 0;
                let negotiate = ToGuest::Negotiate { pending, notified: self.host.notified };
                self.bridge.is_up = true;
                self.bridge.to_guest.push(negotiate);
            }
            Step::ProcessWrites => self.guest.produced += 1,
            Step::ProcessExits => self.guest.exited = true,
            Step::RelayReads => {
                let count = self.stream.to_guest.remove(0);
                let guest = &mut self.guest;
                guest.acknowledged = guest.acknowledged.max(count);
                if !std::mem::replace(&mut guest.greeted, true)
                    && variant != Variant::ResumesFromWritten
                {
                    // What the host has not got comes again.
                    guest.relayed = guest.acknowledged;
                }
            }
            Step::RelayWrites => {
                let guest = &mut self.guest;
                let ends = guest.may_end(variant);
                let piece = match guest.has_output() && !(ends && guest.relayed > 0) {
                    true => {
                        guest.relayed += 1;
                        Piece::Output(guest.relayed - 1)
                    }
                    false => {
                        guest.ended = true;
                        Piece::End
                    }
                };
                self.stream.to_host.push(piece);
            }
            Step::RelayEnds | Step::RelayGivesUp => self.guest.drained = true,
            Step::HostTakes => self.host_takes(),
            Step::CutStream => {
                self.stream.is_up = false;
                self.stream.cuts += 1;
                self.stream.to_guest.clear();
                self.stream.to_host.clear();
            }
            Step::DialStream => {
                let count = self.host.received.len() as u8;
                self.host.acknowledged = count;
                self.stream.is_up = true;
                self.stream.to_guest.push(count);
                self.guest.greeted = false;
                self.guest.ended = false;
            }
        }
    }

    fn host_reads(&mut self) {
        let host = &mut self.host;
        match self.bridge.to_host.remove(0) {
            ToHost::Negotiated { unknown } => {
                host.negotiated = true;
                host.queued |= unknown && host.told == 0;
            }
            // Answers from before a loss may come once the new connection is negotiated, no sooner.
            _ if !host.negotiated => host.violated = true,
            // Nobody waits for a second answer.
            ToHost::Exit if host.told > 0 => host.violated = true,
            ToHost::Exit => host.told += 1,
            ToHost::Notification => host.notified += 1,
        }
    }

    fn guest_reads(&mut self, variant: Variant) {
        let guest = &mut self.guest;
        match self.bridge.to_guest.remove(0) {
            ToGuest::Wait => guest.working = true,
            ToGuest::Negotiate { pending, notified } => {
                let unread = guest.unread(pending, notified, variant);
                let known = guest.working
                    || [&guest.held, &unread].iter().any(|frames| frames.contains(&ToHost::Exit));
                let unknown = pending && !known && variant != Variant::ForgetsUnknown;
                guest.notified = notified;
                guest.negotiated = true;
                guest.outgoing.push(ToHost::Negotiated { unknown });
                guest.outgoing.extend(unread);
                guest.outgoing.append(&mut guest.held);
            }
        }
    }

    fn cut_bridge(&mut self) {
        self.bridge.is_up = false;
        self.bridge.cuts += 1;
        self.bridge.to_guest.clear();
        self.bridge.to_host.clear();
        self.host.negotiated = false;
        let unsent = std::mem::take(&mut self.guest.outgoing);
        if std::mem::replace(&mut self.guest.negotiated, false) {
            let unsent = unsent.into_iter();
            // An answer to a negotiation means nothing on another connection.
            let unsent = unsent.filter(|frame| !matches!(frame, ToHost::Negotiated { .. }));
            self.guest.held.extend(unsent);
        }
    }

    fn host_takes(&mut self) {
        let host = &mut self.host;
        match self.stream.to_host.remove(0) {
            Piece::Output(number) => {
                host.received.push(number);
                let count = host.received.len() as u8;
                if count - host.acknowledged >= ACKNOWLEDGE {
                    host.acknowledged = count;
                    self.stream.to_guest.push(count);
                }
            }
            Piece::End => {
                host.complete = true;
                self.stream.to_guest.push(host.received.len() as u8);
            }
        }
    }
}

impl Guest {
    fn has_output(&self) -> bool {
        self.relayed < self.produced
    }

    fn may_end(&self, variant: Variant) -> bool {
        let whole = !self.has_output() || variant == Variant::EndsEarly;
        self.exited && whole && !self.ended
    }

    fn send(&mut self, frame: ToHost) {
        match self.negotiated {
            true => self.outgoing.push(frame),
            false => self.held.push(frame),
        }
    }

    fn wrote(&mut self, frame: ToHost) {
        let number = (frame == ToHost::Notification).then(|| {
            self.notified += 1;
            self.notified
        });
        self.written.push((frame, number));
    }

    /// What was written and is not read, as the host says.
    fn unread(&mut self, pending: bool, notified: u8, variant: Variant) -> Vec<ToHost> {
        let written = std::mem::take(&mut self.written);
        if variant == Variant::ForgetsWritten {
            return Vec::new();
        }
        let missed = |frame: &ToHost, number: &Option<u8>| match number {
            Some(_) if variant == Variant::RepeatsNotifications => true,
            Some(number) => *number > notified,
            None => *frame == ToHost::Exit && pending,
        };
        let unread = written.into_iter().filter(|(frame, number)| missed(frame, number));
        unread.map(|(frame, _)| frame).collect()
    }
}
