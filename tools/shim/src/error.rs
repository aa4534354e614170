//! What can go wrong, in the codes that containerd tells apart.

use std::io;
use std::path::PathBuf;

use containerd_shim_protos::ttrpc::{self, Code, get_status};
use thiserror::Error;

/// A failure of the shim.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The command line, or what came with it.
    #[error("{field}: {reason}")]
    Input { field: &'static str, reason: String },
    /// A file of options.
    #[error("{}: {reason}", .path.display())]
    Options { path: PathBuf, reason: String },
    #[error("{what} {id:?} not found")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {id:?} already exists")]
    Exists { what: &'static str, id: String },
    /// It is in the wrong state.
    #[error("cannot {verb} {id:?}: it is {state}")]
    State { verb: &'static str, id: String, state: &'static str },
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The utility VM did not come up, or has gone.
    #[error("{0}")]
    Machine(String),
    #[error(transparent)]
    Host(#[from] linkspan_host::Error),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("talk to containerd: {0}")]
    Ttrpc(#[from] ttrpc::Error),
}

impl Error {
    pub(crate) fn input(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Input { field, reason: reason.into() }
    }

    /// Adds to an error of the operating system what was being done.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        |source| Self::Io { what, source: source.into() }
    }

    fn code(&self) -> Code {
        match self {
            Self::Input { .. } | Self::Options { .. } => Code::INVALID_ARGUMENT,
            Self::NotFound { .. } => Code::NOT_FOUND,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::State { .. } => Code::FAILED_PRECONDITION,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Machine(_) | Self::Host(linkspan_host::Error::Closed { .. }) => Code::UNAVAILABLE,
            Self::Host(linkspan_host::Error::Option { .. }) => Code::INVALID_ARGUMENT,
            Self::Host(_) | Self::Io { .. } | Self::Ttrpc(_) => Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(get_status(error.code(), told(&error)))
    }
}

/// An error with its causes, as far as it does not hold them itself.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
