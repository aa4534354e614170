//! A model of what Linkspan's two ends do about lost connections: one container whose init writes
//! output and ends, a host that waits for it, and connections that are lost at any point.
//!
//! The rules are those of `protocol/src/server.rs` and its `history` (what is written again on a
//! new connection), `protocol/src/client.rs` (what a negotiation says), `guest/src/relay/outlet.rs`
//! and `host/src/resume.rs` (resumed output). Everything else is left out: frames are values, bytes
//! are numbers, and time does not exist: whatever can happen may happen next.
//!
//! ```text
//! bridge   host ── negotiate, wait ─────────────> guest     lost up to `bridge_cuts` times,
//!          host <── negotiated, exit, notification ──        with all that is on its way
//! stream   host ── counts of what it has ───────> guest     lost up to `stream_cuts` times
//!          host <── pieces of output, their end ────
//! ```
//!
//! The simulation (`linkspan simulate`) runs the code itself and tries some orders of events; here
//! a model is run and all orders are tried. With a [`Variant`] the model does one thing wrong, and
//! a property has to fail.

mod rules;

use stateright::{Model, Property};

/// What the model can be made to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Nothing.
    Right,
    /// The guest answers the wait when the process ends, not when its output has been taken.
    ExitBeforeDrain,
    /// The guest forgets what it has written, as if written were read.
    ForgetsWritten,
    /// The guest writes notifications again that the host has counted.
    RepeatsNotifications,
    /// The guest writes what it holds before the host has negotiated.
    SpeaksBeforeNegotiation,
    /// The guest takes every request for one that has come.
    ForgetsUnknown,
    /// The relay goes on from what it had written, not from what the host has.
    ResumesFromWritten,
    /// The relay says the end on a new connection before it has written what is missing.
    EndsEarly,
    /// The guest tells of the exit before it has answered the wait.
    NotifiesEarly,
}

/// All that are wrong, with the property that has to fail.
pub const WRONG: [(Variant, &str); 8] = [
    (Variant::ExitBeforeDrain, EXIT),
    (Variant::ForgetsWritten, END),
    (Variant::RepeatsNotifications, NOTIFICATION),
    (Variant::SpeaksBeforeNegotiation, BRIDGE),
    (Variant::ForgetsUnknown, END),
    (Variant::ResumesFromWritten, OUTPUT),
    (Variant::EndsEarly, OUTPUT),
    (Variant::NotifiesEarly, NOTIFICATION),
];

/// Output comes whole and in order, and ends when it is whole.
pub const OUTPUT: &str = "output comes whole and in order";
/// The exit is told once, when the host has all output.
pub const EXIT: &str = "the exit is told once, and after the output";
/// One notification, of an exit that the guest has told.
pub const NOTIFICATION: &str = "one notification, of what was waited for";
/// The host sees nothing for which a host ends the bridge.
pub const BRIDGE: &str = "the host has no reason to end the bridge";
/// Everything is told in the end.
pub const END: &str = "all comes to its end";
/// The model does reach what it is about.
pub const REACHED: &str = "an exit is told after every connection was lost as often as it can be";

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Pieces of output.
    pub pieces: u8,
    /// How often the bridge is lost.
    pub bridge_cuts: u8,
    /// How often the output's connection is lost.
    pub stream_cuts: u8,
}

/// The model within bounds.
#[derive(Clone, Copy, Debug)]
pub struct Reconnects {
    /// What is tried.
    pub bounds: Bounds,
    /// What is wrong with it.
    pub variant: Variant,
}

/// What a host says on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToGuest {
    /// The first frame of a connection: whether the wait is unanswered, and how many notifications
    /// have come.
    Negotiate {
        /// The wait was sent, and is not answered.
        pending: bool,
        /// Notifications so far.
        notified: u8,
    },
    /// WaitForProcess.
    Wait,
}

/// What a guest says on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToHost {
    /// The answer to a negotiation: whether the wait has never come.
    Negotiated {
        /// It has to be sent again.
        unknown: bool,
    },
    /// The answer to the wait.
    Exit,
    /// The container has ended.
    Notification,
}

/// One piece of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Piece {
    /// The output's piece with this number.
    Output(u8),
    /// There is no more.
    End,
}

/// The bridge's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bridge {
    pub(crate) is_up: bool,
    pub(crate) to_guest: Vec<ToGuest>,
    pub(crate) to_host: Vec<ToHost>,
    pub(crate) cuts: u8,
}

/// The output's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stream {
    pub(crate) is_up: bool,
    /// Counts of what the host has.
    pub(crate) to_guest: Vec<u8>,
    pub(crate) to_host: Vec<Piece>,
    pub(crate) cuts: u8,
}

/// The host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Host {
    pub(crate) negotiated: bool,
    /// The wait is still to be written.
    pub(crate) queued: bool,
    /// How often the exit was told.
    pub(crate) told: u8,
    pub(crate) notified: u8,
    pub(crate) received: Vec<u8>,
    /// What it has said that it has, on this connection.
    pub(crate) acknowledged: u8,
    pub(crate) complete: bool,
    /// Something came that ends bridges.
    pub(crate) violated: bool,
}

/// The guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Guest {
    pub(crate) negotiated: bool,
    /// Frames that wait to be written on this connection.
    pub(crate) outgoing: Vec<ToHost>,
    /// Frames that wait for a connection that is negotiated.
    pub(crate) held: Vec<ToHost>,
    /// Frames that were written; a notification with its number.
    pub(crate) written: Vec<(ToHost, Option<u8>)>,
    pub(crate) notified: u8,
    /// The wait has come, and is not answered.
    pub(crate) working: bool,
    /// The wait has been answered.
    pub(crate) answered: bool,
    /// The notification has been made.
    pub(crate) told: bool,
    /// Pieces that the process has written.
    pub(crate) produced: u8,
    pub(crate) exited: bool,
    /// Pieces that the host has said that it has.
    pub(crate) acknowledged: u8,
    /// Pieces that were written, on this connection or one before.
    pub(crate) relayed: u8,
    /// The host has said on this connection what it has.
    pub(crate) greeted: bool,
    /// The end was written on this connection.
    pub(crate) ended: bool,
    /// The host has taken all output, or will take none any more.
    pub(crate) drained: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(crate) bridge: Bridge,
    pub(crate) stream: Stream,
    pub(crate) host: Host,
    pub(crate) guest: Guest,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The host writes the wait.
    HostWrites,
    /// The host reads a frame.
    HostReads,
    /// The guest reads a frame.
    GuestReads,
    /// The guest writes a frame.
    GuestWrites,
    /// The guest answers the wait.
    GuestAnswers,
    /// The guest tells of the exit.
    GuestNotifies,
    /// The bridge is lost.
    CutBridge,
    /// The guest dials, the host negotiates.
    Reconnect,
    /// The process writes a piece.
    ProcessWrites,
    /// The process ends.
    ProcessExits,
    /// The relay reads a count.
    RelayReads,
    /// The relay writes a piece, or the end.
    RelayWrites,
    /// The relay sees that the host has closed, having all.
    RelayEnds,
    /// The relay gives a host up that takes no output any more.
    RelayGivesUp,
    /// The host takes a piece.
    HostTakes,
    /// The output's connection is lost.
    CutStream,
    /// The relay dials, the host says what it has.
    DialStream,
}

/// All steps.
const STEPS: [Step; 17] = [
    Step::HostWrites,
    Step::HostReads,
    Step::GuestReads,
    Step::GuestWrites,
    Step::GuestAnswers,
    Step::GuestNotifies,
    Step::CutBridge,
    Step::Reconnect,
    Step::ProcessWrites,
    Step::ProcessExits,
    Step::RelayReads,
    Step::RelayWrites,
    Step::RelayEnds,
    Step::RelayGivesUp,
    Step::HostTakes,
    Step::CutStream,
    Step::DialStream,
];

impl Model for Reconnects {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let negotiate = ToGuest::Negotiate { pending: false, notified: 0 };
        vec![State {
            bridge: Bridge { is_up: true, to_guest: vec![negotiate], ..Bridge::default() },
            stream: Stream { is_up: true, to_guest: vec![0], ..Stream::default() },
            host: Host { queued: true, ..Host::default() },
            guest: Guest::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        actions.extend(STEPS.into_iter().filter(|&step| state.allows(step, self)));
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        next.take(step, self);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(OUTPUT, |model: &Self, state: &State| {
                let received = &state.host.received;
                received.iter().copied().eq(0..received.len() as u8)
                    && (!state.host.complete || received.len() == usize::from(model.bounds.pieces))
            }),
            Property::always(EXIT, |_, state: &State| {
                state.host.told == 0 || (state.host.told == 1 && state.host.complete)
            }),
            Property::always(NOTIFICATION, |_, state: &State| {
                state.host.notified == 0 || (state.host.notified == 1 && state.guest.answered)
            }),
            Property::always(BRIDGE, |_, state: &State| !state.host.violated),
            // No step can be undone, so that every run comes to a state from which none leads on.
            Property::always(END, |model: &Self, state: &State| {
                let all = state.host.complete && state.host.told == 1 && state.host.notified == 1;
                all || STEPS.into_iter().any(|step| state.allows(step, model))
            }),
            Property::sometimes(REACHED, |model: &Self, state: &State| {
                state.host.told == 1
                    && state.host.notified == 1
                    && state.bridge.cuts == model.bounds.bridge_cuts
                    && state.stream.cuts == model.bounds.stream_cuts
            }),
        ]
    }
}
