//! Defects of a host: done to what a right one sends and hears.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyperv_socket::Stream;
use linkspan_protocol::frame::{Decoder, Frame, HEADER_LEN, HOST_LIMIT};
use linkspan_protocol::{HResult, Kind, MessageType, UVM_ID, port};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{Instant, sleep_until};

use super::Defect;
use crate::wire::{frame, hresult};

/// How long a host that is in a hurry waits.
const HURRY: Duration = Duration::from_secs(10);

/// What no host waits longer for.
const LIMIT: Duration = Duration::from_secs(31);

/// Longer than a guest waits for an ended output to be closed.
const LATE: Duration = Duration::from_millis(2500);

/// Between the library and its guest.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) defect: Defect,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The id of the next request, as the guest sees it.
    next_id: u64,
    /// The guest's ids of outstanding requests: the library's id, which an added one has not.
    outstanding: BTreeMap<u64, Asked>,
    /// Stdio ports by their use.
    streams: HashMap<u32, &'static str>,
    connections: usize,
    /// A connection is being served.
    serves: bool,
    /// Answers to waits for inits, by the library's id.
    init_waits: HashMap<u64, String>,
    inits: HashMap<u64, String>,
    /// A frame that is sent after the next.
    later: Option<Frame>,
    /// Frames that wait for the answer to a shutdown.
    held: Vec<Frame>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    id: Option<u64>,
    kind: MessageType,
    at: Instant,
}

/// What becomes of a frame.
enum Out {
    Pass(Vec<u8>),
    /// To where it came from.
    Back(Vec<u8>),
    Close,
}

impl Wire {
    pub(super) fn new(defect: Defect) -> Self {
        Self { defect, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The library's end of a guest's connection.
    pub(super) fn carry(self: &Arc<Self>, port: u32, guest: Stream) -> io::Result<Stream> {
        let (ours, theirs) = Stream::pair()?;
        let wire = Arc::clone(self);
        if port == port::BRIDGE {
            self.state().connections += 1;
            tokio::spawn(async move {
                let mut guest = guest;
                let beside = std::mem::replace(&mut wire.state().serves, true);
                if beside && wire.defect == Defect::ServesTwo {
                    let hello = frame(MessageType::NEGOTIATE_PROTOCOL, 0, b"{}");
                    let _ = guest.write_all(&hello).await;
                    std::future::pending::<()>().await;
                }
                Arc::clone(&wire).bridge(guest, theirs).await;
                wire.state().serves = false;
            });
            return Ok(ours);
        }
        match (self.defect, port) {
            (Defect::ShortEntropy, port::ENTROPY) => {
                tokio::spawn(shorten_entropy(guest, theirs));
                return Ok(ours);
            }
            (Defect::KeepsEntropy, port::ENTROPY) => {
                tokio::spawn(keep_entropy(guest, theirs));
                return Ok(ours);
            }
            (Defect::StrictLog, port::LOG) => {
                tokio::spawn(strict_log(guest));
                return Ok(ours);
            }
            (Defect::SleepsOverLog, port::LOG) => {
                tokio::spawn(async move {
                    let _unread = guest;
                    std::future::pending::<()>().await;
                });
                return Ok(ours);
            }
            _ => {}
        }
        let stream = self.state().streams.get(&port).copied().unwrap_or_default();
        match (self.defect, stream) {
            (Defect::ClosesOutputs, "StdOut" | "StdErr") => drop(guest),
            (Defect::KeepsOutputs, "StdOut" | "StdErr") => {
                tokio::spawn(keep_output(guest, theirs));
            }
            (Defect::ClosesInput, "StdIn") => {
                tokio::spawn(close_input(guest, theirs));
            }
            _ => return Ok(guest),
        }
        Ok(ours)
    }

    async fn bridge(self: Arc<Self>, guest: Stream, host: Stream) {
        let (mut from_guest, mut to_guest) = guest.into_split();
        let (mut from_host, mut to_host) = host.into_split();
        let mut up = Decoder::new(usize::MAX);
        let mut down = Decoder::new(match self.defect {
            Defect::LargeFrames => HOST_LIMIT + 1,
            _ => HOST_LIMIT,
        });
        let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let mut raw = false;
        loop {
            let (to_up, to_down, ended) = tokio::select! {
                read = from_host.read(&mut a) => match read {
                    Ok(len @ 1..) => {
                        up.push(&a[..len]);
                        let (pass, back, close) = self.all(&mut up, Self::up, None);
                        (pass, back, close)
                    }
                    _ => return,
                },
                read = from_guest.read(&mut b) => match read {
                    Ok(len @ 1..) if raw => (Vec::new(), b[..len].to_vec(), false),
                    Ok(len @ 1..) => {
                        down.push(&b[..len]);
                        let (pass, back, close) = self.all(&mut down, Self::down, Some(&mut raw));
                        (back, pass, close)
                    }
                    _ if self.defect == Defect::HangsOnEnd => {
                        std::future::pending::<()>().await;
                        return;
                    }
                    _ if self.defect == Defect::SucceedsOnEnd => std::process::exit(0),
                    _ => return,
                },
                () = until(self.expiry()) => std::process::exit(1),
            };
            if !to_up.is_empty() && to_guest.write_all(&to_up).await.is_err() {
                return;
            }
            if !to_down.is_empty() && to_host.write_all(&to_down).await.is_err() {
                return;
            }
            if ended {
                // A host that gives up ends, and does not wait for its guest to come back.
                std::process::exit(1);
            }
        }
    }

    /// When a host in a hurry gives up.
    fn expiry(&self) -> Option<Instant> {
        let waits = match self.defect {
            Defect::GivesUpSoon => false,
            Defect::WaitsExpire => true,
            _ => return None,
        };
        let state = self.state();
        let awaited = state.outstanding.values().filter(|asked| {
            (asked.kind == MessageType::WAIT_FOR_PROCESS) == waits && !is_shutdown(asked.kind)
        });
        awaited.map(|asked| asked.at + HURRY).min()
    }

    /// What passes, what goes back, and whether that is the end.
    fn all(
        &self,
        decoder: &mut Decoder,
        handle: fn(&Self, Frame) -> Vec<Out>,
        raw: Option<&mut bool>,
    ) -> (Vec<u8>, Vec<u8>, bool) {
        let (mut pass, mut back) = (Vec::new(), Vec::new());
        loop {
            match decoder.next_frame() {
                Ok(Some(next)) => {
                    for out in handle(self, next) {
                        match out {
                            Out::Pass(bytes) => pass.extend(bytes),
                            Out::Back(bytes) => back.extend(bytes),
                            Out::Close => return (pass, back, true),
                        }
                    }
                }
                Ok(None) => return (pass, back, false),
                Err(error) => {
                    // The library is to see for itself.
                    if let Some(raw) = raw {
                        *raw = true;
                        let mut header = error.message_type.0.to_le_bytes().to_vec();
                        header.extend(error.size.to_le_bytes());
                        header.extend(error.id.to_le_bytes());
                        pass.extend(header);
                    }
                    return (pass, back, false);
                }
            }
        }
    }

    /// A request of the library's.
    fn up(&self, request: Frame) -> Vec<Out> {
        let Frame { message_type: kind, id, payload } = request;
        let mut state = self.state();
        let mut body: Value = serde_json::from_slice(&payload).unwrap_or_default();
        let mut out = Vec::new();
        if kind == MessageType::NEGOTIATE_PROTOCOL {
            match self.defect {
                Defect::AsksFirst if state.next_id == 0 => {
                    out.push(state.add(MessageType::DUMP_STACKS, &envelope()));
                }
                Defect::NoSecondNegotiation if state.next_id > 0 => {
                    let answer = json!({"Result": 0, "Version": 4, "Capabilities": {
                        "RuntimeOsType": "Linux", "GuestDefinedCapabilities": {}}});
                    let bytes = answer.to_string();
                    return vec![Out::Back(frame(kind.response(), id, bytes.as_bytes()))];
                }
                Defect::ReusesIds if state.next_id > 0 => {
                    state.next_id = 0;
                }
                _ => {}
            }
        }
        if self.defect == Defect::WaitsForShutdown
            && state.outstanding.values().any(|asked| is_shutdown(asked.kind))
        {
            state.held.push(Frame { message_type: kind, id, payload });
            return out;
        }
        if self.swallows(kind, &body) {
            let body = json!({"Result": 0});
            return vec![Out::Back(frame(kind.response(), id, body.to_string().as_bytes()))];
        }
        state.learn(kind, id, &body, self.defect);
        let held = state.later.take();
        if self.defect == Defect::LayersLate
            && kind == MessageType::MODIFY_SETTINGS
            && body["Request"]["ResourceType"] == "CombinedLayers"
            && body["Request"]["RequestType"] == "Add"
        {
            let answer = frame(kind.response(), id, b"{\"Result\":0}");
            state.later = Some(Frame { message_type: kind, id, payload });
            return vec![Out::Back(answer)];
        }
        let kind_sent = self.spoil(kind, &mut body);
        let number = state.number(Some(id), kind, self.defect);
        let bytes = frame(kind_sent, number, with_newline(&body).as_bytes());
        out.push(Out::Pass(self.header(bytes)));
        if let Some(held) = held {
            let number = state.number(None, held.message_type, self.defect);
            out.push(Out::Pass(frame(held.message_type, number, &held.payload)));
        }
        if kind == MessageType::NEGOTIATE_PROTOCOL && self.defect == Defect::Pipelines {
            let mut query = envelope();
            query["Query"] = json!("{}");
            out.push(state.add(MessageType::GET_PROPERTIES, &query));
        }
        out
    }

    fn swallows(&self, kind: MessageType, body: &Value) -> bool {
        match self.defect {
            Defect::NoStart => kind == MessageType::START && body["ContainerId"] != UVM_ID,
            Defect::KeepsDevices => body["Request"]["ResourceType"] == "SCSIDevice",
            _ => false,
        }
    }

    /// Spoils a request's document, or its type.
    fn spoil(&self, kind: MessageType, body: &mut Value) -> MessageType {
        match (self.defect, kind) {
            (Defect::WideVersions, MessageType::NEGOTIATE_PROTOCOL) => {
                body["MinimumVersion"] = json!(1);
                body["MaximumVersion"] = json!(10);
            }
            (Defect::WrongType, MessageType::GET_PROPERTIES) => return MessageType(0x1010_7701),
            (Defect::NoActivity, _) => drop(body.as_object_mut().map(|b| b.remove("ActivityId"))),
            (Defect::BracedActivity, _) => body["ActivityId"] = json!(format!("{{{UVM_ID}}}")),
            (Defect::PlainTrace, _) => body["otsc"] = json!("00-1-2-3"),
            (Defect::InlineDocuments, MessageType::CREATE) => {
                let text = body["ContainerConfig"].as_str().unwrap_or_default();
                body["ContainerConfig"] = serde_json::from_str(text).unwrap_or_default();
            }
            (Defect::OtherPorts, MessageType::EXECUTE_PROCESS) => {
                let ports = &mut body["Settings"]["VsockStdioRelaySettings"];
                for port in ports.as_object_mut().into_iter().flat_map(|ports| ports.values_mut()) {
                    *port = json!(port.as_u64().unwrap_or_default() + 0x100);
                }
            }
            (Defect::BothSettings, MessageType::EXECUTE_PROCESS) => {
                body["Settings"]["StdioRelaySettings"] = json!({});
            }
            (Defect::ShortWaits, MessageType::WAIT_FOR_PROCESS) => {
                body["TimeoutInMs"] = json!(60_000);
            }
            (Defect::KillWithOptions, MessageType::SIGNAL_PROCESS) => {
                body["Options"] = json!({"Signal": 9});
            }
            (Defect::ProcessForInit, MessageType::EXECUTE_PROCESS) => {
                let text = body["Settings"]["ProcessParameters"].as_str().unwrap_or_default();
                let mut parameters: Value = serde_json::from_str(text).unwrap_or_default();
                if parameters.get("OciProcess").is_none() && body["ContainerId"] != UVM_ID {
                    parameters["OciProcess"] = json!({"args": ["sleep", "1000"]});
                }
                body["Settings"]["ProcessParameters"] = json!(parameters.to_string());
            }
            _ => {}
        }
        kind
    }

    fn header(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self.defect {
            Defect::BigEndian => {
                bytes[..4].reverse();
                bytes[4..8].reverse();
                bytes[8..16].reverse();
            }
            Defect::SizeWithoutHeader => {
                let size = u32::try_from(bytes.len() - 16).unwrap_or_default();
                bytes[4..8].copy_from_slice(&size.to_le_bytes());
            }
            _ => {}
        }
        bytes
    }

    /// A frame of the guest's.
    fn down(&self, answer: Frame) -> Vec<Out> {
        let Frame { message_type, id, payload } = answer;
        let pass = |id: u64, payload: &[u8]| vec![Out::Pass(frame(message_type, id, payload))];
        let mut state = self.state();
        match message_type.kind() {
            Kind::Response => {}
            Kind::Notification if message_type == MessageType::NOTIFICATION => {
                return self.notification(&mut state, &payload);
            }
            Kind::Notification if self.defect == Defect::PassesOverNotifications => {
                return Vec::new();
            }
            Kind::Notification => return pass(id, &payload),
            _ if self.defect == Defect::PassesOverKinds => return Vec::new(),
            _ => return pass(id, &payload),
        }
        let Some(asked) = state.outstanding.remove(&id) else {
            return match self.defect {
                Defect::PassesOverUnknownIds => Vec::new(),
                // No id of the library's.
                _ => pass(id | 1 << 40, &payload),
            };
        };
        let Some(own) = asked.id else { return Vec::new() };
        if is_shutdown(asked.kind) {
            if self.defect == Defect::LateIsViolation && asked.at.elapsed() > LIMIT {
                return vec![Out::Close];
            }
            let held = std::mem::take(&mut state.held);
            let mut out = pass(own, &payload);
            out.extend(held.into_iter().map(|held| {
                let number = state.number(Some(held.id), held.message_type, self.defect);
                Out::Back(frame(held.message_type, number, &held.payload))
            }));
            if self.defect == Defect::WaitsForShutdown {
                return out;
            }
        }
        if self.closes(&state, &asked, id, message_type, &payload) {
            return vec![Out::Close];
        }
        if self.defect == Defect::LargeFrames && payload.len() > HOST_LIMIT - HEADER_LEN {
            return pass(own, payload.trim_ascii_end());
        }
        let Ok(mut body) = serde_json::from_slice::<Value>(&payload) else {
            return match self.defect {
                Defect::PassesOverBadJson => pass(own, b"{\"Result\":0}"),
                Defect::CrashesOnBadJson => std::process::abort(),
                _ => pass(own, &payload),
            };
        };
        if self.hear(&mut state, &asked, own, &mut body) {
            return pass(own, body.to_string().as_bytes());
        }
        let mut out = Vec::new();
        if self.defect == Defect::CreatesAgain
            && asked.kind == MessageType::NEGOTIATE_PROTOCOL
            && state.connections > 1
            && body["Capabilities"]["SendHostCreateMessage"] == true
        {
            let mut create = envelope();
            create["ContainerConfig"] = json!("{}");
            if let Out::Pass(bytes) = state.add(MessageType::CREATE, &create) {
                out.push(Out::Back(bytes));
            }
        }
        out.extend(pass(own, &payload));
        out
    }

    /// Whether a defect ends the bridge for an answer.
    fn closes(
        &self,
        state: &State,
        asked: &Asked,
        id: u64,
        message_type: MessageType,
        payload: &[u8],
    ) -> bool {
        let body = || serde_json::from_slice::<Value>(payload).unwrap_or_default();
        let is_negotiation = asked.kind == MessageType::NEGOTIATE_PROTOCOL && body()["Result"] == 0;
        match self.defect {
            Defect::NeedsCapabilities if is_negotiation => {
                let body = body();
                let defined = body["Capabilities"]["GuestDefinedCapabilities"].as_object();
                defined.is_none_or(serde_json::Map::is_empty)
            }
            Defect::ExactSystem if is_negotiation => {
                body()["Capabilities"]["RuntimeOsType"] != "Linux"
            }
            Defect::InOrderOnly => state
                .outstanding
                .iter()
                .any(|(&other, asked)| other < id && asked.kind != MessageType::WAIT_FOR_PROCESS),
            Defect::ExactTypes => message_type != asked.kind.response(),
            Defect::NeedsActivity => {
                let body = body();
                body.is_object() && body.get("ActivityId").is_none()
            }
            Defect::NoNewlines => payload.last() == Some(&b'\n'),
            Defect::SmallFrames => payload.len() > 60_000,
            _ => false,
        }
    }

    /// What a defect makes of an answer; whether it is another one.
    fn hear(&self, state: &mut State, asked: &Asked, own: u64, body: &mut Value) -> bool {
        let is = |code: HResult| body["Result"] == hresult(code);
        let fail = json!(hresult(HResult::FAIL));
        match (self.defect, asked.kind) {
            (Defect::AnyVersion, MessageType::NEGOTIATE_PROTOCOL) => body["Version"] = json!(4),
            (Defect::IgnoresRefusal, MessageType::NEGOTIATE_PROTOCOL) if body["Result"] != 0 => {
                *body = json!({"Result": 0, "Version": 4, "Capabilities": {
                    "RuntimeOsType": "Linux", "GuestDefinedCapabilities": {}}});
            }
            (Defect::AbsentIsLinux, MessageType::NEGOTIATE_PROTOCOL) => {
                body["Capabilities"]["RuntimeOsType"] = json!("Linux");
            }
            (Defect::NoMachineCreate, MessageType::NEGOTIATE_PROTOCOL) => {
                body["Capabilities"]["SendHostCreateMessage"] = json!(false);
            }
            (Defect::Ungated, MessageType::NEGOTIATE_PROTOCOL) => {
                body["Capabilities"]["GuestDefinedCapabilities"] = crate::host::all_defined();
            }
            (Defect::GoneIsFailure, MessageType::WAIT_FOR_PROCESS)
                if is(HResult::ELEMENT_NOT_FOUND) =>
            {
                body["Result"] = fail;
            }
            (Defect::UndeliveredIsFailure, MessageType::SIGNAL_PROCESS)
                if is(HResult::ELEMENT_NOT_FOUND) =>
            {
                body["Result"] = fail;
            }
            (
                Defect::UnknownIsFailure,
                MessageType::SHUTDOWN_GRACEFUL | MessageType::SHUTDOWN_FORCED,
            ) if is(HResult::SYSTEM_NOT_FOUND) => body["Result"] = fail,
            (Defect::NotificationIsExit, MessageType::EXECUTE_PROCESS) => {
                // The wait for an init is told from others by its process.
                if let Some(container) = state.inits.remove(&own)
                    && let Some(pid) = body["ProcessId"].as_u64()
                {
                    state.inits.insert(1 << 32 | pid, container);
                }
                return false;
            }
            (Defect::NotificationIsExit, MessageType::WAIT_FOR_PROCESS) => {
                state.init_waits.remove(&own);
                return false;
            }
            _ => return false,
        }
        true
    }

    fn notification(&self, state: &mut State, payload: &[u8]) -> Vec<Out> {
        let body: Value = serde_json::from_slice(payload).unwrap_or_default();
        let mut out = vec![Out::Pass(frame(MessageType::NOTIFICATION, 0, payload))];
        match self.defect {
            Defect::UnexpectedOnly if body["Type"] != "UnexpectedExit" => return vec![Out::Close],
            Defect::NotificationIsExit => {
                let of = state.init_waits.iter().find(|(_, of)| body["ContainerId"] == **of);
                let Some(own) = of.map(|(own, _)| *own) else { return out };
                let answer = MessageType::WAIT_FOR_PROCESS.response();
                let exit = b"{\"Result\":0,\"ExitCode\":0}";
                out.push(Out::Pass(frame(answer, own, exit)));
                for asked in state.outstanding.values_mut().filter(|asked| asked.id == Some(own)) {
                    asked.id = None;
                }
            }
            _ => {}
        }
        out
    }
}

impl State {
    /// The id under which the guest sees a request.
    fn number(&mut self, id: Option<u64>, kind: MessageType, defect: Defect) -> u64 {
        let number = self.next_id;
        self.next_id += if defect == Defect::EvenIds { 2 } else { 1 };
        self.outstanding.insert(number, Asked { id, kind, at: Instant::now() });
        number
    }

    /// A request that the library knows nothing of.
    fn add(&mut self, kind: MessageType, body: &Value) -> Out {
        let number = self.number(None, kind, Defect::Pipelines);
        Out::Pass(frame(kind, number, with_newline(body).as_bytes()))
    }

    fn learn(&mut self, kind: MessageType, id: u64, body: &Value, defect: Defect) {
        let container = body["ContainerId"].as_str().unwrap_or_default().to_owned();
        if kind == MessageType::EXECUTE_PROCESS {
            let ports = &body["Settings"]["VsockStdioRelaySettings"];
            for stream in ["StdIn", "StdOut", "StdErr"] {
                let port = ports[stream].as_u64().and_then(|port| u32::try_from(port).ok());
                if let Some(port) = port {
                    self.streams.insert(port, stream);
                }
            }
            let text = body["Settings"]["ProcessParameters"].as_str().unwrap_or_default();
            if !text.contains("OciProcess") && container != UVM_ID {
                self.inits.insert(id, container);
            }
        } else if kind == MessageType::WAIT_FOR_PROCESS && defect == Defect::NotificationIsExit {
            let pid = body["ProcessId"].as_u64().unwrap_or_default();
            if let Some(container) = self.inits.get(&(1 << 32 | pid)) {
                self.init_waits.insert(id, container.clone());
            }
        }
    }
}

fn is_shutdown(kind: MessageType) -> bool {
    [MessageType::SHUTDOWN_GRACEFUL, MessageType::SHUTDOWN_FORCED].contains(&kind)
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn envelope() -> Value {
    json!({"ContainerId": UVM_ID, "ActivityId": UVM_ID})
}

fn with_newline(body: &Value) -> String {
    format!("{body}\n")
}

async fn shorten_entropy(mut guest: Stream, mut host: Stream) {
    let mut bytes = Vec::new();
    let _ = host.read_to_end(&mut bytes).await;
    bytes.pop();
    let _ = guest.write_all(&bytes).await;
}

async fn keep_entropy(mut guest: Stream, mut host: Stream) {
    let _ = tokio::io::copy(&mut host, &mut guest).await;
    std::future::pending::<()>().await;
}

async fn strict_log(guest: Stream) {
    let mut lines = BufReader::new(guest).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if serde_json::from_str::<Value>(&line).is_err() {
            return;
        }
    }
}

/// Passes an output on, and keeps it open after its end.
async fn keep_output(mut guest: Stream, mut host: Stream) {
    let _ = tokio::io::copy(&mut guest, &mut host).await;
    let _ = host.shutdown(Shutdown::Write);
    tokio::time::sleep(LATE).await;
}

/// Passes an input on, and closes all of it at its end.
async fn close_input(mut guest: Stream, mut host: Stream) {
    let _ = tokio::io::copy(&mut host, &mut guest).await;
    drop(guest);
    // The library's end stays: it is not what is broken.
    std::future::pending::<()>().await;
}
