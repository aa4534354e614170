//! What the scripted guest does otherwise than a right one.

use std::sync::Arc;
use std::time::Duration;

use linkspan_protocol::{HResult, MessageType};
use serde_json::{Value, json};

/// One thing that the guest does.
#[derive(Clone)]
pub(crate) enum Step {
    /// Answers as a right guest would.
    Answer,
    /// The same, with these keys of the document set.
    With(Value),
    /// Answers a failure.
    Fault(HResult, &'static str),
    /// Writes what becomes of the right answer's frame.
    Bytes(Bytes),
    /// Waits; other requests are worked on.
    Wait(Duration),
    /// Lets no other request be answered.
    Hold,
    /// Lets them again.
    Release,
    /// Closes the bridge and stays away.
    Leave,
    /// Closes the bridge and dials again.
    Redial,
}

/// Makes the bytes to write of a right answer's frame.
pub(crate) type Bytes = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// When a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// As soon as the request comes, beside its answer.
    Comes,
    /// When its answer is due, in place of it.
    Due,
}

#[derive(Clone)]
pub(super) struct Rule {
    pub(super) on: MessageType,
    pub(super) when: When,
    pub(super) always: bool,
    pub(super) steps: Vec<Step>,
}

/// How the guest behaves in one run. The default is a right guest.
#[derive(Clone)]
pub(crate) struct Script {
    /// What the run is about.
    pub(crate) name: &'static str,
    pub(super) rules: Vec<Rule>,
    /// What becomes of every response.
    pub(super) every: Option<Bytes>,
    /// Answers are kept back a little, and come in the other order.
    pub(super) backwards: bool,
    /// An init's exit is notified before its wait is answered.
    pub(super) notifies_first: bool,
    /// The `Type` of notifications.
    pub(super) notification: &'static str,
    /// The bridge is dialled a second time.
    pub(super) dials_bridge_again: bool,
    /// Each stdio port is dialled a second time.
    pub(super) dials_stdio_again: bool,
    /// What is written to the log port.
    pub(super) log: &'static str,
    /// How long the host may do nothing, if not as long as an answer may take.
    pub(super) patience: Option<Duration>,
}

impl Script {
    /// A right guest.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            rules: Vec::new(),
            every: None,
            backwards: false,
            notifies_first: false,
            notification: "UnexpectedExit",
            dials_bridge_again: false,
            dials_stdio_again: false,
            log: "",
            patience: None,
        }
    }

    /// What the next request of a kind is answered. Several such rules apply one after the other.
    pub(crate) fn once(mut self, on: MessageType, steps: impl Into<Vec<Step>>) -> Self {
        self.rules.push(Rule { on, when: When::Due, always: false, steps: steps.into() });
        self
    }

    /// What every request of a kind is answered.
    pub(crate) fn always(mut self, on: MessageType, steps: impl Into<Vec<Step>>) -> Self {
        self.rules.push(Rule { on, when: When::Due, always: true, steps: steps.into() });
        self
    }

    /// What is done when the next request of a kind comes.
    pub(crate) fn when(mut self, on: MessageType, steps: impl Into<Vec<Step>>) -> Self {
        self.rules.push(Rule { on, when: When::Comes, always: false, steps: steps.into() });
        self
    }

    /// What becomes of the frame of every response.
    pub(crate) fn every(
        mut self,
        bytes: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        self.every = Some(Arc::new(bytes));
        self
    }

    /// The guest says that it can do only this. `capabilities` is the whole object.
    pub(crate) fn capabilities(self, capabilities: Value) -> Self {
        let answer = Step::With(json!({"Capabilities": capabilities}));
        self.once(MessageType::NEGOTIATE_PROTOCOL, [answer])
    }
}

impl Step {
    /// Writes what becomes of the right answer's frame.
    pub(crate) fn bytes(make: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::Bytes(Arc::new(make))
    }
}

/// The capabilities of a right guest.
pub(crate) fn capabilities() -> Value {
    json!({
        "SupportedSchemaVersions": [{"Major": 2, "Minor": 1}],
        "RuntimeOsType": "Linux",
        "GuestDefinedCapabilities": {
            "NamespaceAddRequestSupported": true,
            "SignalProcessSupported": true,
            "DumpStacksSupported": true,
            "DeleteContainerStateSupported": true,
        },
    })
}
