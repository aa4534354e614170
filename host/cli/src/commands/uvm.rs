//! `linkspan uvm`: named utility VMs.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::{Args, Subcommand};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::control::{Reply, Request, Uvm as About};
use crate::error::{Context, Error, Report};
use crate::monitor::{self, Config, Startup};
use crate::options::{Global, VmOptions, absolute};
use crate::progress::Progress;
use crate::registry::{Place, Registry};
use crate::signals::Signals;
use crate::{client, output};

/// How long a monitor may take to tell about itself before `list` goes on without it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a monitor may take to end what it holds when that is forced.
const FORCED: Duration = Duration::from_secs(5);

/// Start, list and stop named utility VMs
#[derive(Args, Debug)]
pub(crate) struct Uvm {
    #[command(subcommand)]
    command: UvmCommand,
}

#[derive(Subcommand, Debug)]
enum UvmCommand {
    Start(Box<Start>),
    List(List),
    Inspect(Inspect),
    Stop(Stop),
    /// Holds a utility VM; `uvm start` runs it
    #[command(hide = true)]
    Monitor,
}

/// Start a named utility VM
///
/// It stays until `linkspan uvm stop`. With --export-vsock it is somebody else's to serve: the
/// guest's connection to port P of its host arrives at the Unix socket PATH_P.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan uvm start dev --memory-mib 2048
  linkspan run --uvm dev ./rootfs -- uname -a
  linkspan uvm start theirs --export-vsock /tmp/vm.sock   # listen at /tmp/vm.sock_1073741824")]
struct Start {
    #[command(flatten)]
    vm: VmOptions,
    /// Give its vsock to another host's Unix sockets at PATH_PORT
    #[arg(long, value_name = "PATH", help_heading = "Utility VM")]
    export_vsock: Option<PathBuf>,
    /// Hold it here instead of in the background, until a signal
    #[arg(long)]
    foreground: bool,
    /// 1 to 48 letters, digits, _ - .
    name: String,
}

/// List running utility VMs
#[derive(Args, Debug)]
struct List {}

/// Print what is known of a utility VM, as JSON
#[derive(Args, Debug)]
struct Inspect {
    /// Which; may be left out if only one is running
    name: Option<String>,
}

/// Stop a utility VM
///
/// Its containers are asked to end (SIGTERM) and have ten seconds for it.
#[derive(Args, Debug)]
struct Stop {
    /// Ask nobody; works with a monitor that does not answer, too
    #[arg(short, long)]
    force: bool,
    /// Which; may be left out if only one is running
    name: Option<String>,
}

impl Uvm {
    /// Whether this is the process in the background.
    pub(crate) fn is_monitor(&self) -> bool {
        matches!(self.command, UvmCommand::Monitor)
    }

    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        match self.command {
            UvmCommand::Start(start) => start.run(global).await?,
            UvmCommand::List(_) => list(global).await?,
            UvmCommand::Inspect(inspect) => inspect.run().await?,
            UvmCommand::Stop(stop) => stop.run(global).await?,
            UvmCommand::Monitor => hold_in_background().await?,
        }
        Ok(0)
    }
}

impl Start {
    async fn run(self, global: &Global) -> Result<(), Error> {
        let registry = Registry::open()?;
        if !registry.place(&self.name)?.is_free_or_absent()? {
            let reason = format!("a utility VM named {:?} is running already", self.name);
            return Err(Error::input("NAME", reason));
        }
        let options = self.vm.resolve()?;
        let export_vsock = self.export_vsock.map(absolute).transpose()?;
        let config = Config { name: self.name, options, export_vsock };
        let mut signals = Signals::take_over()?;
        let waiting = Progress::new(global).spinner(format!("booting utility VM {}", config.name));
        let tell = |about: &About| match global.json {
            true => output::json(about),
            false if global.quiet => Ok(()),
            false => output::line(format!("{}: {}", about.name, about.machine)),
        };
        if self.foreground {
            let held = registry.hold(&config.name)?;
            let ready = |about| {
                drop(waiting);
                tell(&about)
            };
            return monitor::hold(config, &mut signals, ready, held).await;
        }
        let about = start_monitor(&config, global, &mut signals).await?;
        drop(waiting);
        tell(&about)
    }
}

/// Runs this program again in the background and waits for what it says.
async fn start_monitor(
    config: &Config,
    global: &Global,
    signals: &mut Signals,
) -> Result<About, Error> {
    let what = || "start the monitor".to_owned();
    let program = std::env::current_exe().context(what)?;
    let mut command = tokio::process::Command::new(program);
    command.args(["uvm", "monitor"]).args((0..global.verbose).map(|_| "-v"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut monitor = command.spawn().context(what)?;
    let (stdin, stdout) = (monitor.stdin.take(), monitor.stdout.take());
    let pid = monitor.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let told = async {
        let bytes = serde_json::to_vec(config).map_err(io::Error::from)?;
        if let Some(mut stdin) = stdin {
            stdin.write_all(&bytes).await?;
        }
        let mut answer = Vec::new();
        if let Some(mut stdout) = stdout {
            stdout.read_to_end(&mut answer).await?;
        }
        io::Result::Ok(answer)
    };
    let answer = match signals.interrupt(async { told.await.context(what) }).await {
        Ok(answer) => answer,
        Err(error) => {
            // It takes everything back, and we do not go before it.
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::TERM);
            }
            let _ = monitor.wait().await;
            return Err(error);
        }
    };
    match serde_json::from_slice(&answer) {
        Ok(Startup::Ready(about)) => Ok(*about),
        Ok(Startup::Failed(report)) => {
            let _ = monitor.wait().await;
            Err(Error::Remote(report))
        }
        Err(_) => {
            let status = monitor.wait().await.context(what)?;
            let source = io::Error::other(format!("it ended without a word ({status})"));
            Err(Error::Io { what: what(), source })
        }
    }
}

/// What the background process does: its configuration is on stdin, its answer goes to stdout.
async fn hold_in_background() -> Result<(), Error> {
    let mut config = Vec::new();
    io::stdin().read_to_end(&mut config).context(|| "read the configuration".into())?;
    let outcome = match serde_json::from_slice::<Config>(&config) {
        Ok(config) => hold_here(config).await,
        Err(error) => Err(Error::input("uvm monitor", format!("configuration on stdin: {error}"))),
    };
    if let Err(error) = &outcome {
        tracing::error!(%error, "ends");
        // Nobody is there to read it if the start was not what failed.
        let _ = answer(&Startup::Failed(error.report()));
    }
    outcome
}

async fn hold_here(config: Config) -> Result<(), Error> {
    // It fails only where there is a session of our own already.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let held = monitor::place(&config.name)?;
    let path = held.place.log();
    let what = || format!("log to {}", path.display());
    let log = std::fs::File::create(&path).context(what)?;
    rustix::stdio::dup2_stderr(&log).context(what)?;
    let null = std::fs::File::open("/dev/null").context(|| "open /dev/null".into())?;
    rustix::stdio::dup2_stdin(&null).context(what)?;
    std::env::set_current_dir("/").context(|| "change to /".into())?;
    let mut signals = Signals::take_over()?;
    let ready = |about| answer(&Startup::Ready(Box::new(about)));
    monitor::hold(config, &mut signals, ready, held).await
}

/// Tells whoever started this, and closes stdout so that it goes on.
fn answer(startup: &Startup) -> Result<(), Error> {
    let what = || "tell that the utility VM is up".to_owned();
    let bytes = serde_json::to_vec(startup).map_err(io::Error::from).context(what)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).context(what)?;
    let null = std::fs::File::options().write(true).open("/dev/null").context(what)?;
    rustix::stdio::dup2_stdout(&null).context(what)
}

async fn list(global: &Global) -> Result<(), Error> {
    let mut known = Vec::new();
    let mut silent = Vec::new();
    for place in Registry::open()?.list()? {
        match tokio::time::timeout(PATIENCE, inspect(&place)).await {
            Ok(Ok(about)) => known.push(about),
            _ => silent.push(place),
        }
    }
    if global.json {
        let silent = silent.iter().map(|place| json!({ "name": place.name, "state": "starting" }));
        let known = known.iter().map(|about| {
            let mut value = serde_json::to_value(about).unwrap_or_default();
            value["state"] = json!("running");
            value
        });
        return output::json(&known.chain(silent).collect::<Vec<_>>());
    }
    let known = known.iter().map(|about| {
        let state = if about.export_vsock.is_some() { "exported" } else { "running" };
        [
            about.name.clone(),
            state.to_owned(),
            about.containers.to_string(),
            output::age(Duration::from_millis(about.age_ms)),
            about.machine.clone(),
        ]
    });
    let silent = silent.iter().map(|place| {
        let starting = "starting or ending".to_owned();
        [place.name.clone(), starting, String::new(), String::new(), String::new()]
    });
    let rows: Vec<_> = known.chain(silent).collect();
    output::table(["NAME", "STATE", "CONTAINERS", "AGE", "MACHINE"], &rows)
}

async fn inspect(place: &Place) -> Result<About, Error> {
    match client::ask(place, &Request::Inspect).await? {
        Reply::Uvm(about) => Ok(*about),
        _ => Err(client::unexpected()),
    }
}

impl Inspect {
    async fn run(&self) -> Result<(), Error> {
        let place = Registry::open()?.find(self.name.as_deref())?;
        output::json(&inspect(&place).await?)
    }
}

impl Stop {
    async fn run(&self, global: &Global) -> Result<(), Error> {
        let registry = Registry::open()?;
        let place = registry.find(self.name.as_deref())?;
        let request = Request::Stop { force: self.force };
        let asking = async {
            match client::ask(&place, &request).await? {
                Reply::Done => Ok(()),
                _ => Err(client::unexpected()),
            }
        };
        if self.force {
            let asked = tokio::time::timeout(FORCED, asking).await;
            if !matches!(asked, Ok(Ok(()))) && !place.is_free_or_absent()? {
                end_monitor(&place).await?;
                // Looking removes what it has left.
                registry.list()?;
            }
        } else {
            asking.await?;
        }
        match global.json {
            true => output::json(&json!({ "stopped": place.name })),
            false if global.quiet => Ok(()),
            false => output::line(&place.name),
        }
    }
}

/// Kills a monitor that does not answer, and waits until it is gone; its utility VM goes with it.
async fn end_monitor(place: &Place) -> Result<(), Error> {
    let failed = |reason: &str| Report {
        message: format!("stop utility VM {:?}: {reason}", place.name),
        ..Report::default()
    };
    let pid = place.monitor_pid().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::Remote(failed("its monitor's pid is not known")))?;
    let what = || format!("kill monitor {}", pid.as_raw_pid());
    let monitor = pidfd_open(pid, PidfdFlags::NONBLOCK).context(what)?;
    pidfd_send_signal(&monitor, Signal::KILL).context(what)?;
    let gone = move || retry_on_intr(|| poll(&mut [PollFd::new(&monitor, PollFlags::IN)], None));
    let waited = tokio::task::spawn_blocking(gone).await.map_err(io::Error::from).context(what)?;
    waited.map(drop).context(what)
}
