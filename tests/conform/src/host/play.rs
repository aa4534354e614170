//! The scripted guest: plays one run against a host.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hyperv_socket::{ReadHalf, WriteHalf};
use linkspan_protocol::frame::{Decoder, HEADER_LEN};
use linkspan_protocol::message::INFINITE;
use linkspan_protocol::{HResult, MessageType, UVM_ID, port};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::observer::Observer;
use super::process::{self, Happening, Io};
use super::reach::{HostReach, Reached};
use super::record::{Closed, Record, Request, Second};
use super::script::{Rule, Script, Step, When, capabilities};
use crate::transcript::{Transcript, Way};
use crate::wire::{frame, hresult};

/// How long the host may do nothing before an init ends by itself, that nobody tells to.
const IDLE: Duration = Duration::from_secs(1);

/// How long a lost bridge is dialled again.
const REDIAL: Duration = Duration::from_secs(1);

/// How long answers are kept to come in the other order.
const BACKWARDS: Duration = Duration::from_millis(30);

/// No frame of a host is read beyond this: it is a defect already.
const READ_LIMIT: usize = 64 << 20;

/// How long a host may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// It may do nothing for so long.
    pub(super) answer: Duration,
    /// It has to close an output that has ended. A right one does so at once.
    pub(super) close: Duration,
}

/// Plays a run.
pub(super) async fn play(
    reach: &HostReach,
    script: Script,
    Limits { answer, close }: Limits,
    transcript: &mut Transcript,
) -> (Record, Vec<(u32, String)>) {
    transcript.note(&format!("a run: {}", script.name));
    let mut record = Record::default();
    let mut reached = match reach.reach(script.name) {
        Ok(reached) => reached,
        Err(error) => {
            record.unreachable = Some(error.to_string());
            return (record, Vec::new());
        }
    };
    let (tell, happenings) = mpsc::unbounded_channel();
    let mut play = Play {
        rules: script.rules.clone(),
        script,
        answer,
        close,
        record,
        observer: Observer::default(),
        transcript,
        begun: Instant::now(),
        active: Instant::now(),
        place: 0,
        link: None,
        connection: 0,
        negotiated: false,
        holding: false,
        due: Vec::new(),
        processes: HashMap::new(),
        inits: HashMap::new(),
        next_pid: 300,
        waits: Vec::new(),
        tasks: JoinSet::new(),
        tell,
        done: false,
    };
    match play.connect(&mut reached).await {
        Ok(()) => play.run(&mut reached, happenings).await,
        Err(why) => play.record.unreachable = Some(why),
    }
    let Play { mut record, mut observer, link, .. } = play;
    drop(link);
    if let Some(program) = reached.program {
        record.program = Some(program.ending().await);
    }
    if let Some(ending) = &record.program {
        let how = ending.status.as_deref().unwrap_or("it did not end, and was killed");
        transcript.note(&format!("the program: {how}"));
    }
    (record, observer.take())
}

struct Link {
    read: ReadHalf,
    write: WriteHalf,
    decoder: Decoder,
}

/// Steps that wait for their time.
struct Due {
    at: Instant,
    request: usize,
    steps: VecDeque<Step>,
    /// They are what holds the others up.
    holds: bool,
}

struct Process {
    container: String,
    signals: mpsc::UnboundedSender<u32>,
    is_init: bool,
    has_input: bool,
    code: Option<u32>,
}

struct Init {
    activity: Value,
    pid: Option<u32>,
    notified: bool,
}

struct Play<'a> {
    script: Script,
    rules: Vec<Rule>,
    answer: Duration,
    close: Duration,
    record: Record,
    observer: Observer,
    transcript: &'a mut Transcript,
    begun: Instant,
    /// When anything happened last.
    active: Instant,
    /// Counts what comes and goes.
    place: usize,
    link: Option<Link>,
    connection: usize,
    negotiated: bool,
    holding: bool,
    due: Vec<Due>,
    processes: HashMap<u32, Process>,
    /// By container.
    inits: HashMap<String, Init>,
    next_pid: u32,
    /// Requests that wait for a process.
    waits: Vec<(usize, u32)>,
    tasks: JoinSet<()>,
    tell: mpsc::UnboundedSender<Happening>,
    done: bool,
}

impl Play<'_> {
    /// Reaches the bridge, and the ports that a booting machine dials.
    async fn connect(&mut self, reached: &mut Reached) -> Result<(), String> {
        let stream = loop {
            match reached.address.dial(port::BRIDGE).await {
                Ok(stream) => break stream,
                Err(error) if self.begun.elapsed() > self.answer => {
                    return Err(format!("nobody listens for the bridge: {error}"));
                }
                Err(_) => {}
            }
            let pause = sleep(Duration::from_millis(5));
            let Some(program) = &mut reached.program else {
                pause.await;
                continue;
            };
            tokio::select! {
                () = pause => {}
                ended = program.wait() => {
                    let how = ended.map_or_else(|error| error.to_string(), |how| how.to_string());
                    return Err(format!("the program ends before it listens: {how}"));
                }
            }
        };
        self.connected(stream.into_split());
        if let Ok(mut stream) = reached.address.dial(port::ENTROPY).await {
            let mut bytes = Vec::new();
            let all = timeout(self.answer, stream.read_to_end(&mut bytes)).await;
            self.record.entropy = Some((bytes.len(), matches!(all, Ok(Ok(_)))));
            self.transcript.note(&format!("{} bytes of entropy", bytes.len()));
        }
        if let Ok(stream) = reached.address.dial(port::LOG).await {
            self.record.has_log = true;
            self.tasks.spawn(process::log(stream, self.script.log, self.tell.clone()));
        }
        if self.script.dials_bridge_again {
            let (address, tell) = (reached.address.clone(), self.tell.clone());
            self.tasks.spawn(process::dial_again(address, port::BRIDGE, tell));
        }
        Ok(())
    }

    fn connected(&mut self, (read, write): (ReadHalf, WriteHalf)) {
        self.transcript.note("connected to the bridge");
        self.observer.connected();
        self.link = Some(Link { read, write, decoder: Decoder::new(READ_LIMIT) });
        self.record.closed = Closed::Not;
        self.negotiated = false;
    }

    async fn run(
        &mut self,
        reached: &mut Reached,
        mut happenings: mpsc::UnboundedReceiver<Happening>,
    ) {
        let mut buffer = vec![0; 64 << 10];
        let mut ended = false;
        while !self.done {
            let quiet = match self.patience(ended) {
                _ if self.due.iter().any(|due| !self.held(due)) => None,
                long => Some(self.active + long),
            };
            let next = self.due.iter().filter(|due| !self.held(due)).map(|due| due.at).min();
            let (link, program) = (&mut self.link, &mut reached.program);
            tokio::select! {
                biased;
                read = read(link, &mut buffer) => {
                    self.active = Instant::now();
                    self.received(read, &buffer, reached);
                    if self.link.is_none() && (ended || reached.program.is_none()) {
                        if !self.is_leftover(reached) {
                            return;
                        }
                        if let Err(why) = self.connect(reached).await {
                            self.record.unreachable = Some(why);
                            return;
                        }
                    }
                }
                Some(happening) = happenings.recv() => {
                    self.active = Instant::now();
                    self.happened(happening);
                }
                () = until(next) => {
                    self.active = Instant::now();
                    self.step(reached).await;
                }
                () = exited(program, ended) => {
                    ended = true;
                    self.active = Instant::now();
                    // What it wrote last may still come.
                    if self.link.is_none() {
                        return;
                    }
                }
                () = until(quiet) => {
                    if ended {
                        return;
                    }
                    self.quiet(reached.program.is_some());
                }
            }
        }
    }

    /// Whether what has closed was the host of the run before, about to end: it has said nothing.
    fn is_leftover(&self, reached: &Reached) -> bool {
        reached.program.is_none()
            && self.record.requests.is_empty()
            && self.record.closed == Closed::ByHost
            && self.begun.elapsed() < self.answer
    }

    /// How long nothing may happen.
    fn patience(&self, ended: bool) -> Duration {
        if ended {
            return Duration::from_millis(500);
        }
        let runs = self.idle_init().is_some();
        match self.script.patience {
            Some(long) => long,
            None if runs && self.link.is_some() => IDLE,
            None => self.answer,
        }
    }

    /// An init that runs until somebody tells it to end.
    fn idle_init(&self) -> Option<&Process> {
        self.processes
            .values()
            .find(|process| process.is_init && !process.has_input && process.code.is_none())
    }

    /// The host has done nothing for long.
    fn quiet(&mut self, is_program: bool) {
        if self.script.patience.is_none()
            && let Some(init) = self.idle_init()
            && self.link.is_some()
        {
            let _ = init.signals.send(0);
            self.transcript.note("nobody ends the init: it ends by itself");
            self.active = Instant::now();
            return;
        }
        if !is_program && self.waits.is_empty() && self.negotiated {
            self.leave("nothing more is asked: the guest closes the bridge");
        } else {
            self.transcript.note("the host does nothing more");
            self.record.stuck = true;
        }
        self.done = true;
    }

    fn leave(&mut self, why: &str) {
        if self.link.take().is_some() {
            self.transcript.note(why);
            self.record.closed = Closed::ByGuest;
        }
    }

    /// What the host sends makes no sense any more.
    fn lose(&mut self) {
        self.leave("the stream cannot be followed any further");
        self.record.lost = true;
        self.done = true;
    }

    /// Whether those steps have to wait for others.
    fn held(&self, due: &Due) -> bool {
        self.holding && !due.holds
    }

    fn received(&mut self, read: std::io::Result<usize>, buffer: &[u8], reached: &mut Reached) {
        let Some(link) = &mut self.link else { return };
        match read {
            Ok(len @ 1..) => link.decoder.push(&buffer[..len]),
            Ok(_) | Err(_) => {
                if link.decoder.pending() > 0 {
                    let rest = link.decoder.pending();
                    self.observer.violation(12, format!("the last frame lacks some of it: {rest}"));
                }
                self.transcript.note("the host closes the bridge");
                self.record.closed = Closed::ByHost;
                self.record.closed_at = Some(self.begun.elapsed());
                self.link = None;
                return;
            }
        }
        while let Some(link) = &mut self.link {
            match link.decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(next)) => {
                    let bytes = frame(next.message_type, next.id, &next.payload);
                    self.transcript.push(Way::Received, &bytes);
                    let before = self.observer.count();
                    let body = self.observer.look(&next);
                    for (_, text) in self.observer.since(before) {
                        self.transcript.note(text);
                    }
                    let Some(body) = body else { return self.lose() };
                    self.place += 1;
                    self.record.requests.push(Request {
                        connection: self.connection,
                        message_type: next.message_type,
                        id: next.id,
                        body,
                        at: self.begun.elapsed(),
                        came: self.place,
                        answered: None,
                        pid: None,
                    });
                    self.requested(self.record.requests.len() - 1, reached);
                }
                Err(error) => {
                    self.observer.violation(12, error.to_string());
                    return self.lose();
                }
            }
        }
    }

    /// Works on a request that has come.
    fn requested(&mut self, index: usize, reached: &Reached) {
        let request = self.record.requests[index].clone();
        let kind = request.message_type;
        if let Some(steps) = self.rule(kind, When::Comes) {
            self.due.push(Due { at: Instant::now(), request: index, steps, holds: false });
        }
        match kind {
            MessageType::CREATE => {
                let activity = request.body["ActivityId"].clone();
                let init = Init { activity, pid: None, notified: false };
                self.inits.insert(request.container().to_owned(), init);
            }
            MessageType::EXECUTE_PROCESS => {
                let settings = &request.body["Settings"]["VsockStdioRelaySettings"];
                let ports = ["StdIn", "StdOut", "StdErr"].map(|key| {
                    let port = settings[key].as_u64().and_then(|port| u32::try_from(port).ok());
                    port.filter(|&port| port != 0)
                });
                let (address, tell) = (reached.address.clone(), self.tell.clone());
                if self.script.dials_stdio_again {
                    for port in ports.into_iter().flatten() {
                        let (address, tell) = (address.clone(), tell.clone());
                        self.tasks.spawn(process::dial_again(address, port, tell));
                    }
                }
                self.tasks.spawn(process::dial(address, ports, index, tell));
                return;
            }
            MessageType::WAIT_FOR_PROCESS => {
                let pid =
                    request.body["ProcessId"].as_u64().and_then(|pid| u32::try_from(pid).ok());
                if let Some(pid) = pid
                    && let Some(process) = self.processes.get(&pid)
                    && process.code.is_none()
                {
                    self.waits.push((index, pid));
                    let limit = request.body["TimeoutInMs"].as_u64().unwrap_or_default();
                    if limit != u64::from(INFINITE) {
                        let steps = VecDeque::from([Step::Fault(HResult::TIMEOUT, "it runs on")]);
                        let at = Instant::now() + Duration::from_millis(limit);
                        self.due.push(Due { at, request: index, steps, holds: false });
                    }
                    return;
                }
            }
            MessageType::SIGNAL_PROCESS => {
                let signal = request.body["Options"]["Signal"].as_u64().filter(|&n| n != 0);
                let pid =
                    request.body["ProcessId"].as_u64().and_then(|pid| u32::try_from(pid).ok());
                self.signal(pid, u32::try_from(signal.unwrap_or(9)).unwrap_or(9));
            }
            MessageType::SHUTDOWN_GRACEFUL | MessageType::SHUTDOWN_FORCED => {
                let signal = if kind == MessageType::SHUTDOWN_FORCED { 9 } else { 15 };
                let pid = self.inits.get(request.container()).and_then(|init| init.pid);
                self.signal(pid, signal);
            }
            _ => {}
        }
        self.answer_due(index);
    }

    fn signal(&mut self, pid: Option<u32>, signal: u32) {
        if let Some(process) = pid.and_then(|pid| self.processes.get(&pid)) {
            let _ = process.signals.send(128 + signal);
        }
    }

    /// The next rule for such a request.
    fn rule(&mut self, kind: MessageType, when: When) -> Option<VecDeque<Step>> {
        let at = self.rules.iter().position(|rule| rule.on == kind && rule.when == when)?;
        let steps = self.rules[at].steps.clone().into();
        if !self.rules[at].always {
            self.rules.remove(at);
        }
        Some(steps)
    }

    /// It is time to answer a request.
    fn answer_due(&mut self, index: usize) {
        let kind = self.record.requests[index].message_type;
        let steps = self.rule(kind, When::Due).unwrap_or_else(|| [Step::Answer].into());
        // Nothing else could be asked, and the negotiation is not to be held up by what came before.
        let holds = kind == MessageType::NEGOTIATE_PROTOCOL;
        let mut at = Instant::now();
        if self.script.backwards && !holds {
            at += BACKWARDS;
        }
        self.due.push(Due { at, request: index, steps, holds });
    }

    fn happened(&mut self, happening: Happening) {
        match happening {
            Happening::Broken(statement, text) => {
                self.transcript.note(&text);
                self.record.violations.push((statement, text));
            }
            Happening::Streams { outputs, inputs } => {
                self.record.stdio.outputs += outputs;
                self.record.stdio.inputs += inputs;
            }
            Happening::Second(port::BRIDGE, second) => {
                self.note_second(port::BRIDGE, &second);
                self.record.second_bridge = Some(second);
            }
            Happening::Second(port, second) => {
                self.note_second(port, &second);
                self.record.second_stdio.push((port, second));
            }
            Happening::Logged => self.transcript.note("the log is written"),
            Happening::Ended { pid, code } => self.ended(pid, code),
            // A bridge that has ended takes its listeners along.
            Happening::Dialled { .. } if self.link.is_none() => {}
            Happening::Dialled { request, streams, late } => {
                for text in late {
                    self.transcript.note(&text);
                    self.observer.violation(27, text);
                }
                match streams {
                    Ok(io) => self.start(request, *io),
                    Err(text) => {
                        self.observer.violation(27, text);
                        let fault = Step::Fault(HResult::FAIL, "a stdio port is not listened on");
                        let steps = VecDeque::from([fault]);
                        self.due.push(Due { at: Instant::now(), request, steps, holds: false });
                    }
                }
            }
        }
    }

    fn note_second(&mut self, port: u32, second: &Second) {
        self.transcript.note(&format!("a second connection to port {port:#x}: {second:?}"));
    }

    /// Starts the process that a request asked for.
    fn start(&mut self, index: usize, io: Io) {
        let request = &self.record.requests[index];
        let container = request.container().to_owned();
        let parameters = request.parameters();
        let is_init = parameters.get("OciProcess").is_none()
            && container != UVM_ID
            && parameters["CreateInUtilityVM"] != true;
        self.next_pid += 11;
        let pid = self.next_pid;
        if is_init && let Some(init) = self.inits.get_mut(&container) {
            init.pid = Some(pid);
        }
        self.record.stdio.dialled +=
            [&io.stdin, &io.stdout, &io.stderr].into_iter().flatten().count();
        let (signals, receiver) = mpsc::unbounded_channel();
        let has_input = io.stdin.is_some();
        let process = Process { container, signals, is_init, has_input, code: None };
        self.processes.insert(pid, process);
        self.tasks.spawn(process::run(io, (pid, is_init, self.close), receiver, self.tell.clone()));
        // The right answer says it.
        self.record.requests[index].pid = Some(pid);
        self.answer_due(index);
    }

    fn ended(&mut self, pid: u32, code: u32) {
        self.transcript.note(&format!("process {pid} ends with {code}"));
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.code = Some(code);
        self.record.told.push((pid, code));
        let (container, is_init) = (process.container.clone(), process.is_init);
        let (ready, rest) =
            std::mem::take(&mut self.waits).into_iter().partition(|(_, of)| *of == pid);
        self.waits = rest;
        let ready: Vec<(usize, u32)> = ready;
        if is_init && self.script.notifies_first && !ready.is_empty() {
            self.notify(&container);
            let at = Instant::now() + Duration::from_millis(100);
            for (request, _) in ready {
                let steps = self.rule(MessageType::WAIT_FOR_PROCESS, When::Due);
                let steps = steps.unwrap_or_else(|| [Step::Answer].into());
                self.due.push(Due { at, request, steps, holds: false });
            }
            return;
        }
        for (request, _) in ready {
            self.answer_due(request);
        }
    }

    /// Tells of a container's exit, once, right away: the caller is between two frames.
    fn notify(&mut self, container: &str) {
        let Some(init) = self.inits.get_mut(container) else { return };
        if std::mem::replace(&mut init.notified, true) {
            return;
        }
        let body = json!({
            "ContainerId": container,
            "ActivityId": init.activity,
            "Type": self.script.notification,
            "Operation": "None",
            "Result": 0,
        });
        let bytes = frame(MessageType::NOTIFICATION, 0, body.to_string().as_bytes());
        let request = usize::MAX;
        let steps = VecDeque::from([Step::bytes(move |_| bytes.clone())]);
        self.due.push(Due { at: Instant::now(), request, steps, holds: false });
    }

    /// Takes the next step that is due.
    async fn step(&mut self, reached: &mut Reached) {
        let now = Instant::now();
        let ready = |due: &Due| due.at <= now && !self.held(due);
        let mut all = self.due.iter().enumerate().filter(|(_, due)| ready(due));
        let at = match self.script.backwards {
            true => all.next_back(),
            false => all.next(),
        };
        let Some(at) = at.map(|(at, _)| at) else { return };
        let mut due = self.due.remove(at);
        let Some(step) = due.steps.pop_front() else { return };
        match step {
            Step::Wait(long) => due.at = now + long,
            Step::Hold => {
                self.holding = true;
                due.holds = true;
            }
            Step::Release => self.holding = false,
            Step::Leave => {
                self.deviated();
                self.leave("the guest closes the bridge and stays away");
            }
            Step::Redial => self.redial(reached).await,
            Step::Answer => {
                let bytes = self.right_answer(due.request, &Value::Null);
                self.answered(due.request, &bytes).await;
            }
            Step::With(keys) => {
                let bytes = self.right_answer(due.request, &keys);
                self.deviated();
                self.answered(due.request, &bytes).await;
            }
            Step::Fault(code, message) => {
                let keys = json!({"Result": hresult(code), "ErrorMessage": message});
                let bytes = self.right_answer(due.request, &keys);
                self.deviated();
                self.answered(due.request, &bytes).await;
            }
            Step::Bytes(make) => {
                let is_notification = due.request == usize::MAX;
                let bytes = match is_notification {
                    true => make(&[]),
                    false => make(&self.right_answer(due.request, &Value::Null)),
                };
                if !is_notification {
                    self.deviated();
                    self.record.requests[due.request].answered = Some(self.place);
                }
                self.write(&bytes).await;
            }
        }
        if !due.steps.is_empty() {
            self.due.insert(at.min(self.due.len()), due);
        }
    }

    fn deviated(&mut self) {
        let now = (self.record.requests.len(), self.begun.elapsed());
        self.record.deviated.get_or_insert(now);
    }

    async fn redial(&mut self, reached: &mut Reached) {
        self.deviated();
        self.leave("the guest closes the bridge, and dials again");
        let begun = Instant::now();
        while begun.elapsed() < REDIAL {
            if let Ok(stream) = reached.address.dial(port::BRIDGE).await {
                self.connection += 1;
                self.record.redialled = Some(true);
                self.connected(stream.into_split());
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.transcript.note("nobody takes the connection");
        self.record.redialled = Some(false);
        self.holding = false;
    }

    /// Writes an answer, and does what follows from it.
    async fn answered(&mut self, index: usize, bytes: &[u8]) {
        let bytes = match &self.script.every {
            Some(every) => {
                let bytes = every(bytes);
                self.deviated();
                bytes
            }
            None => bytes.to_vec(),
        };
        self.place += 1;
        let request = &self.record.requests[index];
        if request.answered.is_some() {
            return;
        }
        let (kind, came) = (request.message_type, request.came);
        self.record.out_of_order |=
            self.record.requests.iter().any(|other| other.came < came && other.answered.is_none());
        self.record.requests[index].answered = Some(self.place);
        self.write(&bytes).await;
        match kind {
            MessageType::NEGOTIATE_PROTOCOL => {
                self.negotiated = true;
                if self.connection > 0 {
                    self.holding = false;
                }
            }
            MessageType::WAIT_FOR_PROCESS => {
                let pid = self.record.requests[index].body["ProcessId"].as_u64();
                let pid = pid.and_then(|pid| u32::try_from(pid).ok());
                if let Some(process) = pid.and_then(|pid| self.processes.get(&pid))
                    && process.is_init
                    && process.code.is_some()
                {
                    let container = process.container.clone();
                    self.notify(&container);
                }
            }
            _ => {}
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        let Some(link) = &mut self.link else { return };
        self.transcript.push(Way::Sent, bytes);
        // As Linux guests do: the header, then the rest.
        let (head, rest) = bytes.split_at(HEADER_LEN.min(bytes.len()));
        let writing = async {
            link.write.write_all(head).await?;
            link.write.write_all(rest).await
        };
        if !matches!(timeout(self.answer, writing).await, Ok(Ok(()))) {
            self.transcript.note("that cannot be written");
        }
    }

    /// The frame with which a right guest would answer, with other keys.
    fn right_answer(&self, index: usize, keys: &Value) -> Vec<u8> {
        let request = &self.record.requests[index];
        let mut body = json!({"Result": 0, "ActivityId": request.body["ActivityId"]});
        if body["ActivityId"].as_str().is_none_or(str::is_empty) {
            body.as_object_mut().map(|body| body.remove("ActivityId"));
        }
        let failed = keys["Result"].as_i64().is_some_and(|result| result != 0);
        let code_of = || {
            let pid = request.body["ProcessId"].as_u64().and_then(|pid| u32::try_from(pid).ok());
            pid.and_then(|pid| self.processes.get(&pid)).and_then(|process| process.code)
        };
        let more = match request.message_type {
            _ if failed => json!({}),
            MessageType::NEGOTIATE_PROTOCOL => {
                json!({"Version": 4, "Capabilities": capabilities()})
            }
            MessageType::CREATE => json!({"SelectedProtocolVersion": 0}),
            MessageType::EXECUTE_PROCESS => json!({"ProcessId": request.pid}),
            MessageType::WAIT_FOR_PROCESS => match code_of() {
                Some(code) => json!({"ExitCode": code}),
                None => failure(HResult::ELEMENT_NOT_FOUND, "there is no such process"),
            },
            MessageType::GET_PROPERTIES => json!({"Properties": self.properties(request)}),
            MessageType::DUMP_STACKS => json!({"GuestStacks": "the scripted guest has none\n"}),
            MessageType::START
            | MessageType::SHUTDOWN_GRACEFUL
            | MessageType::SHUTDOWN_FORCED
            | MessageType::SIGNAL_PROCESS
            | MessageType::RESIZE_CONSOLE
            | MessageType::MODIFY_SETTINGS
            | MessageType::DELETE_CONTAINER_STATE
            | MessageType::MODIFY_SERVICE_SETTINGS => json!({}),
            _ => failure(HResult::NOT_IMPLEMENTED, "unknown message"),
        };
        if let Some(body) = body.as_object_mut() {
            for (key, value) in [more, keys.clone()].into_iter().filter_map(into_map).flatten() {
                body.insert(key, value);
            }
        }
        frame(request.message_type.response(), request.id, body.to_string().as_bytes())
    }

    fn properties(&self, request: &Request) -> String {
        let query = request.body["Query"].as_str().unwrap_or_default();
        let mut all = json!({});
        if query.contains("ProcessList") {
            let running = self.processes.iter().filter(|(_, process)| {
                process.code.is_none() && process.container == request.container()
            });
            all["ProcessList"] = running.map(|(pid, _)| json!({"ProcessId": pid})).collect();
        }
        if query.contains("Statistics") {
            all["LCOWMetrics"] =
                json!({"cpu": {"usage": {"total": 1}}, "memory": {"usage": {"usage": 1}}});
        }
        all.to_string()
    }
}

fn failure(code: HResult, message: &str) -> Value {
    json!({"Result": hresult(code), "ErrorMessage": message})
}

fn into_map(value: Value) -> Option<serde_json::Map<String, Value>> {
    match value {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

async fn read(link: &mut Option<Link>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match link {
        Some(link) => link.read.read(buffer).await,
        None => std::future::pending().await,
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

async fn exited(program: &mut Option<super::reach::Program>, known: bool) {
    match program {
        Some(program) if !known => drop(program.wait().await),
        _ => std::future::pending().await,
    }
}
