//! The result codes of the wire.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A Windows result code; on the wire a signed decimal. 0 is success.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HResult(pub i32);

macro_rules! results {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl HResult {
            $($(#[$doc])* pub const $name: Self = Self($value as u32 as i32);)*
        }
    };
}

results! {
    /// Success.
    OK = 0;
    /// The message is unknown, or not to be had before (or after) negotiation.
    NOT_IMPLEMENTED = 0x8000_4001u32;
    /// A failure without a code of its own.
    FAIL = 0x8000_4005u32;
    /// An id or another argument is not acceptable.
    INVALID_ARGUMENT = 0x8007_0057u32;
    /// No such process (any more), or no such network namespace.
    ELEMENT_NOT_FOUND = 0x8007_0490u32;
    /// The container is in the wrong state, above all still running.
    INVALID_STATE = 0x8037_0105u32;
    /// A wait ran out of time.
    TIMEOUT = 0xc037_0109u32;
    /// No common protocol version.
    UNSUPPORTED_PROTOCOL_VERSION = 0xc037_010cu32;
    /// The document is no JSON, is not of the right shape, or has a schema that is too old.
    INVALID_JSON = 0xc037_010du32;
    /// No such container.
    SYSTEM_NOT_FOUND = 0xc037_010eu32;
    /// There is a container of that id.
    SYSTEM_ALREADY_EXISTS = 0xc037_010fu32;
    /// The container is not running.
    SYSTEM_ALREADY_STOPPED = 0xc037_0110u32;
}

impl HResult {
    /// Whether this is success.
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for HResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Debug for HResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HResult({self})")
    }
}
