//! What can be told of a guest by a conversation that somebody else had with it.
//!
//! A conformance run asks what it has to know; a recording has what was asked by chance. Each
//! exchange is held against the statements that say how such a request is answered, and a
//! statement of which nothing was asked is not judged.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use linkspan_protocol::frame::Decoder;
use linkspan_protocol::{HResult, Kind, MessageType, UVM_ID};
use serde_json::Value;

use crate::capture::{Direction, Packet, PacketKind, violations};
use crate::wire::hresult;

/// What a recording says of one statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// How often it was seen to hold.
    pub held: usize,
    /// Where it was seen not to.
    pub broken: Vec<String>,
}

/// Statements by number.
pub type Judgement = BTreeMap<u32, Judged>;

/// Judges a guest by a recording of what went over its bridge.
pub fn judge(packets: &[Packet]) -> Judgement {
    let mut watcher = Watcher::default();
    for packet in packets.iter().filter(|packet| packet.kind == PacketKind::Frame) {
        let mut decoder = Decoder::new(usize::MAX);
        decoder.push(&packet.bytes);
        let Ok(Some(frame)) = decoder.next_frame() else { continue };
        if packet.connection != watcher.connection {
            watcher.connection = packet.connection;
            watcher.negotiated = false;
            watcher.refused = false;
        }
        let body = serde_json::from_slice::<Value>(&frame.payload).ok();
        match packet.direction {
            Direction::ToGuest => watcher.asked(frame.message_type, frame.id, body, packet.at),
            Direction::ToHost if frame.message_type.kind() == Kind::Notification => {
                watcher.notified(&body.unwrap_or_default());
            }
            Direction::ToHost => {
                watcher.answered(
                    frame.message_type,
                    frame.id,
                    &body.unwrap_or_default(),
                    packet.at,
                );
            }
        }
    }
    let mut judgement = watcher.judgement;
    for (statement, text) in violations(packets) {
        judgement.entry(statement).or_default().broken.push(text);
    }
    judgement
}

/// A request that is not answered.
struct Asked {
    kind: MessageType,
    /// `None` if it was no JSON.
    body: Option<Value>,
    at: Duration,
    negotiated: bool,
}

impl Asked {
    fn text(&self, key: &str) -> &str {
        self.body.as_ref().and_then(|body| body[key].as_str()).unwrap_or_default()
    }

    fn number(&self, key: &str) -> u64 {
        self.body.as_ref().and_then(|body| body[key].as_u64()).unwrap_or_default()
    }

    fn of(&self, key: &str) -> Value {
        self.body.as_ref().map(|body| body[key].clone()).unwrap_or_default()
    }
}

#[derive(Default)]
struct Container {
    activity: Value,
    init: Option<u64>,
    /// The processes that it has, by pid: whether their exit was told.
    processes: HashMap<u64, bool>,
    /// What the init was last told to end by.
    ending: Option<u64>,
    notified: bool,
}

impl Container {
    fn has_exited(&self) -> bool {
        self.init.and_then(|pid| self.processes.get(&pid)).is_some_and(|told| *told)
    }
}

#[derive(Default)]
struct Watcher {
    judgement: Judgement,
    connection: u32,
    negotiated: bool,
    refused: bool,
    asked: HashMap<u64, Vec<Asked>>,
    containers: HashMap<String, Container>,
    adapters: Vec<(String, String)>,
}

/// The messages that a Linux guest knows.
const KNOWN: [MessageType; 13] = [
    MessageType::CREATE,
    MessageType::START,
    MessageType::SHUTDOWN_GRACEFUL,
    MessageType::SHUTDOWN_FORCED,
    MessageType::EXECUTE_PROCESS,
    MessageType::WAIT_FOR_PROCESS,
    MessageType::SIGNAL_PROCESS,
    MessageType::RESIZE_CONSOLE,
    MessageType::GET_PROPERTIES,
    MessageType::MODIFY_SETTINGS,
    MessageType::NEGOTIATE_PROTOCOL,
    MessageType::DUMP_STACKS,
    MessageType::DELETE_CONTAINER_STATE,
];

/// Changes that a resource does not know.
const IMPOSSIBLE: [(&str, &str); 3] =
    [("SCSIDevice", "Add"), ("VPCIDevice", "Remove"), ("PodCgroupMemoryLimit", "Add")];

/// Resources of a Linux guest.
const RESOURCES: [&str; 11] = [
    "MappedVirtualDisk",
    "SCSIDevice",
    "MappedDirectory",
    "VPMemDevice",
    "CombinedLayers",
    "Network",
    "VPCIDevice",
    "ContainerConstraints",
    "PodCgroupMemoryLimit",
    "SecurityPolicy",
    "SecurityPolicyFragment",
];

impl Watcher {
    fn asked(&mut self, kind: MessageType, id: u64, body: Option<Value>, at: Duration) {
        let asked = Asked { kind, body, at, negotiated: self.negotiated };
        self.asked.entry(id).or_default().push(asked);
    }

    /// Notes whether a statement holds.
    fn holds(&mut self, statement: u32, holds: bool, what: impl FnOnce() -> String) {
        let judged = self.judgement.entry(statement).or_default();
        match holds {
            true => judged.held += 1,
            false => judged.broken.push(what()),
        }
    }

    /// Notes whether a request was answered with the code that a statement wants.
    fn code(&mut self, statement: u32, asked: &Asked, answer: &Value, code: HResult) {
        let holds = answer["Result"] == hresult(code);
        self.holds(statement, holds, || {
            let body = asked.body.as_ref().map(Value::to_string).unwrap_or_default();
            format!("{} {body} is answered {}, not {code}", asked.kind, answer["Result"])
        });
    }

    fn answered(&mut self, kind: MessageType, id: u64, answer: &Value, at: Duration) {
        let Some(waiting) = self.asked.get_mut(&id).filter(|waiting| !waiting.is_empty()) else {
            return;
        };
        let place = waiting.iter().position(|asked| asked.kind.response() == kind);
        let asked = waiting.remove(place.unwrap_or(0));
        let ok = answer["Result"] == 0;
        if asked.kind == MessageType::NEGOTIATE_PROTOCOL {
            return self.negotiation(&asked, answer, ok);
        }
        if !asked.negotiated {
            return self.code(19, &asked, answer, HResult::NOT_IMPLEMENTED);
        }
        if !KNOWN.contains(&asked.kind) {
            return self.code(31, &asked, answer, HResult::NOT_IMPLEMENTED);
        }
        if asked.body.is_none() {
            if asked.kind != MessageType::DUMP_STACKS {
                self.code(32, &asked, answer, HResult::INVALID_JSON);
            }
            return;
        }
        self.envelope(ok);
        let target = asked.text("ContainerId").to_owned();
        let exists = self.containers.contains_key(&target);
        match asked.kind {
            MessageType::CREATE => self.create(&asked, target, answer, ok),
            MessageType::START => {
                self.holds(46, ok, || format!("Start is answered {}", answer["Result"]));
            }
            MessageType::DELETE_CONTAINER_STATE if exists && ok => {
                self.containers.remove(&target);
            }
            MessageType::DELETE_CONTAINER_STATE if exists => {}
            MessageType::DELETE_CONTAINER_STATE => {
                self.code(47, &asked, answer, HResult::SYSTEM_NOT_FOUND);
            }
            MessageType::EXECUTE_PROCESS => self.execute(&asked, &target, answer, ok),
            MessageType::WAIT_FOR_PROCESS => self.wait(&asked, &target, answer, at),
            MessageType::SIGNAL_PROCESS | MessageType::RESIZE_CONSOLE => {
                self.signal(&asked, &target, answer, ok);
            }
            MessageType::SHUTDOWN_GRACEFUL | MessageType::SHUTDOWN_FORCED => {
                self.shutdown(&asked, &target, answer, ok);
            }
            MessageType::GET_PROPERTIES => self.properties(&asked, &target, answer, ok),
            MessageType::MODIFY_SETTINGS => self.modify(&asked, &target, answer, ok),
            MessageType::DUMP_STACKS => {
                let text = answer["GuestStacks"].as_str().unwrap_or_default();
                self.holds(110, ok && !text.is_empty(), || format!("GuestStacks is {text:?}"));
            }
            _ => {}
        }
    }

    /// What every answer shows; that nothing breaks it is told by `violations`.
    fn envelope(&mut self, ok: bool) {
        for statement in [5, 6, 9, 10, 12, 16, 36] {
            self.holds(statement, true, String::new);
        }
        let others: &[u32] = if ok { &[18] } else { &[33, 34, 35] };
        for &statement in others {
            self.holds(statement, true, String::new);
        }
    }

    fn negotiation(&mut self, asked: &Asked, answer: &Value, ok: bool) {
        if asked.negotiated {
            return self.code(29, asked, answer, HResult::NOT_IMPLEMENTED);
        }
        if asked.body.is_none() {
            return self.code(32, asked, answer, HResult::INVALID_JSON);
        }
        let (least, most) = (asked.number("MinimumVersion"), asked.number("MaximumVersion"));
        if most < 4 || least > 4 {
            self.refused = true;
            let statement = if most < 4 { 22 } else { 23 };
            return self.code(statement, asked, answer, HResult::UNSUPPORTED_PROTOCOL_VERSION);
        }
        let statement = if (least, most) == (4, 4) { 20 } else { 21 };
        self.holds(statement, ok && answer["Version"] == 4, || {
            format!("versions {least} to {most} are answered {answer}")
        });
        if !ok {
            return;
        }
        self.negotiated = true;
        if std::mem::take(&mut self.refused) {
            self.holds(24, true, String::new);
        }
        let all = &answer["Capabilities"];
        let system = all["RuntimeOsType"].as_str().unwrap_or_default();
        self.holds(25, system.eq_ignore_ascii_case("linux"), || format!("it is {system:?}"));
        self.holds(26, all["GuestDefinedCapabilities"].is_object(), || all.to_string());
        let schemas = all["SupportedSchemaVersions"].as_array().cloned().unwrap_or_default();
        let has = schemas.iter().any(|schema| schema["Major"] == 2 && schema["Minor"] == 1);
        self.holds(27, has, || format!("the versions are {schemas:?}"));
        let asks = ["SendHostCreateMessage", "SendHostStartMessage"].map(|key| all[key] == true);
        self.holds(28, asks == [false; 2], || all.to_string());
    }

    fn create(&mut self, asked: &Asked, target: String, answer: &Value, ok: bool) {
        let config = asked.text("ContainerConfig");
        let Ok(config) = serde_json::from_str::<Value>(config) else {
            return self.code(38, asked, answer, HResult::INVALID_JSON);
        };
        if self.containers.contains_key(&target) {
            return self.code(40, asked, answer, HResult::SYSTEM_ALREADY_EXISTS);
        }
        let annotations = &config["OciSpecification"]["annotations"];
        let kind = annotations["io.kubernetes.cri.container-type"].as_str();
        if kind.is_some_and(|kind| !["container", "sandbox"].contains(&kind)) {
            return self.code(45, asked, answer, HResult::FAIL);
        }
        if !ok {
            return;
        }
        let version = &answer["SelectedProtocolVersion"];
        self.holds(39, *version == 0, || format!("SelectedProtocolVersion is {version}"));
        let activity = asked.of("ActivityId");
        self.containers.insert(target, Container { activity, ..Container::default() });
    }

    fn execute(&mut self, asked: &Asked, target: &str, answer: &Value, ok: bool) {
        if target == UVM_ID {
            return;
        }
        let Some(container) = self.containers.get_mut(target) else {
            return self.code(50, asked, answer, HResult::SYSTEM_NOT_FOUND);
        };
        if !ok {
            return;
        }
        let pid = answer["ProcessId"].as_u64().unwrap_or_default();
        let settings = asked.of("Settings");
        let text = settings["ProcessParameters"].as_str().unwrap_or_default();
        let parameters: Value = serde_json::from_str(text).unwrap_or_default();
        let is_init = parameters.get("OciProcess").is_none_or(Value::is_null);
        if is_init {
            container.init = Some(pid);
        }
        let again = container.processes.insert(pid, false) == Some(false);
        if is_init {
            self.holds(51, pid > 0, || format!("the init's pid is {pid}"));
        }
        self.holds(67, pid > 0 && !again, || format!("pid {pid} is there twice"));
    }

    fn wait(&mut self, asked: &Asked, target: &str, answer: &Value, at: Duration) {
        let (pid, limit) = (asked.number("ProcessId"), asked.number("TimeoutInMs"));
        let took = at.saturating_sub(asked.at);
        if target == UVM_ID {
            return;
        }
        let Some(container) = self.containers.get_mut(target) else {
            return self.code(75, asked, answer, HResult::SYSTEM_NOT_FOUND);
        };
        let is_init = container.init == Some(pid);
        let Some(told) = container.processes.get_mut(&pid) else {
            return self.code(75, asked, answer, HResult::ELEMENT_NOT_FOUND);
        };
        if answer["Result"] == hresult(HResult::TIMEOUT) {
            let limit = Duration::from_millis(limit);
            let right =
                took + Duration::from_millis(10) >= limit && took < limit + Duration::from_secs(1);
            return self.holds(70, right, || format!("{limit:?} have taken {took:?}"));
        }
        let before = std::mem::replace(told, true);
        match (before, is_init) {
            // A further process is forgotten once its exit has been told; the init is not.
            (true, false) => {
                if answer["Result"] != 0 {
                    self.code(74, asked, answer, HResult::ELEMENT_NOT_FOUND);
                }
            }
            (true, true) => {
                self.holds(73, took < Duration::from_secs(1), || format!("it takes {took:?}"));
            }
            (false, _) => {
                let code = &answer["ExitCode"];
                let right = answer["Result"] == 0 && (code.is_u64() || code.is_null());
                self.holds(71, right, || format!("a wait is answered {answer}"));
            }
        }
    }

    fn signal(&mut self, asked: &Asked, target: &str, answer: &Value, ok: bool) {
        if target == UVM_ID {
            return self.code(79, asked, answer, HResult::SYSTEM_NOT_FOUND);
        }
        if asked.kind != MessageType::SIGNAL_PROCESS {
            return;
        }
        let pid = asked.number("ProcessId");
        let number = asked.of("Options")["Signal"].as_u64().filter(|&n| n != 0).unwrap_or(9);
        let Some(container) = self.containers.get_mut(target) else { return };
        match container.processes.get(&pid) {
            Some(false) if ok && container.init == Some(pid) => container.ending = Some(number),
            Some(true) => self.code(78, asked, answer, HResult::ELEMENT_NOT_FOUND),
            _ => {}
        }
    }

    fn shutdown(&mut self, asked: &Asked, target: &str, answer: &Value, ok: bool) {
        let number = if asked.kind == MessageType::SHUTDOWN_FORCED { 9 } else { 15 };
        match self.containers.get_mut(target) {
            None => self.code(83, asked, answer, HResult::SYSTEM_NOT_FOUND),
            Some(container) if container.has_exited() => {
                self.code(83, asked, answer, HResult::SYSTEM_ALREADY_STOPPED);
            }
            Some(container) if ok => container.ending = Some(number),
            Some(_) => {}
        }
    }

    fn properties(&mut self, asked: &Asked, target: &str, answer: &Value, ok: bool) {
        if target == UVM_ID {
            return self.code(90, asked, answer, HResult::FAIL);
        }
        let Some(container) = self.containers.get(target) else { return };
        let (init, exited) = (container.init, container.has_exited());
        let query = asked.text("Query");
        let parsed = serde_json::from_str::<Value>(query);
        if !query.is_empty() && parsed.is_err() {
            return self.code(94, asked, answer, HResult::INVALID_JSON);
        }
        if !ok {
            return;
        }
        let text = answer["Properties"].as_str().unwrap_or_default();
        let Ok(properties) = serde_json::from_str::<Value>(text) else {
            return self.holds(95, false, || format!("Properties holds no JSON: {text:?}"));
        };
        self.holds(95, true, String::new);
        let types = parsed.unwrap_or_default()["PropertyTypes"].clone();
        let wants = |name: &str| types.as_array().is_some_and(|all| all.contains(&name.into()));
        if wants("ProcessList")
            && !exited
            && let Some(init) = init
        {
            let list = properties["ProcessList"].as_array().cloned().unwrap_or_default();
            let there = list.iter().any(|process| process["ProcessId"] == init);
            self.holds(91, there, || format!("{init} is not in {list:?}"));
        }
        if wants("Statistics") {
            let all = &properties["LCOWMetrics"];
            let whole = all["cpu"]["usage"]["total"].is_u64()
                && all["memory"]["usage"]["usage"].is_u64()
                && all.get("network").is_none_or(Value::is_null);
            self.holds(92, whole, || format!("the metrics are {all}"));
        }
        if !wants("ProcessList") && !wants("Statistics") {
            self.holds(93, text == "{}", || format!("Properties is {text:?}"));
        }
    }

    fn modify(&mut self, asked: &Asked, target: &str, answer: &Value, ok: bool) {
        let request = asked.of("Request");
        let kind = request["ResourceType"].as_str().unwrap_or_default();
        let change = request["RequestType"].as_str().unwrap_or_default();
        let settings = &request["Settings"];
        // No statement is about a message without a request.
        if request.is_null() {
            return;
        }
        if target != UVM_ID {
            if self.containers.contains_key(target) && kind != "ContainerConstraints" {
                self.code(107, asked, answer, HResult::FAIL);
            }
            return;
        }
        if !RESOURCES.contains(&kind) {
            return self.code(96, asked, answer, HResult::FAIL);
        }
        if settings.is_null() && kind != "PodCgroupMemoryLimit" {
            return self.code(97, asked, answer, HResult::INVALID_JSON);
        }
        if IMPOSSIBLE.contains(&(kind, change)) {
            return self.code(99, asked, answer, HResult::FAIL);
        }
        match (kind, change) {
            ("ContainerConstraints", _) => {
                self.code(106, asked, answer, HResult::SYSTEM_NOT_FOUND);
            }
            ("SCSIDevice", "Remove") => self.code(100, asked, answer, HResult::OK),
            ("MappedDirectory" | "CombinedLayers", "Remove") => {
                self.code(101, asked, answer, HResult::OK);
            }
            ("Network", "Remove") => self.code(103, asked, answer, HResult::OK),
            ("Network", "Add" | "") => {
                let text = |key: &str| settings[key].as_str().unwrap_or_default().to_lowercase();
                let adapter = (text("NamespaceID"), text("ID"));
                if self.adapters.contains(&adapter) {
                    return self.holds(104, !ok, || format!("{settings} is added twice"));
                }
                if ok {
                    self.adapters.push(adapter);
                }
            }
            ("SecurityPolicyFragment", _) => {
                let known = settings["MediaType"].as_str().unwrap_or_default();
                if !["", "application/cose-x509+rego"].contains(&known) {
                    self.holds(109, !ok, || format!("{settings} is taken"));
                }
            }
            (_, "") => {
                let shown = settings.to_string();
                self.holds(98, ok, || format!("{kind} without RequestType fails: {shown}"));
            }
            _ => {}
        }
    }

    fn notified(&mut self, body: &Value) {
        let id = body["ContainerId"].as_str().unwrap_or_default();
        let Some(container) = self.containers.get_mut(id) else {
            return self.holds(85, false, || format!("a notification for {id:?}"));
        };
        let twice = std::mem::replace(&mut container.notified, true);
        let waited = container.has_exited();
        let right = body["ActivityId"] == container.activity
            && body["Operation"] == "None"
            && body["Result"] == 0
            && body.get("ResultInfo").is_none();
        let kind = match container.ending {
            Some(15) => "GracefulExit",
            Some(9) => "ForcedExit",
            _ => "UnexpectedExit",
        };
        self.holds(84, !twice, || format!("a second notification for {id:?}"));
        self.holds(85, right, || body.to_string());
        self.holds(86, body["Type"] == kind, || format!("{} in place of {kind}", body["Type"]));
        self.holds(87, waited, || format!("a notification for {id:?}, whose exit was not told"));
    }
}

/// The judgement as a table for the documentation, with the statements' texts.
pub fn markdown(judgement: &Judgement) -> String {
    let mut text = String::from("| # | statement | seen | verdict |\n|--:|---|--:|---|\n");
    for (id, Judged { held, broken }) in judgement {
        let statement = crate::guest::STATEMENTS.iter().find(|statement| statement.id == *id);
        let words = statement.map_or("", |statement| statement.text).replace('|', "\\|");
        let verdict = match (broken.as_slice(), statement.and_then(|known| known.tolerated)) {
            ([], _) => "pass".to_owned(),
            ([first, ..], Some(why)) => format!("tolerated ({why}): {first}"),
            ([first, ..], None) => format!("FAIL: {first}"),
        };
        let seen = held + broken.len();
        text += &format!("| {id} | {words} | {seen} | {} |\n", verdict.replace('\n', " "));
    }
    text
}
