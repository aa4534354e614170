//! The one thing that a guest says unasked.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ContainerId;
use crate::JsonString;
use crate::json::is_zero;
use crate::{HResult, UVM_ID};

/// A container has exited (or, between Linkspan's two ends, has lost a process). Hosts count the message itself and look at nothing but the id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Notification {
    /// Which container.
    pub container_id: ContainerId,
    /// The Create's, and a GUID: a host whose bridge reads anything else ends it.
    pub activity_id: String,
    /// How it ended.
    #[serde(rename = "Type")]
    pub kind: NotificationType,
    /// What was under way; Linux guests say `None`.
    pub operation: Operation,
    /// Linux guests say 0.
    pub result: HResult,
    /// Linux guests leave it out. Never the empty string: that ends a host's bridge.
    #[serde(skip_serializing_if = "is_zero")]
    pub result_info: Option<JsonString<Value>>,
}

impl Default for Notification {
    fn default() -> Self {
        Self {
            container_id: ContainerId::none(),
            activity_id: UVM_ID.to_owned(),
            kind: NotificationType::None,
            operation: Operation::None,
            result: HResult::OK,
            result_info: None,
        }
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $first:ident $($word:ident)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "the wire's words")]
        pub enum $name {
            #[default]
            $first,
            $($word,)*
            /// A word that is not known here.
            #[serde(other)]
            Other,
        }
    };
}

words! {
    /// How a container ended. `LinkspanOomKill` is ours alone, and no end: the kernel has killed a
    /// process of the container for want of memory; `ResultInfo` is `{"OomKills": N}`, how many so far. It is sent to
    /// hosts that have said that they are Linkspan's, for others would take it for an exit.
    NotificationType:
    None GracefulExit ForcedExit UnexpectedExit Reboot Constructed Started Paused Unknown LinkspanOomKill
}

words! {
    /// What was under way.
    Operation: None Construct Start Pause Resume Shutdown Terminate
}
