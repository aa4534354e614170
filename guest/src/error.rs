//! What can go wrong with a request.

use std::io;

use thiserror::Error;

/// Why a request failed. Which code the host gets for it is decided in `fault.rs` alone.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such container.
    #[error("container {0:?} does not exist")]
    NoContainer(String),
    /// There is one already.
    #[error("container {0:?} already exists")]
    ContainerExists(String),
    /// It is being made.
    #[error("container {0:?} is still being created")]
    ContainerCreating(String),
    /// It has to be stopped first.
    #[error("container {0:?} is still running")]
    ContainerRunning(String),
    /// It has stopped, or has never run.
    #[error("container {0:?} is not running")]
    ContainerNotRunning(String),
    /// There is no such process, or it has exited and was reported.
    #[error("process {0} does not exist")]
    NoProcess(u32),
    /// Something else is not there.
    #[error("{0} does not exist")]
    NotFound(String),
    /// A wait ended before the process did.
    #[error("process {pid} has not exited within {milliseconds} ms")]
    WaitTimedOut {
        /// Which.
        pid: u32,
        /// How long.
        milliseconds: u32,
    },
    /// The host asks for more than can be worked on.
    #[error("{0} requests are being worked on; more are refused until some are done")]
    Busy(usize),
    /// Something did not happen in time.
    #[error("no {what} within {limit:?}")]
    Late {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: std::time::Duration,
    },
    /// A document does not say what it has to.
    #[error("{field}: {reason}")]
    Document {
        /// Which field.
        field: &'static str,
        /// What is wrong with it, the value included.
        reason: String,
    },
    /// An argument is not acceptable.
    #[error("{field}: {reason}")]
    Argument {
        /// Which field.
        field: &'static str,
        /// What is wrong with it, the value included.
        reason: String,
    },
    /// A request that only other guests know.
    #[error("not implemented by a Linux guest")]
    NotImplemented,
    /// A known request with something that is not done here.
    #[error("{0} is not supported")]
    NotSupported(String),
    /// The container runtime failed.
    #[error("{reason}")]
    Runtime {
        /// create, start, exec or delete.
        operation: &'static str,
        /// Whose.
        id: String,
        /// What it says.
        reason: String,
    },
    /// What is on a device is not what its root hash says.
    #[error("{what}: its contents do not match the root hash {root}")]
    Corrupt {
        /// Which device.
        what: String,
        /// The hash that was pinned, in hexadecimal.
        root: String,
    },
    /// The kernel refused.
    #[error("{what}: {source}")]
    Io {
        /// Verb, object and place.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// Adds to an error of the kernel what was being done.
pub(crate) trait Context<T> {
    /// `what` says verb, object and place.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::Io { what: what(), source: error.into() })
    }
}
