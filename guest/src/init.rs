//! The first process of a utility VM.
//!
//! ```text
//! mounts ─> vsock modules ─> agent starts and dials ─┐
//!                     └─> storage modules ─> ready ─ ┴─> storage requests are served
//! ```
//!
//! An agent of somebody else's may want its devices under VMBus names (`vmbus`), and is then started
//! when they are there.

mod mounts;
mod vmbus;

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};

use crate::agent::{self, End};
use crate::arguments::Arguments;
use crate::boot_command::{self, BootCommand};
pub use crate::supervisor::POWER_OFF;
use crate::supervisor::{keep_running, run_once};
use crate::{cgroup, log, modules, storage};

/// Which programs an image runs in place of our agent; written by the image builder.
const FOREIGN_AGENT: &str = "/etc/linkspan/agent";

/// An agent of somebody else's: its path, then an argument a line.
#[derive(Debug)]
struct ForeignAgent {
    path: String,
    args: Vec<String>,
}

impl ForeignAgent {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::to_owned);
        Some(Self { path: lines.next().filter(|path| !path.is_empty())?, args: lines.collect() })
    }
}

/// Sets the machine up and keeps an agent running, or runs the program that `args` name. Returns
/// the machine's exit code, if there is one.
///
/// # Errors
/// What cannot be done without: mounts, the first fork; and arguments that say nothing.
pub fn run(args: Vec<String>) -> io::Result<u8> {
    mounts::mount_all()?;
    crate::name_process(c"linkspan-init");
    say("phase=init");
    let options = KernelOptions::read();
    let args = boot_command::meant_for_init(args, &options.0);
    let boot = BootCommand::parse(args).map_err(io::Error::other)?;
    mounts::mount_cgroups(&options.0)?;
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1 << 20)?;
    let _ = linkspan_guest_sys::bring_up("lo");
    cgroup::delegate();
    // The first cgroup with a memory limit makes the kernel rewrite its own allocator, which it is
    // better left to do alone: later, modules are loaded on another processor, and emulated ones
    // have been seen to hang in what was being rewritten.
    cgroup::make(Path::new("/pods"));
    load_modules("vsock");
    if boot.writable {
        load_storage();
        mounts::mount_writable()?;
    }
    let entropy = options.get("entropy").map(|_| linkspan_protocol::port::ENTROPY);
    if let Some(port) = boot.entropy_port.or(entropy) {
        seed(port);
    }
    say("phase=agent");
    let own = boot.own_agent();
    if own.is_none() && !boot.command.is_empty() {
        return run_program(&boot);
    }
    let (ready_read, ready_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let rest = std::cell::Cell::new(Some((ready_read, ready_write)));
    let foreign =
        fs::read_to_string(FOREIGN_AGENT).ok().and_then(|text| ForeignAgent::parse(&text));
    if foreign.is_some() && vmbus::is_wanted() {
        // Such an agent looks for its devices once, and does not wait for them.
        load_storage();
        load_modules("network");
        rest.take();
        if let Err(error) = vmbus::present() {
            say(&format!("no VMBus names: {error}"));
        }
    }
    let defaults = if own.is_some() { Arguments::of_gcs() } else { Arguments::default() };
    let mut flags = own.unwrap_or_default();
    flags.extend(options.agent_arguments());
    let arguments = defaults.with(flags);
    let ended = keep_running_with_modules(foreign, &arguments, rest);
    if let Err(error) = &ended {
        say(&format!("cannot go on: {error}"));
    }
    power_off()
}

/// A program of somebody else's, with which the machine ends.
fn run_program(boot: &BootCommand) -> io::Result<u8> {
    let run = |command: &[String]| {
        let (program, args) = command.split_first().expect("there is a command");
        let _ = rustix::process::setsid();
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", "/sbin:/usr/sbin:/bin:/usr/bin");
        let error = command.exec();
        say(&format!("cannot run {program}: {error}"));
        127
    };
    if let Some(shell) = &boot.shell {
        if let linkspan_guest_sys::Forked::Child = linkspan_guest_sys::fork()? {
            std::process::exit(run(&boot.command));
        }
        return run_once(|| run(std::slice::from_ref(shell)));
    }
    run_once(|| run(&boot.command))
}

fn keep_running_with_modules(
    foreign: Option<ForeignAgent>,
    arguments: &Result<Arguments, String>,
    ready: std::cell::Cell<Option<(OwnedFd, OwnedFd)>>,
) -> io::Result<()> {
    // Loading goes on in a process of its own while the agent already speaks with the host.
    let pipe = ready.take();
    let reader = match pipe {
        None => None,
        Some((read, write)) => {
            if let linkspan_guest_sys::Forked::Child = linkspan_guest_sys::fork()? {
                drop(read);
                crate::name_process(c"linkspan-loader");
                // The host's first answer comes first.
                let _ = rustix::process::nice(10);
                load_storage();
                drop(write);
                load_modules("network");
                std::process::exit(0);
            }
            drop(write);
            Some(read)
        }
    };
    keep_running(
        |restarts| match &foreign {
            Some(foreign) => run_foreign(foreign),
            None => {
                let ready = reader.as_ref().and_then(|reader| reader.try_clone().ok());
                run_agent(arguments, ready, restarts)
            }
        },
        say,
        || cgroup::kill(Path::new("/pods")),
    )
}

fn run_agent(arguments: &Result<Arguments, String>, ready: Option<OwnedFd>, restarts: u32) -> i32 {
    match arguments {
        Ok(arguments) => serve(arguments.clone(), Scope::Machine, ready, restarts),
        Err(error) => {
            say(error);
            2
        }
    }
}

/// What is the agent's to care for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A whole machine: its clock, its kernel's messages and settings.
    Machine,
    /// Containers alone.
    Containers,
}

/// Serves hosts; the result is an exit code.
pub fn serve(arguments: Arguments, scope: Scope, ready: Option<OwnedFd>, restarts: u32) -> i32 {
    // Containers' directories and processes have it from here, not from whoever started the agent.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Err(error) = log::start(arguments.level, arguments.format, &arguments.log) {
        eprintln!("linkspan-guest: open the log {:?}: {error}", arguments.log);
        return 1;
    }
    let machine = scope == Scope::Machine;
    if machine
        && let Some(pattern) = &arguments.core_pattern
        && let Err(error) = fs::write("/proc/sys/kernel/core_pattern", pattern)
    {
        tracing::error!(%error, pattern, "cannot set the core pattern");
    }
    let options = agent::Options {
        host: arguments.host,
        port: arguments.port,
        use_stdio: arguments.use_stdio,
        disks: arguments.disks,
        cgroup: arguments.cgroup,
        memory: machine.then_some(agent::MemoryShares {
            reserve: arguments.memory_reserve,
            warning: arguments.memory_warning,
        }),
        log: arguments.log,
        kmsg_level: arguments.kmsg_level.filter(|_| machine),
        time_sync: arguments.time_sync && machine,
        ready,
        restarts,
    };
    match agent::run(options) {
        Ok(End::PowerOff) => POWER_OFF,
        Ok(End::Disconnected) => 0,
        Err(error) => {
            tracing::error!(%error, "the agent cannot run");
            1
        }
    }
}

fn run_foreign(foreign: &ForeignAgent) -> i32 {
    let mut command = Command::new(&foreign.path);
    command.args(&foreign.args).env_clear().env("PATH", "/sbin:/usr/sbin:/bin:/usr/bin");
    let error = command.exec();
    say(&format!("cannot run the agent {}: {error}", foreign.path));
    127
}

/// Tells people at the console, and the host, how far the boot has come.
fn say(text: &str) {
    if let Ok(mut console) = fs::File::options().write(true).open("/dev/console") {
        let _ = writeln!(console, "linkspan: {text}");
    }
}

/// Ends what runs, writes what is to last, and switches off.
///
/// # Errors
/// The kernel's refusal.
pub fn power_off() -> io::Result<u8> {
    cgroup::kill(Path::new("/pods"));
    storage::detach();
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF)? {}
}

fn load_storage() {
    // The machine is one or the other; the wrong drivers would only say that they find nothing.
    let hyperv = Path::new("/sys/bus/vmbus").exists()
        || ["VMBUS:00", "MSFT1000:00"]
            .iter()
            .any(|device| Path::new("/sys/bus/acpi/devices").join(device).exists());
    load_modules(if hyperv { "hyperv" } else { "virtio" });
    load_modules("storage");
    // The machine may get persistent memory, and says so once: who comes later is not told again.
    if Path::new("/sys/bus/acpi/devices/ACPI0012:00").exists() {
        load_modules("pmem");
    }
}

fn load_modules(group: &str) {
    modules::load(group).iter().for_each(|problem| say(problem));
}

/// Reads the host's random bytes. Without them the kernel has its own.
fn seed(port: u32) {
    let result = (|| -> io::Result<()> {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let bytes = executor.block_on(async {
            use tokio::io::AsyncReadExt;
            let host = hyperv_socket::Peer::Vsock { cid: 2 };
            let mut bytes = Vec::new();
            let stream = hyperv_socket::connect(&host, port).await?;
            stream.take(64 << 10).read_to_end(&mut bytes).await?;
            io::Result::Ok(bytes)
        })?;
        linkspan_guest_sys::credit_entropy(&bytes)
    })();
    if let Err(error) = result {
        say(&format!("no entropy from the host: {error}"));
    }
}

/// `linkspan.NAME=VALUE` on the kernel's command line.
struct KernelOptions(String);

impl KernelOptions {
    fn read() -> Self {
        Self(fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut words = self.0.split_whitespace();
        words.find_map(|word| word.strip_prefix("linkspan.")?.strip_prefix(name)?.strip_prefix('='))
    }

    /// `linkspan.agent=-loglevel=debug,-port=7`
    fn agent_arguments(&self) -> Vec<String> {
        self.get("agent").into_iter().flat_map(|list| list.split(',')).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_options_are_found_by_whole_name() {
        let options = KernelOptions("quiet linkspan.entropy=1 linkspan.agent=-port=7,-v4".into());
        assert_eq!(options.get("entropy"), Some("1"));
        assert_eq!(options.get("ent"), None);
        assert_eq!(options.agent_arguments(), ["-port=7", "-v4"]);
    }
}
