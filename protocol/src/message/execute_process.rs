//! ExecuteProcess: start a process, and where its stdio goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::JsonString;
use crate::json::is_zero;

/// Starts a process.
///
/// In a Linux guest, addressed to a container: without
/// [`oci_process`](ProcessParameters::oci_process) its init, else a further process in it.
/// Addressed to the utility VM: an external process, in the utility VM's own root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecuteProcess {
    /// All of it.
    pub settings: ExecuteProcessSettings,
}

/// The process, and where its stdio goes. Exactly one of the relay settings is there, by the
/// guest's OS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecuteProcessSettings {
    /// The process.
    pub process_parameters: JsonString<ProcessParameters>,
    /// For a Windows guest: service GUIDs.
    #[serde(skip_serializing_if = "is_zero")]
    pub stdio_relay_settings: Option<ServiceStdio>,
    /// For a Linux guest: vsock ports.
    #[serde(skip_serializing_if = "is_zero")]
    pub vsock_stdio_relay_settings: Option<VsockStdio>,
}

/// Vsock ports on which the host listens, one for each stream that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VsockStdio {
    /// Host to process.
    #[serde(rename = "StdIn", skip_serializing_if = "is_zero")]
    pub stdin: u32,
    /// Process to host.
    #[serde(rename = "StdOut", skip_serializing_if = "is_zero")]
    pub stdout: u32,
    /// Process to host.
    #[serde(rename = "StdErr", skip_serializing_if = "is_zero")]
    pub stderr: u32,
    /// Ours alone: what becomes of an init's output when its connection is lost. For guests that
    /// say [`linkspan_stdio`](super::GuestDefinedCapabilities::linkspan_stdio); to others it means
    /// nothing.
    #[serde(rename = "Linkspan", skip_serializing_if = "is_zero")]
    pub linkspan: Option<LinkspanStdio>,
}

/// What becomes of an init's output when its connection is lost. Where nothing is said, the guest
/// dials again and writes the last 128 KiB again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkspanStdio {
    /// The process learns that nobody reads any more.
    Once,
    /// The guest dials again, and each byte arrives once. On the connection the host first says
    /// how many bytes it has, as a little-endian `u64`, and again as they come; `u64::MAX` says
    /// that it wants no more. The guest sends pieces from that count on: a little-endian `u32`
    /// length, then as many bytes; 0 is the end.
    Resume,
}

/// Service GUIDs on which the host listens, one for each stream that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceStdio {
    /// Host to process.
    #[serde(rename = "StdIn", skip_serializing_if = "is_zero")]
    pub stdin: String,
    /// Process to host.
    #[serde(rename = "StdOut", skip_serializing_if = "is_zero")]
    pub stdout: String,
    /// Process to host.
    #[serde(rename = "StdErr", skip_serializing_if = "is_zero")]
    pub stderr: String,
}

/// The process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProcessParameters {
    /// Windows: the program.
    #[serde(skip_serializing_if = "is_zero")]
    pub application_name: String,
    /// The command as one string: split as a shell would, where there are no
    /// [`command_args`](Self::command_args).
    #[serde(skip_serializing_if = "is_zero")]
    pub command_line: String,
    /// The command, of an external process in a Linux guest.
    #[serde(skip_serializing_if = "is_zero")]
    pub command_args: Vec<String>,
    /// Windows: the account.
    #[serde(skip_serializing_if = "is_zero")]
    pub user: String,
    /// Of an external process or a Windows one.
    #[serde(skip_serializing_if = "is_zero")]
    pub working_directory: String,
    /// The whole environment of an external process: nothing is inherited.
    #[serde(skip_serializing_if = "is_zero")]
    pub environment: BTreeMap<String, String>,
    /// Windows.
    #[serde(skip_serializing_if = "is_zero")]
    pub restricted_token: bool,
    /// Give an external process a terminal.
    #[serde(skip_serializing_if = "is_zero")]
    pub emulate_console: bool,
    /// Whether stdin is connected.
    #[serde(skip_serializing_if = "is_zero")]
    pub create_std_in_pipe: bool,
    /// Whether stdout is connected.
    #[serde(skip_serializing_if = "is_zero")]
    pub create_std_out_pipe: bool,
    /// Whether stderr is connected.
    #[serde(skip_serializing_if = "is_zero")]
    pub create_std_err_pipe: bool,
    /// Windows: height and width in characters.
    #[serde(skip_serializing_if = "is_zero")]
    pub console_size: Option<[i32; 2]>,
    /// Windows.
    #[serde(skip_serializing_if = "is_zero")]
    pub use_existing_login: bool,
    /// Windows.
    #[serde(skip_serializing_if = "is_zero")]
    pub use_legacy_console: bool,
    /// An external process although a container is addressed. (The capitals are the wire's.)
    #[serde(rename = "CreateInUtilityVM", skip_serializing_if = "is_zero")]
    pub create_in_utility_vm: bool,
    /// Parsed and ignored by guests.
    #[serde(skip_serializing_if = "is_zero")]
    pub oci_specification: Option<Value>,
    /// A further process in a container: an OCI process object, kept as it came.
    #[serde(skip_serializing_if = "is_zero")]
    pub oci_process: Option<Value>,
}

/// What ExecuteProcess answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecuteProcessResponse {
    /// The pid in the guest's root pid namespace.
    pub process_id: u32,
}
