//! The only place that picks a result code.

use linkspan_protocol::{Fault, HResult};

use crate::Error;

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let result = match &error {
            Error::NoContainer(_) => HResult::SYSTEM_NOT_FOUND,
            Error::ContainerExists(_) => HResult::SYSTEM_ALREADY_EXISTS,
            Error::ContainerRunning(_) => HResult::INVALID_STATE,
            Error::ContainerNotRunning(_) => HResult::SYSTEM_ALREADY_STOPPED,
            Error::NoProcess(_) | Error::NotFound(_) => HResult::ELEMENT_NOT_FOUND,
            Error::WaitTimedOut { .. } => HResult::TIMEOUT,
            Error::NotImplemented => HResult::NOT_IMPLEMENTED,
            Error::Document { .. } => HResult::INVALID_JSON,
            Error::Argument { field: "ContainerId", .. } => HResult::INVALID_ARGUMENT,
            // The reference means INVALID_STATE for a container that is being made, and sends this.
            Error::ContainerCreating(_)
            | Error::Argument { .. }
            | Error::Late { .. }
            | Error::Busy(_)
            | Error::NotSupported(_)
            | Error::Runtime { .. }
            | Error::Corrupt { .. }
            | Error::Io { .. } => HResult::FAIL,
        };
        Fault::new(result, error.to_string())
    }
}
