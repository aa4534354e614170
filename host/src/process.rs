//! Processes, in the image of `std::process`.

use std::fmt;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use hyperv_socket::Stream;
use linkspan_protocol::message::{
    ContainerId, ExecuteProcess, ExecuteProcessSettings, INFINITE, LinkspanStdio,
    ProcessParameters, ResizeConsole, SignalOptions, SignalProcess, VsockStdio, WaitForProcess,
    WaitForProcessResponse,
};
use linkspan_protocol::{HResult, JsonString};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use crate::bridge::Bridge;
use crate::uvm::Shared;
use crate::vmm::{Accept, PortListener};
use crate::{Error, ProcessSpec, Result};

/// Which of a process's streams are connected to the caller. The others are empty (stdin) or
/// refuse to be written (stdout, stderr).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stdio {
    /// Connect stdin.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr. Has no use with a terminal, where all output is stdout's.
    pub stderr: bool,
}

impl Stdio {
    /// All three.
    pub const PIPED: Self = Self { stdin: true, stdout: true, stderr: true };
    /// None.
    pub const NULL: Self = Self { stdin: false, stdout: false, stderr: false };
    /// stdout and stderr.
    pub const OUTPUT: Self = Self { stdin: false, stdout: true, stderr: true };
    /// stdin and stdout, as a terminal has them.
    pub const TERMINAL: Self = Self { stdin: true, stdout: true, stderr: false };
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    code: u32,
    oom_kills: u64,
}

impl ExitStatus {
    /// The code, 0 for success. A process that was ended by signal `n` has 128 + `n`.
    pub fn code(self) -> u32 {
        self.code
    }

    /// Whether the code is 0.
    pub fn success(self) -> bool {
        self.code == 0
    }

    /// How many processes its container has lost for want of memory so far, if it was ended by
    /// SIGKILL: more than 0 means that this may have been why. Only Linkspan's agent tells.
    pub fn oom_kills(self) -> u64 {
        self.oom_kills
    }

    /// The signal, if the code is one that says so.
    pub fn signal(self) -> Option<u32> {
        (129..=192).contains(&self.code).then(|| self.code - 128)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal() {
            Some(signal) => write!(f, "signal {signal}"),
            None => write!(f, "exit code {}", self.code),
        }
    }
}

/// What a process wrote, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// All of stderr.
    pub stderr: Vec<u8>,
}

/// A running process. Dropping it does not end the process.
///
/// The streams are plain sockets: read an output to its end and drop it, for the guest tells of
/// the exit only when it knows that all output has arrived. Shutting stdin's write side down (or
/// dropping it) is the end of the process's input.
#[derive(Debug)]
pub struct Child {
    /// Towards the process.
    pub stdin: Option<Stream>,
    /// From the process.
    pub stdout: Option<Stream>,
    /// From the process.
    pub stderr: Option<Stream>,
    handle: ProcessHandle,
}

/// What one can do with a process besides its streams. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProcessHandle {
    bridge: Bridge,
    container: ContainerId,
    pid: u32,
    exit: watch::Receiver<Option<Arc<Result<ExitStatus>>>>,
}

impl ProcessHandle {
    /// Its pid in the guest's root namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether its end has been told.
    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for the end. May be called by many, and again.
    ///
    /// # Errors
    /// When the bridge ends first.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let mut exit = self.exit.clone();
        let outcome = match exit.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        match outcome.as_deref() {
            Some(Ok(status)) => Ok(*status),
            Some(Err(Error::Closed { what, reason })) => {
                Err(Error::Closed { what: what.clone(), reason: reason.clone() })
            }
            other => Err(Error::Answer {
                what: format!("wait for process {}", self.pid),
                reason: match other {
                    Some(Err(error)) => error.to_string(),
                    _ => "nobody watches it any more".to_owned(),
                },
            }),
        }
    }

    /// Sends a signal. Returns whether the process was still there.
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn signal(&self, number: i32) -> Result<bool> {
        let options = Some(SignalOptions::Linux { signal: number });
        self.send_signal(options, number).await
    }

    /// Ends it with SIGKILL. Returns whether the process was still there.
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn kill(&self) -> Result<bool> {
        self.send_signal(None, 9).await
    }

    async fn send_signal(&self, options: Option<SignalOptions>, number: i32) -> Result<bool> {
        let request = SignalProcess { process_id: self.pid, options };
        let what = || format!("send signal {number} to process {}", self.pid);
        match self.bridge.call(&self.container, &request, what).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(HResult::ELEMENT_NOT_FOUND) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Changes the size of its terminal.
    ///
    /// # Errors
    /// When it has none, or the guest is gone.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let request = ResizeConsole { process_id: self.pid, height: rows, width: columns };
        let what = || format!("resize the terminal of process {}", self.pid);
        self.bridge.call(&self.container, &request, what).await.map(drop)
    }
}

impl Child {
    /// What one can do with it besides its streams.
    pub fn handle(&self) -> &ProcessHandle {
        &self.handle
    }

    /// Its pid in the guest's root namespace.
    pub fn pid(&self) -> u32 {
        self.handle.pid
    }

    /// Ends its input, and waits for its end. Outputs that were not taken are dropped.
    ///
    /// # Errors
    /// When the bridge ends first.
    pub async fn wait(self) -> Result<ExitStatus> {
        let Self { stdin, stdout, stderr, handle } = self;
        let _open = ended(stdin);
        drop((stdout, stderr));
        handle.wait().await
    }

    /// Ends its input, reads all output, and waits for its end.
    ///
    /// # Errors
    /// When a stream or the bridge breaks first.
    pub async fn wait_with_output(self) -> Result<Output> {
        let Self { stdin, stdout, stderr, handle } = self;
        let _open = ended(stdin);
        let (stdout, stderr) = tokio::try_join!(drain(stdout), drain(stderr))?;
        Ok(Output { status: handle.wait().await?, stdout, stderr })
    }
}

/// Ends a process's input. Guests want the connection itself to last as long as the process.
fn ended(stdin: Option<Stream>) -> Option<Stream> {
    // A process that has ended has closed it already.
    let _ = stdin.as_ref().map(|stdin| stdin.shutdown(Shutdown::Write));
    stdin
}

async fn drain(stream: Option<Stream>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let read = stream.read_to_end(&mut bytes).await;
        read.map_err(|source| Error::Io { what: "read a process's output".to_owned(), source })?;
    }
    Ok(bytes)
}

/// Which process to start.
pub(crate) enum Start<'a> {
    /// A container's init; its output is to `resume` over lost connections.
    Init { resume: bool },
    /// A further process in a container, an OCI process object.
    Exec(Value),
    /// A process in the utility VM's root.
    External(&'a ProcessSpec),
}

/// How long the guest may take from the dial of a port to what the host sees of it.
const DELIVERY: Duration = Duration::from_secs(30);

/// Starts a process. Its ports are listened on before the guest hears of it, and a wait for its
/// end is posted at once: nothing can be missed.
pub(crate) async fn start(
    uvm: &Shared,
    container: &ContainerId,
    start: Start<'_>,
    stdio: Stdio,
) -> Result<Child> {
    let mut parameters = ProcessParameters {
        create_std_in_pipe: stdio.stdin,
        create_std_out_pipe: stdio.stdout,
        create_std_err_pipe: stdio.stderr,
        ..ProcessParameters::default()
    };
    let resume = match start {
        Start::Init { resume } => Some(resume),
        _ => None,
    };
    let what = match start {
        Start::Init { .. } => format!("start container {container}"),
        Start::Exec(document) => {
            let args = document["args"].as_array().into_iter().flatten();
            let args: Vec<&str> = args.filter_map(Value::as_str).collect();
            let what = format!("run {:?} in container {container}", args.join(" "));
            parameters.oci_process = Some(document);
            what
        }
        Start::External(spec) => {
            parameters.command_args = spec.args.clone();
            parameters.working_directory = spec.cwd.clone();
            parameters.environment = spec.env.iter().cloned().collect();
            parameters.emulate_console = spec.terminal.is_some();
            format!("run {:?} in the utility VM", spec.args.join(" "))
        }
    };
    let linkspan = linkspan_stdio(uvm, resume);
    let outputs = match linkspan {
        Some(LinkspanStdio::Resume) => Accept::Many,
        _ => Accept::Once,
    };
    let mut stdin = uvm.listen_for_stdio(stdio.stdin, Accept::Once).await?;
    let mut stdout = uvm.listen_for_stdio(stdio.stdout, outputs).await?;
    let mut stderr = uvm.listen_for_stdio(stdio.stderr, outputs).await?;
    let port = |listener: &Option<PortListener>| listener.as_ref().map_or(0, PortListener::port);
    let settings = ExecuteProcessSettings {
        process_parameters: JsonString(parameters),
        stdio_relay_settings: None,
        vsock_stdio_relay_settings: Some(VsockStdio {
            stdin: port(&stdin),
            stdout: port(&stdout),
            stderr: port(&stderr),
            linkspan,
        }),
    };
    let request = ExecuteProcess { settings };
    let answer = uvm.bridge.call(container, &request, || what.clone()).await?;
    let handle = watch_process(&uvm.bridge, container, answer.process_id);
    if linkspan == Some(LinkspanStdio::Resume) {
        let stdin = connected("stdin", &what, &mut stdin).await?;
        let output = |listener: Option<PortListener>| {
            let stream = listener.map(crate::resume::output).transpose();
            stream.map_err(|source| Error::Io { what: what.clone(), source })
        };
        return Ok(Child { stdin, stdout: output(stdout)?, stderr: output(stderr)?, handle });
    }
    let (stdin, stdout, stderr) = tokio::try_join!(
        connected("stdin", &what, &mut stdin),
        connected("stdout", &what, &mut stdout),
        connected("stderr", &what, &mut stderr),
    )?;
    Ok(Child { stdin, stdout, stderr, handle })
}

/// What is to become of an init's output when its connection is lost, for a guest that can do
/// more than others.
fn linkspan_stdio(uvm: &Shared, resume: Option<bool>) -> Option<LinkspanStdio> {
    let known = uvm.bridge.capabilities().guest_defined_capabilities.linkspan_stdio;
    match resume.filter(|_| known)? {
        true => Some(LinkspanStdio::Resume),
        false => Some(LinkspanStdio::Once),
    }
}

async fn connected(
    name: &str,
    what: &str,
    listener: &mut Option<PortListener>,
) -> Result<Option<Stream>> {
    let Some(listener) = listener else { return Ok(None) };
    match tokio::time::timeout(DELIVERY, listener.accept()).await {
        Ok(Some(stream)) => Ok(Some(stream)),
        _ => Err(Error::Answer {
            what: what.to_owned(),
            reason: format!("it started the process but did not connect its {name}"),
        }),
    }
}

fn watch_process(bridge: &Bridge, container: &ContainerId, pid: u32) -> ProcessHandle {
    let (sender, exit) = watch::channel(None);
    let (waiting, container_id) = (bridge.clone(), container.clone());
    tokio::spawn(async move {
        let request = WaitForProcess { process_id: pid, timeout_in_ms: INFINITE };
        let what = || format!("wait for process {pid}");
        let outcome = match waiting.call_within(&container_id, &request, None, what).await {
            Ok(WaitForProcessResponse { exit_code: code, linkspan_oom_kills: oom_kills }) => {
                Ok(ExitStatus { code, oom_kills })
            }
            // It has exited and its record is gone: hosts take that for success.
            Err(error) if error.code() == Some(HResult::ELEMENT_NOT_FOUND) => {
                Ok(ExitStatus { code: 0, oom_kills: 0 })
            }
            Err(error) => Err(error),
        };
        sender.send_replace(Some(Arc::new(outcome)));
    });
    ProcessHandle { bridge: bridge.clone(), container: container.clone(), pid, exit }
}

/// A process to start, in the image of `std::process::Command`.
#[derive(Debug)]
#[must_use]
pub struct Command<'a> {
    uvm: &'a Shared,
    container: ContainerId,
    spec: ProcessSpec,
    stdio: Option<Stdio>,
}

impl<'a> Command<'a> {
    pub(crate) fn new(uvm: &'a Shared, container: ContainerId, program: String) -> Self {
        Self { uvm, container, spec: ProcessSpec::new([program]), stdio: None }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.spec.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.spec.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.env.push((name.into(), value.into()));
        self
    }

    /// Where it starts; `/` unless told otherwise.
    pub fn current_dir(mut self, path: impl Into<String>) -> Self {
        self.spec.cwd = path.into();
        self
    }

    /// Who it runs as; see [`ProcessSpec::user`].
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.spec.user = Some(user.into());
        self
    }

    /// Gives it a terminal.
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.spec.terminal = Some((rows, columns));
        self
    }

    /// Which streams are connected: all, or those of a terminal, unless told otherwise.
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.stdio = Some(stdio);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the guest refuses; see [`Error::program_problem`].
    pub async fn spawn(self) -> Result<Child> {
        let Self { uvm, container, spec, stdio } = self;
        let stdio = stdio.unwrap_or(match spec.terminal {
            Some(_) => Stdio::TERMINAL,
            None => Stdio::PIPED,
        });
        let which = match container.is_uvm() {
            true => Start::External(&spec),
            false => Start::Exec(spec.document()),
        };
        start(uvm, &container, which, stdio).await
    }

    /// Runs it to its end without input, and collects its output.
    ///
    /// # Errors
    /// As [`Command::spawn`], and when the bridge breaks.
    pub async fn output(mut self) -> Result<Output> {
        self.stdio = Some(self.stdio.unwrap_or(Stdio::OUTPUT));
        self.spawn().await?.wait_with_output().await
    }

    /// Runs it to its end without input or output.
    ///
    /// # Errors
    /// As [`Command::spawn`], and when the bridge breaks.
    pub async fn status(mut self) -> Result<ExitStatus> {
        self.stdio = Some(self.stdio.unwrap_or(Stdio::NULL));
        self.spawn().await?.wait().await
    }
}
