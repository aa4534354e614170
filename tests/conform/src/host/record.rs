//! What a host has done in one run.

use std::collections::BTreeMap;
use std::time::Duration;

use linkspan_protocol::MessageType;
use serde_json::Value;

use super::reach::Ending;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// On which connection, counted from 0.
    pub(crate) connection: usize,
    pub(crate) message_type: MessageType,
    pub(crate) id: u64,
    /// The document.
    pub(crate) body: Value,
    /// Since the run began.
    pub(crate) at: Duration,
    /// Its place among all that came and went.
    pub(crate) came: usize,
    /// The place of its answer.
    pub(crate) answered: Option<usize>,
    /// Of an ExecuteProcess: the process that it started.
    pub(crate) pid: Option<u32>,
}

impl Request {
    pub(crate) fn container(&self) -> &str {
        self.body["ContainerId"].as_str().unwrap_or_default()
    }

    /// Of an ExecuteProcess: the process's parameters, where they can be read.
    pub(crate) fn parameters(&self) -> Value {
        let text = self.body["Settings"]["ProcessParameters"].as_str().unwrap_or_default();
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Of a ModifySettings: RequestType and ResourceType.
    pub(crate) fn change(&self) -> (&str, &str) {
        let request = &self.body["Request"];
        let text = |key: &str| request[key].as_str().unwrap_or_default();
        (text("RequestType"), text("ResourceType"))
    }
}

/// How the run's last connection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Closed {
    #[default]
    Not,
    ByHost,
    ByGuest,
}

/// What came on a second connection to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    /// It was refused, or closed without a byte.
    Refused,
    /// It stays open; so many bytes came.
    Open(usize),
}

/// One run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// Why the bridge could not be reached.
    pub(crate) unreachable: Option<String>,
    pub(crate) requests: Vec<Request>,
    pub(crate) closed: Closed,
    /// When the host closed, since the run began.
    pub(crate) closed_at: Option<Duration>,
    /// What the host sent made no sense.
    pub(crate) lost: bool,
    /// The host has done nothing for too long.
    pub(crate) stuck: bool,
    /// How many requests had come, and when, as the guest did what the run is about.
    pub(crate) deviated: Option<(usize, Duration)>,
    /// Two requests were outstanding at a time, and the later one was answered first.
    pub(crate) out_of_order: bool,
    /// The bridge was dialled again after a loss: whether it was taken.
    pub(crate) redialled: Option<bool>,
    /// Exits that the guest has told of: pid and code.
    pub(crate) told: Vec<(u32, u32)>,
    /// The second connection to the bridge.
    pub(crate) second_bridge: Option<Second>,
    /// The second connections to stdio ports.
    pub(crate) second_stdio: Vec<(u32, Second)>,
    /// How many processes have had their streams connected.
    pub(crate) stdio: Streams,
    /// What came on the entropy port, and whether it ended.
    pub(crate) entropy: Option<(usize, bool)>,
    /// Whether the log port was listened on.
    pub(crate) has_log: bool,
    /// Statements that were broken on streams.
    pub(crate) violations: Vec<(u32, String)>,
    /// How the program ended, if it was started here.
    pub(crate) program: Option<Ending>,
}

/// Which streams were seen to what end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streams {
    /// Connected at all.
    pub(crate) dialled: usize,
    /// Outputs that were ended here.
    pub(crate) outputs: usize,
    /// Inputs that the host has ended.
    pub(crate) inputs: usize,
}

impl Record {
    /// Requests of a kind.
    pub(crate) fn of(&self, kind: MessageType) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(move |request| request.message_type == kind)
    }

    /// Whether there was one.
    pub(crate) fn has(&self, kind: MessageType) -> bool {
        self.of(kind).next().is_some()
    }

    /// Requests after the guest did what the run is about.
    pub(crate) fn afterwards(&self) -> &[Request] {
        self.deviated.map_or(&[], |(at, _)| self.requests.get(at..).unwrap_or_default())
    }

    /// How many there were of each kind, but for negotiations.
    pub(crate) fn counts(&self) -> BTreeMap<MessageType, usize> {
        let mut counts = BTreeMap::new();
        for request in &self.requests {
            if request.message_type != MessageType::NEGOTIATE_PROTOCOL {
                *counts.entry(request.message_type).or_default() += 1;
            }
        }
        counts
    }

    /// How the program ended, for people.
    pub(crate) fn words(&self) -> String {
        match &self.program {
            Some(ending) => {
                let how = ending.status.as_deref().unwrap_or("it had to be killed");
                format!("{how}; it said: {}", ending.last_words())
            }
            None => String::new(),
        }
    }
}
