//! Signals by name, and those that reach this process.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::error::{Context, Error};

/// Linux's signals below the real-time ones, on every architecture that a guest can have.
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// A signal as a number, or a name with or without `SIG`, in either case.
pub(crate) fn parse(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return match number {
            1..=64 => Ok(number),
            _ => Err("is not between 1 and 64".to_owned()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, number)| *number).ok_or_else(|| "is no signal such as TERM or 9".to_owned())
}

/// `SIGTERM`, or `signal 40` where there is no name.
pub(crate) fn name(number: i32) -> String {
    match NAMES.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => format!("SIG{name}"),
        None => format!("signal {number}"),
    }
}

/// What reaches this process and is meant for the one in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// To be passed on.
    Signal(i32),
    /// The terminal has another size.
    Resized,
}

/// The signals that this process takes from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    events: mpsc::UnboundedReceiver<Event>,
}

impl Signals {
    const FORWARDED: [Signal; 6] =
        [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

    /// Takes them over.
    pub(crate) fn take_over() -> Result<Self, Error> {
        let (sender, events) = mpsc::unbounded_channel();
        let forwarded = Self::FORWARDED.map(|it| (it.as_raw(), Event::Signal(it.as_raw())));
        let resized = (Signal::WINCH.as_raw(), Event::Resized);
        for (number, event) in forwarded.into_iter().chain([resized]) {
            let mut arriving = signal(SignalKind::from_raw(number))
                .context(|| format!("take over {}", name(number)))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while arriving.recv().await.is_some() && sender.send(event).is_ok() {}
            });
        }
        Ok(Self { events })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// The next one that asks this process to end.
    pub(crate) async fn ending(&mut self) -> i32 {
        loop {
            if let Event::Signal(number @ (1..=3 | 15)) = self.next().await {
                return number;
            }
        }
    }

    /// Does something that may be given up half-way when a signal asks for the end.
    pub(crate) async fn interrupt<T, E: Into<Error>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        tokio::select! {
            outcome = work => outcome.map_err(Into::into),
            signal = self.ending() => Err(Error::Interrupted(signal)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_may_be_a_number_or_a_name_in_any_usual_form() {
        for text in ["15", "TERM", "SIGTERM", "sigterm", "term"] {
            assert_eq!(parse(text), Ok(15), "{text}");
        }
        assert_eq!(parse("64"), Ok(64));
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["0", "65", "-1", "", "SIG", "TERMINATE", "SIGSIGTERM"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_name_reads_back_as_its_number() {
        for number in 1..=31 {
            assert_eq!(parse(&name(number)), Ok(number));
        }
        assert_eq!(name(40), "signal 40");
    }
}
