//! What can go wrong, as a caller tells it apart.

use std::io;
use std::path::PathBuf;

use linkspan_protocol::client::CloseReason;
use linkspan_protocol::{CallError, Fault, HResult};
use thiserror::Error;

/// A failure of this library.
#[derive(Debug, Error)]
pub enum Error {
    /// An option is not acceptable.
    #[error("{option}: {reason}")]
    Option {
        /// Which.
        option: &'static str,
        /// What is wrong with it, the value included, and what would be right.
        reason: String,
    },
    /// No boot image where one could be.
    #[error(
        "no boot image for the {backend} backend (it takes {needs}); looked in:{}\n\
         make one with `cargo xtask image` or `linkspan image build`, or name one",
        listed(.places)
    )]
    NoImage {
        /// Whose.
        backend: &'static str,
        /// Files of an image.
        needs: &'static str,
        /// Where none of them is.
        places: Vec<PathBuf>,
    },
    /// The guest refused.
    #[error("{what}: {fault}")]
    Guest {
        /// What was asked of it.
        what: String,
        /// What it says.
        #[source]
        fault: Fault,
    },
    /// The guest answered something that cannot be read.
    #[error("{what}: the guest's answer: {reason}")]
    Answer {
        /// What was asked of it.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The guest did not answer in time.
    #[error("{what}: the guest did not answer within {seconds} s")]
    TimedOut {
        /// What was asked of it.
        what: String,
        /// How long it had.
        seconds: u64,
    },
    /// There is no bridge (any more).
    #[error("{what}: the bridge is closed: {reason}")]
    Closed {
        /// What was wanted.
        what: String,
        /// Why there is none.
        reason: CloseReason,
    },
    /// The utility VM did not come up.
    #[error("utility VM {name:?} did not come up: {reason}; it hung in: {phase}{}", console_text(.console))]
    Boot {
        /// Which.
        name: String,
        /// How long it had, or how it ended.
        reason: String,
        /// How far it came.
        phase: String,
        /// The last it said.
        console: String,
    },
    /// The utility VM's backend failed.
    #[error(transparent)]
    Vmm(Box<dyn std::error::Error + Send + Sync>),
    /// A layer cannot be used.
    #[error("layer {path}: {source}")]
    Layer {
        /// Which.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This side's operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// Verb, object and place.
        what: String,
        /// Why.
        source: io::Error,
    },
}

fn listed(places: &[PathBuf]) -> String {
    places.iter().map(|place| format!("\n  {}", place.display())).collect()
}

fn console_text(console: &str) -> String {
    match console.trim_end() {
        "" => "; the console stayed silent".to_owned(),
        text => format!("\nlast lines of its console:\n{text}"),
    }
}

/// What a failed start of a process says about its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramProblem {
    /// There is no such program.
    NotFound,
    /// It cannot be run.
    NotExecutable,
}

impl Error {
    /// The guest's code, if it was the guest that refused.
    pub fn code(&self) -> Option<HResult> {
        match self {
            Self::Guest { fault, .. } => Some(fault.result),
            _ => None,
        }
    }

    /// Whether a process could not start for its program's sake. Guests have no code for that,
    /// so it is read from the words that ours and the reference's runtime use.
    pub fn program_problem(&self) -> Option<ProgramProblem> {
        let Self::Guest { fault, .. } = self else { return None };
        let text = &fault.message;
        let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
        if !says(&["executable", "exec:", "exec \""]) {
            return None;
        }
        if says(&["not found", "no such file"]) {
            return Some(ProgramProblem::NotFound);
        }
        says(&["permission denied", "cannot be run", "exec format", "is a directory"])
            .then_some(ProgramProblem::NotExecutable)
    }

    pub(crate) fn from_call(what: impl Into<String>, seconds: u64, error: CallError) -> Self {
        let what = what.into();
        match error {
            CallError::Fault(fault) => Self::Guest { what, fault },
            CallError::TimedOut { .. } => Self::TimedOut { what, seconds },
            CallError::Closed { reason } => Self::Closed { what, reason },
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
