//! One request to one function.

use std::process::Command;
use std::rc::Rc;

use linkspan_protocol::JsonString;
use linkspan_protocol::message::{
    CreateResponse, DumpStacksResponse, Empty, Envelope, ExecuteProcess, ExecuteProcessResponse,
    GetPropertiesResponse, LinkspanStdio, ProcessParameters, Request, WaitForProcess,
    WaitForProcessResponse,
};
use serde::Serialize;
use tracing::info;

use crate::process::{Process, SignalCode, Waiter};
use crate::relay::{Delivery, Recovery, Relay};
use crate::stdio::{self, Streams};
use crate::terminal::Terminal;
use crate::uvm::Uvm;
use crate::{Error, Result, cgroup, container, headroom, resource};

/// What is answered.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    Empty(Empty),
    Created(CreateResponse),
    Executed(ExecuteProcessResponse),
    Waited(WaitForProcessResponse),
    Properties(Box<GetPropertiesResponse>),
    Stacks(DumpStacksResponse),
}

/// What remains to be done once the answer is on its way.
pub(crate) enum After {
    Nothing,
    /// A wait has been answered: its process may be forgotten, its container's end told.
    Settle(Waiter, Envelope),
    /// The VM goes off.
    PowerOff,
}

impl After {
    pub(crate) fn settle(self, uvm: &Uvm) {
        let Self::Settle(waiter, envelope) = self else { return };
        drop(waiter);
        match envelope.container_id.is_uvm() {
            true => uvm.settle_external(),
            false => {
                if let Ok(container) = uvm.container(envelope.container_id.as_str()) {
                    container.settle(uvm);
                }
                uvm.settle_external();
            }
        }
    }
}

const EMPTY: Answer = Answer::Empty(Empty {});

/// What takes long is boxed: a wait, of which there are many, then costs little.
pub(crate) async fn dispatch(
    uvm: &Uvm,
    envelope: Envelope,
    request: Request,
) -> Result<(Answer, After)> {
    let target = &envelope.container_id;
    let container = || uvm.container(target.as_str());
    let answer = match request {
        Request::Create(create) => {
            let document = create.hosted_container().map_err(|error| Error::Document {
                field: "ContainerConfig",
                reason: error.to_string(),
            })?;
            Box::pin(container::create(uvm, &envelope, document)).await?;
            Answer::Created(CreateResponse::default())
        }
        // The container runs with its first ExecuteProcess.
        Request::Start(_) => EMPTY,
        Request::ExecuteProcess(request) => {
            let process_id = Box::pin(execute(uvm, &envelope, request)).await?;
            Answer::Executed(ExecuteProcessResponse { process_id })
        }
        Request::WaitForProcess(WaitForProcess { process_id, timeout_in_ms }) => {
            let process = match target.is_uvm() {
                true => uvm.external(process_id)?,
                false => container()?
                    .process(process_id)
                    .or_else(|error| uvm.external(process_id).map_err(|_| error))?,
            };
            let (exit_code, waiter) = process.wait(timeout_in_ms).await?;
            let linkspan_oom_kills = match container() {
                // What the kernel does for want of memory is a kill.
                Ok(container) if exit_code == 137 => cgroup::oom_kills(container.cgroup()),
                _ => 0,
            };
            let answer = Answer::Waited(WaitForProcessResponse { exit_code, linkspan_oom_kills });
            return Ok((answer, After::Settle(waiter, envelope)));
        }
        Request::SignalProcess(request) => {
            let number = request.linux_signal().ok_or_else(|| Error::Document {
                field: "Options.Signal",
                reason: "is not a number".to_owned(),
            })?;
            container()?.signal(request.process_id, number)?;
            EMPTY
        }
        Request::ResizeConsole(request) => {
            let process = container()?.process(request.process_id)?;
            let Some(terminal) = process.terminal() else {
                let what = format!("a terminal of process {}, which has none,", process.pid());
                return Err(Error::NotSupported(what));
            };
            terminal.resize(request.height, request.width).map_err(|source| Error::Io {
                what: format!("resize the terminal of process {}", process.pid()),
                source,
            })?;
            EMPTY
        }
        Request::ShutdownGraceful(_) | Request::ShutdownForced(_) if target.is_uvm() => {
            return Ok((EMPTY, After::PowerOff));
        }
        Request::ShutdownGraceful(_) => {
            container()?.shut_down(15)?;
            EMPTY
        }
        Request::ShutdownForced(_) => {
            container()?.shut_down(9)?;
            EMPTY
        }
        Request::GetProperties(request) => {
            if target.is_uvm() {
                return Err(Error::NotSupported("GetProperties of the utility VM".to_owned()));
            }
            let properties = JsonString(container()?.properties(request.types())?);
            Answer::Properties(Box::new(GetPropertiesResponse { properties }))
        }
        Request::ModifySettings(request) => {
            let Some(request) = request.request else {
                let reason = "is missing".to_owned();
                return Err(Error::Document { field: "Request", reason });
            };
            Box::pin(resource::modify(uvm, target, request)).await?;
            EMPTY
        }
        Request::DumpStacks(_) => {
            Answer::Stacks(DumpStacksResponse { guest_stacks: uvm.describe() })
        }
        Request::DeleteContainerState(_) => {
            Box::pin(async { container()?.delete(uvm).await }).await?;
            EMPTY
        }
        Request::NegotiateProtocol(_)
        | Request::UpdateContainer(_)
        | Request::LifecycleNotification(_)
        | Request::ModifyServiceSettings(_) => return Err(Error::NotImplemented),
    };
    Ok((answer, After::Nothing))
}

async fn execute(uvm: &Uvm, envelope: &Envelope, request: ExecuteProcess) -> Result<u32> {
    let settings = request.settings;
    let parameters = settings.process_parameters.0;
    let linkspan = settings.vsock_stdio_relay_settings.and_then(|ports| ports.linkspan);
    let ports = stdio::ports(&parameters, settings.vsock_stdio_relay_settings);
    if parameters.create_in_utility_vm || envelope.container_id.is_uvm() {
        return execute_external(uvm, parameters, ports).await;
    }
    let container = uvm.container(envelope.container_id.as_str())?;
    match parameters.oci_process {
        None => {
            let recovery = || Recovery {
                host: uvm.host.clone(),
                connected: uvm.connected.subscribe(),
                abandoned: container.abandoned(),
            };
            let delivery = match linkspan {
                Some(LinkspanStdio::Once) => Delivery::Once,
                Some(LinkspanStdio::Resume) => Delivery::Resume(recovery()),
                None => Delivery::Replay(recovery()),
            };
            container.start(uvm, ports, delivery).await
        }
        Some(process) => container.exec(uvm, process, ports).await,
    }
}

/// A process in the utility VM's own root. Its streams are the host's connections themselves.
async fn execute_external(
    uvm: &Uvm,
    parameters: ProcessParameters,
    ports: Streams<u32>,
) -> Result<u32> {
    let mut args = parameters.command_args;
    if args.is_empty() {
        args = shell_words::split(&parameters.command_line).map_err(|error| Error::Argument {
            field: "CommandLine",
            reason: format!("{:?}: {error}", parameters.command_line),
        })?;
    }
    let Some((program, args)) = args.split_first() else {
        let reason = "is empty, and so is CommandLine".to_owned();
        return Err(Error::Argument { field: "CommandArgs", reason });
    };
    let mut command = Command::new(in_path(program));
    command.args(args).env_clear().envs(&parameters.environment);
    if !parameters.working_directory.is_empty() {
        command.current_dir(&parameters.working_directory);
    }
    let failed = |source| Error::Io { what: format!("run {program:?} in the utility VM"), source };
    let host = ports.dial(&uvm.host).await?;
    let expectation = uvm.reaper.expect();
    let cgroups = match uvm.headroom.is_machine() {
        true => cgroup::entrances(headroom::EXTERNAL.as_ref()),
        false => Vec::new(),
    };
    let (pid, terminal, relay) = if parameters.emulate_console {
        let (terminal, slave) = Terminal::open().map_err(failed)?;
        let pid = linkspan_guest_sys::spawn(
            &mut command,
            linkspan_guest_sys::Stdio::Terminal(slave),
            &cgroups,
        )
        .map_err(failed)?;
        let relay = Relay::terminal(&terminal, host, &ports, &Delivery::Once).map_err(failed)?;
        (pid, Some(terminal), relay)
    } else {
        let mut fds = [host.stdin, host.stdout, host.stderr].map(|s| s.map(|s| s.into_fd()));
        for fd in fds.iter().flatten() {
            rustix::io::ioctl_fionbio(fd, false).map_err(|error| failed(error.into()))?;
        }
        let stdio = linkspan_guest_sys::Stdio::Descriptors(std::mem::take(&mut fds));
        let pid = linkspan_guest_sys::spawn(&mut command, stdio, &cgroups).map_err(failed)?;
        (pid, None, Relay::none())
    };
    let child = expectation.register(pid).map_err(failed)?;
    drop(expectation);
    let process = Process::new(child, terminal);
    process.attach(relay);
    process.supervise(SignalCode::AllOnes, async || {});
    info!(pid, program, "external process");
    uvm.add_external(Rc::clone(&process));
    Ok(pid)
}

/// Where external programs are looked for, whatever `PATH` they are given themselves.
const PATH: [&str; 4] = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"];

fn in_path(program: &str) -> std::path::PathBuf {
    let mut candidates = PATH.iter().map(|directory| std::path::Path::new(directory).join(program));
    match program.contains('/') {
        true => program.into(),
        false => candidates.find(|path| path.is_file()).unwrap_or_else(|| program.into()),
    }
}
