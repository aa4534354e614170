//! Containers and processes of a simulated guest, and its answers.

use std::collections::HashMap;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

use hyperv_socket::Stream;
use linkspan_protocol::message::{
    Envelope, ExecuteProcess, INFINITE, ModifyTarget, Notification, NotificationType, Request,
    SchemaVersion, WaitForProcess,
};
use linkspan_protocol::resource::{ModifyType, Resource};
use linkspan_protocol::{Fault, HResult, Incoming, Ticket};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;

use super::programs::{Faults, Io, run};
use super::{Defect, Guest};

#[derive(Default)]
pub(crate) struct State {
    containers: HashMap<String, Container>,
    burnt: Vec<String>,
    next_pid: u32,
    pub(super) connections: u32,
    has_policy: bool,
    pub(super) mixed: bool,
}

struct Container {
    activity: String,
    host_name: String,
    process: Value,
    init: u32,
    processes: HashMap<u32, Process>,
    /// What ended the init, as its notification will say.
    kind: NotificationType,
    notified: bool,
    limit: Value,
}

#[derive(Clone)]
struct Process {
    exit: watch::Sender<Option<u32>>,
    signals: mpsc::UnboundedSender<i32>,
    size: Option<watch::Sender<(u64, u64)>>,
    waiters: u32,
    started: bool,
}

type Answer = Result<Value, Fault>;

fn fault(code: HResult, what: impl Into<String>) -> Fault {
    Fault::new(code, what)
}

fn no_container(id: &str) -> Fault {
    fault(HResult::SYSTEM_NOT_FOUND, format!("no container {id:?}"))
}

fn no_process(pid: u32) -> Fault {
    fault(HResult::ELEMENT_NOT_FOUND, format!("no process {pid}"))
}

/// Works on a request.
pub(super) async fn handle(guest: &Rc<Guest>, incoming: Incoming) -> (Ticket, Answer) {
    let Incoming { ticket, envelope, request } = incoming;
    let answer = answer(guest, &envelope, request).await;
    (ticket, answer)
}

async fn answer(guest: &Rc<Guest>, envelope: &Envelope, request: Request) -> Answer {
    let id = envelope.container_id.as_str();
    match request {
        Request::Create(create) => {
            let outcome = make(guest, envelope, create);
            if outcome.is_err() && guest.has(Defect::BurnsIds) {
                guest.state.borrow_mut().burnt.push(id.to_owned());
            }
            outcome
        }
        Request::Start(_) if guest.has(Defect::StrictStart) => {
            guest.state.borrow().container(id).map(|_| json!({}))
        }
        Request::Start(_) => Ok(json!({})),
        Request::ShutdownGraceful(_) => shutdown(guest, id, 15).await,
        Request::ShutdownForced(_) => shutdown(guest, id, 9).await,
        Request::ExecuteProcess(execute) => execute_process(guest, id, execute).await,
        Request::WaitForProcess(wait) => wait_for(guest, id, wait).await,
        Request::SignalProcess(signal) => {
            let mut number = signal.linux_signal().unwrap_or(9);
            if guest.has(Defect::SignalZero)
                && !matches!(
                    signal.options,
                    Some(linkspan_protocol::message::SignalOptions::Linux { signal: 1.. })
                )
            {
                number = 0;
            }
            send_signal(guest, id, Some(signal.process_id), number)
        }
        Request::ResizeConsole(resize) => {
            let state = guest.state.borrow();
            let process = state.container(id)?.process(resize.process_id)?;
            match &process.size {
                Some(_) if guest.has(Defect::FixedConsole) => {}
                Some(size) => drop(size.send_replace((resize.height.into(), resize.width.into()))),
                None => return Err(fault(HResult::FAIL, "it has no terminal")),
            }
            Ok(json!({}))
        }
        Request::GetProperties(query) => properties(guest, id, &query),
        Request::ModifySettings(modify) => match modify.request {
            Some(request) => change(guest, id, request),
            None => Err(fault(HResult::INVALID_JSON, "no Request")),
        },
        Request::DumpStacks(_) => Ok(json!({"GuestStacks": "simulated\n"})),
        Request::DeleteContainerState(_) => {
            let mut state = guest.state.borrow_mut();
            if state.containers.remove(id).is_none() && !guest.has(Defect::DeletesAnything) {
                return Err(no_container(id));
            }
            Ok(json!({}))
        }
        _ => Err(fault(HResult::NOT_IMPLEMENTED, "not here")),
    }
}

impl State {
    fn container(&self, id: &str) -> Result<&Container, Fault> {
        self.containers.get(id).ok_or_else(|| no_container(id))
    }

    fn container_mut(&mut self, id: &str) -> Result<&mut Container, Fault> {
        self.containers.get_mut(id).ok_or_else(|| no_container(id))
    }

    fn pid(&mut self) -> u32 {
        self.next_pid += 1;
        100 + self.next_pid
    }
}

impl Container {
    fn process(&self, pid: u32) -> Result<&Process, Fault> {
        self.processes.get(&pid).ok_or_else(|| no_process(pid))
    }
}

fn make(guest: &Guest, envelope: &Envelope, create: linkspan_protocol::message::Create) -> Answer {
    let id = envelope.container_id.as_str();
    let mut state = guest.state.borrow_mut();
    if state.containers.contains_key(id) {
        return match guest.has(Defect::AcceptsDuplicates) {
            true => Ok(json!({"SelectedProtocolVersion": 0})),
            false => Err(fault(HResult::SYSTEM_ALREADY_EXISTS, format!("{id:?} is there"))),
        };
    }
    if state.burnt.iter().any(|burnt| burnt == id) {
        return Err(fault(HResult::SYSTEM_ALREADY_EXISTS, format!("{id:?} was there")));
    }
    let document = create.hosted_container();
    let document = document.map_err(|error| fault(HResult::INVALID_JSON, error.to_string()))?;
    if document.schema_version < SchemaVersion::MINIMUM {
        return Err(fault(HResult::INVALID_JSON, "the schema version is too old"));
    }
    let spec =
        document.oci_specification.ok_or_else(|| fault(HResult::FAIL, "no OciSpecification"))?;
    for part in ["process", "root", "linux"] {
        if !spec[part].is_object() {
            return Err(fault(HResult::FAIL, format!("no {part}")));
        }
    }
    let annotation = |key: &str| spec["annotations"][key].as_str();
    match annotation("io.kubernetes.cri.container-type") {
        None => {}
        Some("sandbox") if annotation("io.microsoft.cri.skip-pod-networking") != Some("true") => {
            return Err(fault(HResult::ELEMENT_NOT_FOUND, "no such network namespace"));
        }
        Some("sandbox") => {}
        Some("container") => {
            if spec["hostname"].as_str().is_some_and(|name| !name.is_empty()) {
                return Err(fault(HResult::FAIL, "a workload has no host name"));
            }
            let pod = annotation("io.kubernetes.cri.sandbox-id").unwrap_or_default();
            if !state.containers.contains_key(pod) {
                return Err(fault(HResult::FAIL, "no such pod"));
            }
        }
        Some(other) => return Err(fault(HResult::FAIL, format!("no kind {other:?}"))),
    }
    let init = state.pid();
    let container = Container {
        activity: envelope.activity_id.clone(),
        host_name: spec["hostname"].as_str().unwrap_or_default().to_owned(),
        process: spec["process"].clone(),
        init,
        processes: HashMap::new(),
        kind: NotificationType::UnexpectedExit,
        notified: false,
        limit: json!(u64::MAX),
    };
    state.containers.insert(id.to_owned(), container);
    Ok(json!({"SelectedProtocolVersion": 0}))
}

async fn execute_process(guest: &Rc<Guest>, id: &str, execute: ExecuteProcess) -> Answer {
    let parameters = &execute.settings.process_parameters.0;
    let ports = execute.settings.vsock_stdio_relay_settings.unwrap_or_default();
    if let Err(error) = guest.state.borrow().container(id) {
        return Err(match guest.has(Defect::WrongNotFound) {
            true => fault(HResult::FAIL, error.message),
            false => error,
        });
    }
    let mut wanted = [
        (parameters.create_std_in_pipe, ports.stdin),
        (parameters.create_std_out_pipe, ports.stdout),
        (parameters.create_std_err_pipe, ports.stderr),
    ];
    if guest.has(Defect::DialsBackwards) {
        wanted.reverse();
    }
    let mut streams = Vec::new();
    for (wanted, port) in wanted {
        let dial = wanted || (guest.has(Defect::DialsUnwanted) && port != 0);
        streams.push(match dial {
            true => {
                let dialled = guest.dial(port).await;
                Some(dialled.map_err(|error| fault(HResult::FAIL, error.to_string()))?)
            }
            false => None,
        });
    }
    if guest.has(Defect::DialsBackwards) {
        streams.reverse();
    }
    let [stdin, stdout, stderr] = <[Option<Stream>; 3]>::try_from(streams).unwrap_or_default();
    let mut state = guest.state.borrow_mut();
    let fresh = state.pid();
    let container = state.container_mut(id)?;
    let (pid, process) = match &parameters.oci_process {
        Some(process) => (fresh, process.clone()),
        None => (container.init, container.process.clone()),
    };
    let size = (process["terminal"] == true).then(|| {
        let of = |key: &str| process["consoleSize"][key].as_u64().unwrap_or_default();
        match guest.has(Defect::FixedConsole) {
            true => watch::channel((24, 80)),
            false => watch::channel((of("height"), of("width"))),
        }
    });
    let (size, terminal) = size.unzip();
    let io = Io { stdin, stdout, stderr, terminal };
    let (signals, mut receiver) = mpsc::unbounded_channel();
    let exit = watch::Sender::new(None);
    let args: Vec<String> = process["args"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|word| word.as_str().map(str::to_owned))
        .collect();
    if args.is_empty() {
        return Err(fault(HResult::FAIL, "no program"));
    }
    let record = Process { exit: exit.clone(), signals, size, waiters: 0, started: true };
    container.processes.insert(pid, record);
    let (host_name, owner) = (container.host_name.clone(), id.to_owned());
    let is_init = parameters.oci_process.is_none();
    let guest = Rc::clone(guest);
    spawn_local(async move {
        let faults = Faults {
            no_stdin_end: guest.has(Defect::KeepsStdinOpen),
            cut_output: guest.has(Defect::CutsOutput),
            no_stderr_on_terminal: guest.has(Defect::LosesStderr),
        };
        let mut io = io;
        let ended = run(&args, &host_name, &mut io, &mut receiver, faults).await;
        let code = match ended {
            Ok(code) => code,
            Err(signal) if guest.has(Defect::PlainSignals) => signal.cast_unsigned(),
            Err(signal) => 128 + signal.cast_unsigned(),
        };
        receiver.close();
        if guest.has(Defect::ExitsBeforeDrain) {
            exit.send_replace(Some(code));
        }
        drain(&guest, io).await;
        exit.send_replace(Some(code));
        if is_init && guest.has(Defect::EagerNotification) {
            notify(&guest, &owner);
        }
    });
    Ok(json!({"ProcessId": pid}))
}

/// Half-closes the outputs, and waits for the host to close them.
async fn drain(guest: &Guest, io: Io) {
    let Io { stdin, stdout, stderr, terminal } = io;
    drop(stdin);
    if terminal.is_some() || guest.has(Defect::ClosesInFull) {
        return;
    }
    let mut outputs: Vec<Stream> = [stdout, stderr].into_iter().flatten().collect();
    for stream in &outputs {
        let _ = stream.shutdown(Shutdown::Write);
    }
    for stream in &mut outputs {
        let _ = stream.read(&mut [0; 1]).await;
    }
}

async fn wait_for(guest: &Rc<Guest>, id: &str, wait: WaitForProcess) -> Answer {
    let pid = wait.process_id;
    if id == linkspan_protocol::UVM_ID {
        return Err(no_process(pid));
    }
    let (mut exit, alone) = {
        let mut state = guest.state.borrow_mut();
        let process =
            state.container_mut(id)?.processes.get_mut(&pid).ok_or_else(|| no_process(pid))?;
        process.waiters += 1;
        (process.exit.subscribe(), process.waiters == 1)
    };
    if !alone && guest.has(Defect::OneWaiter) {
        return std::future::pending().await;
    }
    let ended = async { exit.wait_for(Option::is_some).await.map(|code| code.unwrap_or_default()) };
    let limit = match wait.timeout_in_ms {
        INFINITE => None,
        _ if guest.has(Defect::IgnoresLimits) => None,
        limit => Some(Duration::from_millis(limit.into())),
    };
    let code = match limit {
        None => ended.await.ok(),
        Some(limit) => tokio::time::timeout(limit, ended).await.ok().and_then(Result::ok),
    };
    let mut state = guest.state.borrow_mut();
    if let Ok(container) = state.container_mut(id) {
        let is_init = container.init == pid;
        if let Some(process) = container.processes.get_mut(&pid) {
            process.waiters -= 1;
            if process.waiters == 0
                && code.is_some()
                && !is_init
                && !guest.has(Defect::RemembersAll)
            {
                container.processes.remove(&pid);
            }
        }
        drop(state);
        if is_init && code.is_some() {
            notify(guest, id);
        }
    }
    match code {
        Some(code) => Ok(json!({"ExitCode": code})),
        None => Err(fault(HResult::TIMEOUT, "the process runs on")),
    }
}

/// Tells of a container's exit, once, after the present answer.
fn notify(guest: &Rc<Guest>, id: &str) {
    let mut state = guest.state.borrow_mut();
    let Ok(container) = state.container_mut(id) else { return };
    if std::mem::replace(&mut container.notified, true) {
        return;
    }
    let kind = match guest.has(Defect::AlwaysForced) {
        true => NotificationType::ForcedExit,
        false => container.kind,
    };
    let notification = Notification {
        container_id: id.into(),
        activity_id: container.activity.clone(),
        kind,
        ..Notification::default()
    };
    let guest = Rc::clone(guest);
    spawn_local(async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut server = guest.server.borrow_mut();
        if server.is_negotiated() || !guest.has(Defect::LosesUnsent) {
            server.notify(&notification);
        }
        drop(server);
        guest.outgoing.notify_one();
    });
}

fn send_signal(guest: &Guest, id: &str, pid: Option<u32>, signal: i32) -> Answer {
    let mut state = guest.state.borrow_mut();
    let container = state.container_mut(id)?;
    let pid = pid.unwrap_or(container.init);
    let is_init = pid == container.init;
    let process = container.process(pid)?;
    if process.exit.borrow().is_some() || process.signals.is_closed() {
        return Err(no_process(pid));
    }
    if signal != 0 {
        let _ = process.signals.send(signal);
    }
    match signal {
        15 if is_init => container.kind = NotificationType::GracefulExit,
        9 if is_init => container.kind = NotificationType::ForcedExit,
        _ => {}
    }
    Ok(json!({}))
}

async fn shutdown(guest: &Guest, id: &str, signal: i32) -> Answer {
    let mut exit = {
        let state = guest.state.borrow();
        let container = state.container(id)?;
        let running = container.processes.get(&container.init).filter(|process| process.started);
        let process = running.filter(|process| process.exit.borrow().is_none());
        match process {
            None if guest.has(Defect::ShutdownAnytime) => return Ok(json!({})),
            None => {
                return Err(fault(HResult::SYSTEM_ALREADY_STOPPED, format!("{id:?} does not run")));
            }
            Some(process) => process.exit.subscribe(),
        }
    };
    let answer = send_signal(guest, id, None, signal);
    if guest.has(Defect::SlowShutdown) {
        let _ = exit.wait_for(Option::is_some).await;
    }
    answer
}

fn properties(
    guest: &Guest,
    id: &str,
    query: &linkspan_protocol::message::GetProperties,
) -> Answer {
    if id == linkspan_protocol::UVM_ID {
        return Err(fault(HResult::FAIL, "the machine has no properties"));
    }
    let state = guest.state.borrow();
    let container = state.container(id)?;
    let types = serde_json::to_value(query.types()).unwrap_or_default();
    let asked =
        |name: &str| types.as_array().is_some_and(|types| types.iter().any(|kind| kind == name));
    let mut all = serde_json::Map::new();
    if asked("ProcessList") {
        let running =
            container.processes.iter().filter(|(_, process)| process.exit.borrow().is_none());
        let running =
            running.filter(|(pid, _)| !guest.has(Defect::HidesInit) || **pid != container.init);
        let list: Vec<Value> = running.map(|(pid, _)| json!({"ProcessId": pid})).collect();
        all.insert("ProcessList".to_owned(), list.into());
    }
    if asked("Statistics") {
        let metrics = json!({
            "cpu": {"usage": {"total": 1}},
            "memory": {"usage": {"usage": 1, "limit": container.limit}},
        });
        all.insert("LCOWMetrics".to_owned(), metrics);
    }
    Ok(json!({"Properties": Value::Object(all).to_string()}))
}

fn change(guest: &Guest, id: &str, request: linkspan_protocol::message::ModifyRequest) -> Answer {
    let resource = match request.target {
        ModifyTarget::Resource(resource) => resource,
        _ if guest.has(Defect::TakesAnyResource) => return Ok(json!({})),
        _ => return Err(fault(HResult::FAIL, "no such resource")),
    };
    let modify = request.modify.unwrap_or(ModifyType::Add);
    let mut state = guest.state.borrow_mut();
    if id != linkspan_protocol::UVM_ID {
        let container = state.container_mut(id)?;
        let Resource::ContainerConstraints(_) = &resource else {
            return Err(fault(HResult::FAIL, "a container does not take that"));
        };
        let settings = serde_json::to_value(&resource).unwrap_or_default();
        container.limit = settings["Linux"]["memory"]["limit"].clone();
        return Ok(json!({}));
    }
    let wrong =
        || Err(fault(HResult::FAIL, format!("no {} of {}", modify.as_str(), resource.name())));
    match (&resource, &modify) {
        (Resource::ContainerConstraints(_), _) => Err(no_container(id)),
        (Resource::ScsiDevice(_), ModifyType::Remove)
        | (
            Resource::CombinedLayers(_) | Resource::MappedDirectory(_),
            ModifyType::Add | ModifyType::Remove,
        )
        | (Resource::Network(_), ModifyType::Remove) => Ok(json!({})),
        (Resource::SecurityPolicy(_), _) => {
            if std::mem::replace(&mut state.has_policy, true) && !guest.has(Defect::PolicyAgain) {
                return Err(fault(HResult::FAIL, "there is a policy"));
            }
            Ok(json!({}))
        }
        _ => wrong(),
    }
}
