//! The first process of a utility VM.
//!
//! ```text
//! mounts ─> vsock modules ─> agent starts and dials ─┐
//!                     └─> storage modules ─> ready ─ ┴─> storage requests are served
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};

use crate::agent::{self, End};
use crate::arguments::Arguments;
use crate::supervisor::{POWER_OFF, keep_running};
use crate::{cgroup, log, modules};

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

/// Sets the machine up and keeps an agent running. Returns only if that is impossible.
///
/// # Errors
/// What cannot be done without: mounts, the first fork.
pub fn run() -> io::Result<()> {
    mount_all()?;
    crate::name_process(c"linkspan-init");
    say("phase=init");
    let options = KernelOptions::read();
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1 << 20)?;
    let _ = linkspan_guest_sys::bring_up("lo");
    cgroup::delegate();
    load_modules("vsock");
    if options.get("entropy").is_some() {
        seed();
    }
    say("phase=agent");
    let (ready_read, ready_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let rest = std::cell::Cell::new(Some((ready_read, ready_write)));
    let foreign =
        fs::read_to_string(FOREIGN_AGENT).ok().and_then(|text| ForeignAgent::parse(&text));
    let arguments = options.agent_arguments();
    let ended = keep_running_with_modules(foreign, &arguments, rest);
    if let Err(error) = &ended {
        say(&format!("cannot go on: {error}"));
    }
    power_off()
}

fn keep_running_with_modules(
    foreign: Option<ForeignAgent>,
    arguments: &[String],
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

fn run_agent(arguments: &[String], ready: Option<OwnedFd>, restarts: u32) -> i32 {
    let arguments = match Arguments::parse(arguments.iter().cloned()) {
        Ok(arguments) => arguments,
        Err(error) => {
            say(&error);
            return 2;
        }
    };
    log::start(arguments.level);
    serve(arguments, ready, restarts)
}

/// Serves hosts; the result is an exit code.
pub fn serve(arguments: Arguments, ready: Option<OwnedFd>, restarts: u32) -> i32 {
    if let Some(pattern) = &arguments.core_pattern
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
        ready,
        restarts,
    };
    match agent::run(options) {
        Ok(End::PowerOff) => POWER_OFF,
        Err(error) => {
            tracing::error!(%error, "the agent cannot run");
            1
        }
    }
}

fn run_foreign(foreign: &ForeignAgent) -> i32 {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(&foreign.path);
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

fn power_off() -> io::Result<()> {
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF)? {}
}

fn mount_all() -> io::Result<()> {
    // An initramfs cannot be pivoted away from; a bind mount of it can, and containers want to.
    let same = Some("/");
    fs::create_dir_all("/run")?;
    mount(same, "/run", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    std::env::set_current_dir("/run")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;

    let (nodev, nosuid, noexec) = (MsFlags::MS_NODEV, MsFlags::MS_NOSUID, MsFlags::MS_NOEXEC);
    let all = nodev | nosuid | noexec;
    for (kind, target, flags, data) in [
        ("devtmpfs", "/dev", nosuid | noexec, ""),
        ("proc", "/proc", all, ""),
        ("sysfs", "/sys", all, ""),
        ("tmpfs", "/run", nodev | nosuid, "mode=0755"),
        ("tmpfs", "/tmp", nodev | nosuid, "mode=1777"),
        ("tmpfs", "/dev/shm", all, ""),
        ("devpts", "/dev/pts", nosuid | noexec, "ptmxmode=0666,mode=0620,gid=5"),
        ("cgroup2", "/sys/fs/cgroup", all, ""),
    ] {
        match fs::create_dir_all(target) {
            Err(error) if kind != "cgroup2" => return Err(error),
            _ => {}
        }
        match mount(Some(kind), target, Some(kind), flags, Some(data)) {
            Err(Errno::EBUSY) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn load_storage() {
    // The machine is one or the other; the wrong drivers would only say that they find nothing.
    let hyperv = Path::new("/sys/bus/vmbus").exists()
        || ["VMBUS:00", "MSFT1000:00"]
            .iter()
            .any(|device| Path::new("/sys/bus/acpi/devices").join(device).exists());
    load_modules(if hyperv { "hyperv" } else { "virtio" });
    load_modules("storage");
}

fn load_modules(group: &str) {
    modules::load(group).iter().for_each(|problem| say(problem));
}

/// Reads the host's random bytes. Without them the kernel has its own.
fn seed() {
    let result = (|| -> io::Result<()> {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let bytes = executor.block_on(async {
            use tokio::io::AsyncReadExt;
            let host = hyperv_socket::Peer::Vsock { cid: 2 };
            let port = linkspan_protocol::port::ENTROPY;
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
