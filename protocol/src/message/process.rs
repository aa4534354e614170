//! WaitForProcess, SignalProcess, ResizeConsole.

use serde::{Deserialize, Serialize};

use crate::json::is_zero;

/// A wait without a limit, in milliseconds.
pub const INFINITE: u32 = u32::MAX;

/// Answered once the process has exited and its output is relayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WaitForProcess {
    /// The pid that ExecuteProcess answered.
    pub process_id: u32,
    /// Milliseconds, or [`INFINITE`].
    pub timeout_in_ms: u32,
}

/// What WaitForProcess answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WaitForProcessResponse {
    /// The exit status, or 128 + signal; of an external process that a signal ended, `u32::MAX`.
    pub exit_code: u32,
    /// Ours alone: how many of its container's processes the kernel has killed for want of memory.
    /// Other hosts pass over it.
    #[serde(skip_serializing_if = "is_zero")]
    pub linkspan_oom_kills: u64,
}

/// Sends a signal to one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SignalProcess {
    /// Whom.
    pub process_id: u32,
    /// Which; kill where there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub options: Option<SignalOptions>,
}

/// Which signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SignalOptions {
    /// A Linux guest's. 0 means kill.
    Linux {
        /// The number.
        #[serde(rename = "Signal", default, skip_serializing_if = "is_zero")]
        signal: i32,
    },
    /// A Windows guest's: `CtrlC`, `CtrlBreak`, `CtrlClose`, `CtrlLogOff` or `CtrlShutdown`.
    Windows {
        /// The name.
        #[serde(rename = "Signal")]
        signal: String,
    },
}

impl SignalProcess {
    /// The signal number that a Linux guest is to send; kill where none is said.
    pub fn linux_signal(&self) -> Option<i32> {
        match &self.options {
            None | Some(SignalOptions::Linux { signal: 0 }) => Some(9),
            Some(SignalOptions::Linux { signal }) => Some(*signal),
            Some(SignalOptions::Windows { .. }) => None,
        }
    }
}

/// Changes a terminal's size, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResizeConsole {
    /// Whose.
    pub process_id: u32,
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}
