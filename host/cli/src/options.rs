//! Options that several subcommands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum, value_parser};
use linkspan_host::{Accel, Backend, Builder, ProcessSpec, UtilityVm, boot_image};
use linkspan_image::ProcessDefaults;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error};
use crate::{signals, terminal};

/// Options of every subcommand.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Print JSON, errors included
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// Show no progress
    #[arg(short, long, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Say on stderr what is being done; twice for more, three times for all
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Output")]
    pub(crate) verbose: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Vmm {
    /// A virtual machine under QEMU
    #[default]
    Qemu,
    /// No machine: the guest agent in namespaces of this kernel; takes root
    Loopback,
}

impl From<Vmm> for Backend {
    fn from(vmm: Vmm) -> Self {
        match vmm {
            Vmm::Qemu => Self::Qemu,
            Vmm::Loopback => Self::Loopback,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Acceleration {
    /// KVM where it works, else TCG
    #[default]
    Auto,
    /// The processor's virtualisation
    Kvm,
    /// QEMU's own translator: slow, works everywhere
    Tcg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

/// What a utility VM is to be like.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[command(next_help_heading = "Utility VM")]
pub(crate) struct VmOptions {
    /// Directory with the boot image: vmlinux or vmlinuz, initrd, agent
    #[arg(long, env = "LINKSPAN_IMAGE", value_name = "DIR")]
    pub(crate) image: Option<PathBuf>,
    /// Memory in MiB
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = value_parser!(u32).range(1..))]
    pub(crate) memory_mib: u32,
    /// How many layers may lie in its memory as persistent memory, in place of disks; those of a
    /// multiple of 2 MiB do, and those that are made for it
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u32).range(..=128))]
    #[serde(default)]
    pub(crate) pmem: u32,
    /// How many directories of this host its containers may have at a time; `run` without --uvm
    /// sees to it by itself
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u32).range(..=16))]
    #[serde(default)]
    pub(crate) shares: u32,
    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u32).range(1..))]
    pub(crate) cpus: u32,
    /// How the machine's instructions are run
    #[arg(long, value_enum, default_value_t)]
    pub(crate) accel: Acceleration,
    /// What runs the machine
    #[arg(long, value_enum, default_value_t)]
    pub(crate) vmm: Vmm,
    /// How long the guest agent has for its first answer, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = value_parser!(u32).range(1..))]
    pub(crate) boot_timeout: u32,
    /// How much the guest agent logs
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// Add a word to the kernel's command line
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) kernel_arg: Vec<String>,
    /// The QEMU program, in place of qemu-system-x86_64 in PATH
    #[arg(long, value_name = "FILE", env = "LINKSPAN_QEMU")]
    pub(crate) qemu: Option<PathBuf>,
    /// Add an argument to QEMU's command line
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) qemu_arg: Vec<String>,
}

impl VmOptions {
    /// Finds the boot image and makes every path absolute, so that another process with another
    /// directory and environment reads the same from it.
    pub(crate) fn resolve(mut self) -> Result<Self, Error> {
        if self.vmm == Vmm::Loopback && self.pmem > 0 {
            let reason = "is of QEMU's machines; --vmm loopback has no memory of its own";
            return Err(Error::input("--pmem", reason));
        }
        let image = boot_image::find(self.image.as_deref(), self.vmm.into())?;
        self.image = Some(absolute(image)?);
        Ok(self)
    }

    /// The machine, from resolved options.
    pub(crate) fn builder(&self, name: &str) -> Builder {
        let mut builder = UtilityVm::builder(name)
            .backend(self.vmm.into())
            .memory_mib(self.memory_mib)
            .cpus(self.cpus)
            .pmem(self.pmem)
            .shares(self.shares)
            .accel(match self.accel {
                Acceleration::Auto => Accel::Auto,
                Acceleration::Kvm => Accel::Kvm,
                Acceleration::Tcg => Accel::Tcg,
            })
            .boot_timeout(Duration::from_secs(self.boot_timeout.into()));
        if let Some(image) = &self.image {
            builder = builder.image(image);
        }
        if let Some(level) = self.log_level {
            builder = builder.log_level(match level {
                LogLevel::Error => "error",
                LogLevel::Warning => "warning",
                LogLevel::Info => "info",
                LogLevel::Debug => "debug",
                LogLevel::Trace => "trace",
            });
        }
        if let Some(qemu) = &self.qemu {
            builder = builder.qemu(qemu);
        }
        let builder = self.kernel_arg.iter().fold(builder, Builder::kernel_arg);
        self.qemu_arg.iter().fold(builder, Builder::qemu_arg)
    }
}

/// A directory of this host in a container: `HOST:GUEST`, and `:ro` behind it for one that the
/// container cannot change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Volume {
    /// Absolute.
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

impl std::str::FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, read_only) = match text.rsplit_once(':') {
            Some((rest, "ro")) => (rest, true),
            Some((rest, "rw")) => (rest, false),
            _ => (text, false),
        };
        let form = || format!("{text:?} is not of the form HOST:GUEST[:ro]");
        let (source, target) = rest.rsplit_once(':').ok_or_else(form)?;
        if source.is_empty() {
            return Err(form());
        }
        if !target.starts_with('/') || target.trim_matches('/').is_empty() {
            return Err(format!("{target:?} is not an absolute path below the container's root"));
        }
        let source = std::path::absolute(source).map_err(|error| format!("{source}: {error}"))?;
        match std::fs::metadata(&source) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(format!("{} is no directory", source.display())),
            Err(error) => return Err(format!("{}: {error}", source.display())),
        }
        Ok(Self { source, target: target.to_owned(), read_only })
    }
}

/// A process and its standard streams.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Process")]
pub(crate) struct ProcessOptions {
    /// Connect stdin
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable of its environment; K alone takes this environment's value
    #[arg(short, long, value_name = "K=V")]
    pub(crate) env: Vec<String>,
    /// Who it runs as: USER, UID, USER:GROUP, UID:GID
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Where it starts [default: /, or what the image says]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
}

/// As [`ProcessSpec`], in a form that goes to a monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) user: Option<String>,
    pub(crate) terminal: Option<(u16, u16)>,
    pub(crate) stdin: bool,
}

impl ProcessOptions {
    /// The process, checked as far as this side can.
    pub(crate) fn process(&self, command: &[String]) -> Result<Process, Error> {
        self.process_of(&ProcessDefaults::default(), None, command)
    }

    /// The process of an image, where the options and the command do not say otherwise.
    pub(crate) fn process_of(
        &self,
        image: &ProcessDefaults,
        entrypoint: Option<&str>,
        command: &[String],
    ) -> Result<Process, Error> {
        let args = image.arguments(entrypoint, command);
        if args.first().is_none_or(String::is_empty) {
            let reason = "is missing: name the program to run after ROOTFS, IMAGE or CONTAINER";
            return Err(Error::input("CMD", reason));
        }
        let of_image = Some(&image.working_dir).filter(|directory| !directory.is_empty());
        let cwd = self.workdir.as_ref().or(of_image).map_or("/", String::as_str);
        if !cwd.starts_with('/') {
            let reason = format!("{cwd:?} is not an absolute path");
            return Err(Error::input("--workdir", reason));
        }
        if self.user.as_deref() == Some("") {
            return Err(Error::input("--user", "is empty; name a user or a number"));
        }
        let mut env: Vec<(String, String)> = image.environment().collect();
        for text in &self.env {
            if let Some((name, value)) = variable(text, |name| std::env::var(name).ok())? {
                env.retain(|(other, _)| *other != name);
                env.push((name, value));
            }
        }
        let user = Some(image.user.clone()).filter(|user| !user.is_empty());
        Ok(Process {
            args,
            env,
            cwd: cwd.to_owned(),
            user: self.user.clone().or(user),
            terminal: self.tty.then(|| terminal::size().unwrap_or((24, 80))),
            stdin: self.interactive,
        })
    }
}

impl Process {
    pub(crate) fn spec(&self) -> ProcessSpec {
        let mut spec = ProcessSpec::new(&self.args);
        spec.env.clone_from(&self.env);
        spec.cwd.clone_from(&self.cwd);
        spec.user.clone_from(&self.user);
        spec.terminal = self.terminal;
        spec
    }

    pub(crate) fn stdio(&self) -> linkspan_host::Stdio {
        linkspan_host::Stdio { stdin: self.stdin, stdout: true, stderr: self.terminal.is_none() }
    }
}

/// Reads `K=V`, or `K` with a value that `outer` knows. A `K` that it does not know is left out.
fn variable(
    text: &str,
    outer: impl Fn(&str) -> Option<String>,
) -> Result<Option<(String, String)>, Error> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, outer(text)),
    };
    if name.is_empty() || name.contains('\0') {
        return Err(Error::input("--env", format!("{text:?} is not of the form NAME=VALUE")));
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// A path that means the same in another directory.
pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).context(|| format!("find {}", path.display()))
}

/// For clap: a signal.
pub(crate) fn signal(text: &str) -> Result<i32, String> {
    signals::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_divided_at_its_first_equals_sign() {
        let read = |text| variable(text, |_| None).unwrap().unwrap();
        assert_eq!(read("A=x=y"), ("A".into(), "x=y".into()));
        assert_eq!(read("A="), ("A".into(), String::new()));
    }

    #[test]
    fn a_variable_without_a_value_takes_the_one_from_outside_if_there_is_one() {
        let outer = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        assert_eq!(variable("HOME", outer).unwrap(), Some(("HOME".into(), "/root".into())));
        assert_eq!(variable("OTHER", outer).unwrap(), None);
    }

    #[test]
    fn a_volume_is_a_directory_here_and_an_absolute_path_there() {
        let read = |text: &str| text.parse::<Volume>();
        let volume = |source: &str, target: &str, read_only| {
            Ok(Volume { source: source.into(), target: target.into(), read_only })
        };
        assert_eq!(read("/tmp:/data"), volume("/tmp", "/data", false));
        assert_eq!(read("/tmp:/data:ro"), volume("/tmp", "/data", true));
        assert_eq!(read("/tmp:/data:rw"), volume("/tmp", "/data", false));
        for (text, part) in [
            ("/tmp", "HOST:GUEST"),
            (":/data", "HOST:GUEST"),
            ("/tmp:data", "\"data\" is not an absolute"),
            ("/tmp:/", "\"/\" is not an absolute"),
            ("/tmp:ro", "HOST:GUEST"),
            ("/dev/null:/x", "/dev/null is no directory"),
            ("/no/where:/x:ro", "/no/where: No such"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_variable_without_a_name_is_refused_and_told() {
        for text in ["", "=x"] {
            let error = variable(text, |_| None).unwrap_err().to_string();
            assert!(error.starts_with("--env") && error.contains(text), "{error}");
        }
    }
}
