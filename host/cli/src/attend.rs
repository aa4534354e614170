//! Attends to a process in the guest as if it ran here: streams, signals, terminal, exit code.
//!
//! The same for a process in a utility VM of our own and for one that a monitor holds.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::mpsc;
use tracing::warn;

use linkspan_host::{Child, ProcessHandle};

use crate::control::Order;
use crate::error::{Context, Error};
use crate::relay::Streams;
use crate::signals::{Event, Signals};
use crate::terminal::{self, RawMode};

/// Within this time a second SIGINT means it.
const IMPATIENCE: Duration = Duration::from_secs(2);

/// How long what a lost guest wrote last may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the exit code says of a process that was ended by SIGKILL.
const KILLED: u32 = 128 + 9;

/// How the local side takes part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    /// The process has a terminal.
    pub(crate) terminal: bool,
    /// stdin goes to it.
    pub(crate) stdin: bool,
}

/// Relays until the process has ended and all its output has been written; returns its exit code.
pub(crate) async fn attend(
    streams: Streams,
    local: Local,
    signals: &mut Signals,
    orders: mpsc::UnboundedSender<Order>,
    exit: impl Future<Output = Result<u32, Error>>,
) -> Result<u32, Error> {
    let raw = match local.terminal && local.stdin {
        true => RawMode::enter()?,
        false => None,
    };
    let mut outputs = streams.relay().context(|| "relay standard streams".into())?;
    let ended = async {
        let outcome = exit.await;
        match outcome {
            Ok(_) => outputs.finished().await,
            // The guest is lost: its end of the sockets may never be closed.
            Err(_) => drop(tokio::time::timeout(LAST_WORDS, outputs.finished()).await),
        }
        outcome
    };
    tokio::pin!(ended);
    let mut patience = Patience::default();
    // Whoever ordered from has gone only when the process has, which `ended` tells.
    let order = |order| {
        let _ = orders.send(order);
    };
    let outcome = loop {
        tokio::select! {
            outcome = &mut ended => break outcome,
            event = signals.next() => match event {
                Event::Resized => {
                    if let (true, Some((rows, columns))) = (local.terminal, terminal::size()) {
                        order(Order::Resize { rows, columns });
                    }
                }
                // Without its terminal nobody can speak with it any more, and an init that has
                // no handler would not even notice.
                Event::Signal(number) if local.terminal && number == Signal::HUP.as_raw() => {
                    order(Order::Signal { number });
                    order(Order::Kill);
                }
                Event::Signal(number) => match patience.left_after(number, Instant::now()) {
                    Left::Some => order(Order::Signal { number }),
                    Left::Little => order(Order::Kill),
                    Left::None => break Ok(KILLED),
                },
            },
        }
    };
    drop(raw);
    outcome
}

/// How patient whoever sends signals still is.
#[derive(Debug, Default)]
struct Patience {
    interrupts: u32,
    last: Option<Instant>,
    killed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// Pass the signal on.
    Some,
    /// Kill the process.
    Little,
    /// Do not even wait for that.
    None,
}

impl Patience {
    fn left_after(&mut self, signal: i32, now: Instant) -> Left {
        if signal != Signal::INT.as_raw() {
            return Left::Some;
        }
        self.interrupts += 1;
        let soon = self.last.replace(now).is_some_and(|last| now - last < IMPATIENCE);
        match (self.killed, soon || self.interrupts > 2) {
            (true, _) => Left::None,
            (false, true) => {
                self.killed = true;
                Left::Little
            }
            (false, false) => Left::Some,
        }
    }
}

/// The streams of a process of this library's, to be relayed.
pub(crate) fn streams(child: &mut Child) -> Streams {
    Streams {
        stdin: child.stdin.take().map(linkspan_host::Stream::into_fd),
        stdout: child.stdout.take().map(linkspan_host::Stream::into_fd),
        stderr: child.stderr.take().map(linkspan_host::Stream::into_fd),
    }
}

/// Takes orders for a process until nobody gives any.
pub(crate) fn take_orders(process: ProcessHandle) -> mpsc::UnboundedSender<Order> {
    let (sender, mut orders) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            carry_out(&process, order).await;
        }
    });
    sender
}

/// Carries one order out; a process that is gone is no failure.
pub(crate) async fn carry_out(process: &ProcessHandle, order: Order) {
    let outcome = match order {
        Order::Signal { number } => process.signal(number).await.map(drop),
        Order::Kill => process.kill().await.map(drop),
        Order::Resize { rows, columns } => process.resize(rows, columns).await,
    };
    if let Err(error) = outcome {
        warn!(pid = process.pid(), %error, ?order, "order to a process");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT: i32 = 2;

    #[test]
    fn a_second_interrupt_within_two_seconds_kills_and_another_gives_up() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        assert_eq!(patience.left_after(INT, now), Left::Some);
        assert_eq!(patience.left_after(INT, now + Duration::from_secs(1)), Left::Little);
        assert_eq!(patience.left_after(INT, now + Duration::from_secs(60)), Left::None);
    }

    #[test]
    fn slow_interrupts_are_passed_on_twice() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        assert_eq!(patience.left_after(INT, now), Left::Some);
        assert_eq!(patience.left_after(INT, now + Duration::from_secs(5)), Left::Some);
        assert_eq!(patience.left_after(INT, now + Duration::from_secs(10)), Left::Little);
    }

    #[test]
    fn other_signals_are_always_passed_on() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        for signal in [15, 15, 15, 1, 10] {
            assert_eq!(patience.left_after(signal, now), Left::Some);
        }
    }
}
