//! Seccomp profiles of the OCI runtime spec, compiled to the kernel's filter programs.
//!
//! ```text
//! which architecture? ─┬─ one of the profile's ─> calls with conditions, in the profile's order
//!                      │                          calls without, as ranges of numbers
//!                      └─ another ───────────┐    newer than the profile: ENOSYS
//!                                            └──> the default action
//! ```
//!
//! A profile has an action for each rule and rules for several architectures; `seccompiler`, the
//! usual crate, compiles one action for one architecture. The names come from `syscalls`.

mod compile;
mod profile;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    /// The kernel's instructions, 8 bytes each.
    pub(crate) program: Vec<u64>,
    /// `SECCOMP_FILTER_FLAG_…`
    pub(crate) flags: u32,
}

impl Filter {
    /// Compiles `linux.seccomp` of a spec; `None` if there is none.
    pub(crate) fn of(spec: &Value) -> Result<Option<Self>> {
        let profile = &spec["linux"]["seccomp"];
        if profile.is_null() {
            return Ok(None);
        }
        let profile = profile::Profile::parse(profile)
            .map_err(|reason| Error::Document { field: "linux.seccomp", reason })?;
        let program = compile::compile(&profile)
            .map_err(|reason| Error::Document { field: "linux.seccomp", reason })?;
        Ok(Some(Self { program, flags: profile.flags }))
    }
}
