//! What the bridge says: a request and its response per procedure, and the notification.
//!
//! [`Procedure`] ties a request to its message type and its response, so that neither end can
//! pair them wrongly. [`Request`] is the whole table on one screen.

mod create;
mod execute_process;
mod get_properties;
mod modify_settings;
mod negotiate;
mod notification;
mod process;
mod service;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use create::{
    ConfidentialHostedSystem, Create, CreateResponse, HostedContainer, HostedSystem, SchemaVersion,
    SupportedVersions, SystemTime, TimeZoneInformation, UvmDocument, WindowsContainer,
};
pub use execute_process::{
    ExecuteProcess, ExecuteProcessResponse, ExecuteProcessSettings, LinkspanStdio,
    ProcessParameters, ServiceStdio, VsockStdio,
};
pub use get_properties::{
    BlkioMetrics, CgroupStats, ContainerMetrics, CpuMetrics, CpuThrottling, CpuUsage,
    GetProperties, GetPropertiesResponse, HugetlbMetrics, KnownProperty, MemoryEntry,
    MemoryMetrics, MemoryOomControl, PidsMetrics, ProcessDetails, Properties, PropertyQuery,
    PropertyType,
};
pub use modify_settings::{ModifyRequest, ModifySettings, ModifyTarget};
pub use negotiate::{
    Capabilities, GuestDefinedCapabilities, LinkspanGuest, LinkspanHost, NegotiateProtocol,
    NegotiateProtocolResponse,
};
pub use notification::{Notification, NotificationType, Operation};
pub use process::{
    INFINITE, ResizeConsole, SignalOptions, SignalProcess, WaitForProcess, WaitForProcessResponse,
};
pub use service::{LogForwardSettings, ModifyServiceSettings};

use crate::json::{self, is_zero};
use crate::{DecodeError, ErrorRecord, HResult, MessageType, UVM_ID};

/// Which compute system a message is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub String);

impl ContainerId {
    /// The utility VM itself.
    pub fn uvm() -> Self {
        Self(UVM_ID.to_owned())
    }

    /// Nobody: as in NegotiateProtocol.
    pub fn none() -> Self {
        Self(String::new())
    }

    /// Whether this is the utility VM.
    pub fn is_uvm(&self) -> bool {
        self.0 == UVM_ID
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ContainerId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The keys that every request begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Envelope {
    /// Whom it is for.
    pub container_id: ContainerId,
    /// A GUID, echoed by the response.
    pub activity_id: String,
    /// W3C trace headers.
    #[serde(rename = "otsc", skip_serializing_if = "is_zero")]
    pub trace: BTreeMap<String, String>,
}

impl Envelope {
    /// An envelope as a host without tracing writes it.
    pub fn to(container_id: ContainerId) -> Self {
        Self { container_id, activity_id: UVM_ID.to_owned(), trace: BTreeMap::new() }
    }
}

/// The keys that every response begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResponseEnvelope {
    /// How it went.
    pub result: HResult,
    /// The request's.
    #[serde(skip_serializing_if = "is_zero")]
    pub activity_id: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub error_message: String,
    /// Where it failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub error_records: Vec<ErrorRecord>,
}

/// A request with its type and its response.
pub trait Procedure: Serialize {
    /// What the guest answers when all went well.
    type Response: Serialize + DeserializeOwned;

    /// The request's message type.
    fn message_type(&self) -> MessageType;
}

/// A response without keys of its own, or a request without any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($body:ty) = $kind:ident => $response:ty,)*) => {
        /// Every request there is.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request {
            $($(#[$doc])* $name($body),)*
        }

        impl Request {
            /// Its message type.
            pub fn message_type(&self) -> MessageType {
                match self { $(Self::$name(_) => MessageType::$kind,)* }
            }

            /// Reads the request that a document of `message_type` holds; `None` when no such
            /// type is known.
            ///
            /// # Errors
            /// [`DecodeError`] names the field that is not as it should be.
            pub fn read(
                message_type: MessageType,
                document: &Value,
            ) -> Option<Result<Self, DecodeError>> {
                match message_type {
                    $(MessageType::$kind => Some(json::read::<$body>(document).map(Self::$name)),)*
                    _ => None,
                }
            }

            /// Writes the request's document into `out`.
            ///
            /// # Errors
            /// If a value cannot be written as JSON, such as a map whose keys are no strings.
            pub fn write(
                &self,
                envelope: &Envelope,
                out: &mut Vec<u8>,
            ) -> Result<(), serde_json::Error> {
                match self { $(Self::$name(body) => write_request(envelope, body, out),)* }
            }
        }

        $(requests!(@procedure $body, $kind, $response);)*
    };
    (@procedure $body:ty, $kind:ident, $response:ty) => {
        impl Procedure for $body {
            type Response = $response;
            fn message_type(&self) -> MessageType { MessageType::$kind }
        }
    };
}

requests! {
    /// The first exchange.
    NegotiateProtocol(NegotiateProtocol) = NEGOTIATE_PROTOCOL => NegotiateProtocolResponse,
    /// Make a container.
    Create(Create) = CREATE => CreateResponse,
    /// Acknowledge a container.
    Start(Start) = START => Empty,
    /// Ask it to stop.
    ShutdownGraceful(ShutdownGraceful) = SHUTDOWN_GRACEFUL => Empty,
    /// Make it stop.
    ShutdownForced(ShutdownForced) = SHUTDOWN_FORCED => Empty,
    /// Start a process.
    ExecuteProcess(ExecuteProcess) = EXECUTE_PROCESS => ExecuteProcessResponse,
    /// Await a process's exit.
    WaitForProcess(WaitForProcess) = WAIT_FOR_PROCESS => WaitForProcessResponse,
    /// Send a signal.
    SignalProcess(SignalProcess) = SIGNAL_PROCESS => Empty,
    /// Change a terminal's size.
    ResizeConsole(ResizeConsole) = RESIZE_CONSOLE => Empty,
    /// Ask for properties.
    GetProperties(GetProperties) = GET_PROPERTIES => GetPropertiesResponse,
    /// Change resources.
    ModifySettings(ModifySettings) = MODIFY_SETTINGS => Empty,
    /// Ask what the agent is doing.
    DumpStacks(DumpStacks) = DUMP_STACKS => DumpStacksResponse,
    /// Forget a container.
    DeleteContainerState(DeleteContainerState) = DELETE_CONTAINER_STATE => Empty,
    /// Declared, never sent; its document is opaque.
    UpdateContainer(Opaque<0>) = UPDATE_CONTAINER => Value,
    /// Declared, never sent; its document is opaque.
    LifecycleNotification(Opaque<1>) = LIFECYCLE_NOTIFICATION => Value,
    /// Configure a Windows guest's service.
    ModifyServiceSettings(ModifyServiceSettings) = MODIFY_SERVICE_SETTINGS => Empty,
}

macro_rules! bare {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {}
    )*};
}

bare! {
    /// Start: nothing but the envelope. A Linux guest answers it for any id and does nothing.
    Start;
    /// ShutdownGraceful: SIGTERM to a container's init, or the utility VM's power-off.
    ShutdownGraceful;
    /// ShutdownForced: SIGKILL to a container's init, or the utility VM's power-off.
    ShutdownForced;
    /// DumpStacks: nothing but the envelope.
    DumpStacks;
    /// DeleteContainerState: nothing but the envelope.
    DeleteContainerState;
}

/// A request whose document nobody has defined.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Opaque<const WHICH: u8>(pub Value);

/// What DumpStacks answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DumpStacksResponse {
    /// Free text.
    pub guest_stacks: String,
}

#[derive(Serialize)]
struct Joined<'a, E, B> {
    #[serde(flatten)]
    envelope: &'a E,
    #[serde(flatten)]
    body: &'a B,
}

/// A request as hosts write it: one document and a newline, which counts.
pub(crate) fn write_request(
    envelope: &Envelope,
    body: &impl Serialize,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    serde_json::to_writer(&mut *out, &Joined { envelope, body })?;
    out.push(b'\n');
    Ok(())
}

/// A response as guests write it: one document, no newline.
pub(crate) fn write_response(
    envelope: &ResponseEnvelope,
    body: &impl Serialize,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    serde_json::to_writer(out, &Joined { envelope, body })
}
