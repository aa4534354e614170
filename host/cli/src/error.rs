//! What can go wrong, and how it is said.

use std::io;

use linkspan_host::ProgramProblem;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a command ends without having done what it was asked to.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// Something on the command line or in the environment.
    #[error("{field}: {reason}")]
    Input { field: &'static str, reason: String },
    /// The library.
    #[error(transparent)]
    Host(#[from] linkspan_host::Error),
    /// The boot image builder.
    #[error(transparent)]
    Image(#[from] linkspan_initrd::Error),
    /// What the protocol harness needs.
    #[error(transparent)]
    Bench(#[from] linkspan_conform::machine::BenchError),
    /// Container images.
    #[error(transparent)]
    Store(#[from] linkspan_image::Error),
    /// Layers.
    #[error(transparent)]
    Layer(#[from] linkspan_layer::Error),
    /// A monitor says so.
    #[error("{}", .0.message)]
    Remote(Report),
    /// The operating system.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// A signal came before there was a process to pass it to.
    #[error("interrupted by {}", crate::signals::name(*.0))]
    Interrupted(i32),
}

/// What the command's exit code is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// Anything but the program that was to be run.
    #[default]
    Linkspan,
    NotExecutable,
    NotFound,
    /// By this signal.
    Interrupted(i32),
}

/// An error as it is told: to a person, as JSON, or by a monitor to a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    #[serde(rename = "error")]
    pub(crate) message: String,
    /// What brought it about, outermost first, without what the message says already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) causes: Vec<String>,
    pub(crate) cause: Cause,
}

impl Error {
    pub(crate) fn input(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Input { field, reason: reason.into() }
    }

    pub(crate) fn report(&self) -> Report {
        if let Self::Remote(report) = self {
            return report.clone();
        }
        let message = self.to_string();
        let mut causes: Vec<String> = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let text = error.to_string();
            if !message.contains(&text) && causes.iter().all(|said| !said.contains(&text)) {
                causes.push(text);
            }
            source = error.source();
        }
        Report { message, causes, cause: self.cause() }
    }

    fn cause(&self) -> Cause {
        match self {
            Self::Remote(report) => report.cause,
            Self::Interrupted(signal) => Cause::Interrupted(*signal),
            Self::Host(error) => match error.program_problem() {
                Some(ProgramProblem::NotFound) => Cause::NotFound,
                Some(ProgramProblem::NotExecutable) => Cause::NotExecutable,
                None => Cause::Linkspan,
            },
            _ => Cause::Linkspan,
        }
    }
}

/// Adds to an error of the operating system what was being done.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::Io { what: what(), source: error.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_message_holds_is_not_told_again() {
        let error = Error::Io { what: "open x".into(), source: io::ErrorKind::NotFound.into() };
        assert_eq!(error.report().message, "open x: entity not found");
        assert_eq!(error.report().causes, Vec::<String>::new());
    }

    #[test]
    fn a_report_survives_the_way_from_a_monitor() {
        let report = Report {
            message: "start: exec: not found".into(),
            causes: vec!["ENOENT".into()],
            cause: Cause::NotFound,
        };
        let text = serde_json::to_string(&report).unwrap();
        let error = Error::Remote(serde_json::from_str(&text).unwrap());
        assert_eq!(error.report(), report);
    }
}
