//! What was being done when an IO error came up.

use std::error::Error;
use std::{fmt, io};

#[derive(Debug)]
struct Context {
    action: String,
    cause: io::Error,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.action)
    }
}

impl Error for Context {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}

/// An error of the same kind that names `action`, with `cause` as its source.
pub(crate) fn while_doing(action: String, cause: io::Error) -> io::Error {
    io::Error::new(cause.kind(), Context { action, cause })
}
