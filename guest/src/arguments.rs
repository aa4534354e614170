//! The command line, in the syntax of the agent that this one replaces: one dash or two,
//! `-name value` or `-name=value`, a boolean's value only behind `=`.
//!
//! All of that agent's flags are taken, so that the same image scripts work.

use std::path::PathBuf;

use hyperv_socket::Peer;
use linkspan_protocol::port;
use tracing::Level;

use crate::log::{Format, Target};

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Arguments {
    /// Where the host is.
    pub host: Peer,
    /// Its port for the bridge.
    pub port: u32,
    /// Serve the bridge on standard input and output.
    pub use_stdio: bool,
    /// How much to log.
    pub level: Level,
    /// In which form.
    pub format: Format,
    /// Whereto.
    pub log: Target,
    /// Kernel messages of this priority or a graver one (0 to 7) are logged.
    pub kmsg_level: Option<u8>,
    /// Follow the hypervisor's clock.
    pub time_sync: bool,
    /// Memory in bytes that containers may not have.
    pub memory_reserve: u64,
    /// Memory in bytes of the agent's own cgroup above which it warns.
    pub memory_warning: u64,
    /// Links to disks, in place of sysfs.
    pub disks: Option<PathBuf>,
    /// Prefix of all containers' cgroups.
    pub cgroup: PathBuf,
    /// Loopback only: belongs to this run, holds `disks/`, and is removed at its end.
    pub directory: Option<PathBuf>,
    /// Written to the kernel's `core_pattern`.
    pub core_pattern: Option<String>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            host: Peer::Vsock { cid: 2 },
            port: port::BRIDGE,
            use_stdio: false,
            level: Level::WARN,
            format: Format::Json,
            log: Target::Stderr,
            kmsg_level: Some(4),
            time_sync: true,
            memory_reserve: 75 << 20,
            memory_warning: 50 << 20,
            disks: None,
            cgroup: "/pods".into(),
            directory: None,
            core_pattern: None,
        }
    }
}

/// What `-help` prints.
pub const HELP: &str = "\
The guest agent of a utility VM.

Usage: linkspan-guest [FLAGS]             serve a host's bridge
       linkspan-guest loopback [FLAGS]    the same, in namespaces of its own
       (as pid 1)                         set a utility VM up, then serve

Flags:
  -host PEER           where the host is: vsock:CID, or hybrid:PATH for Unix
                       sockets at PATH_PORT                      [vsock:2]
  -port N              its port for the bridge               [1073741824]
  -use-inouterr        serve the bridge on standard input and output
  -loglevel LEVEL      error, warning, info, debug or trace     [warning]
  -disks DIR           find disks as DIR/CONTROLLER_LUN, not in sysfs
  -cgroup PATH         where containers' cgroups are made         [/pods]
  -directory DIR       loopback: holds disks/, and is removed at the end
  -core-dump-location PATTERN
                       the kernel's core_pattern
  -log-format FORM     json or text                                [json]
  -logfile PATH        log to this file, not to standard error
  -log-port N          log to this port of the host
  -kmsgLogLevel N      log the kernel's messages up to this priority  [4]
  -disable-time-sync   leave the clock alone
  -root-mem-reserve-bytes N
                       memory that containers cannot have      [78643200]
  -gcs-mem-limit-bytes N
                       warn when the agent has more than this  [52428800]
  -help, -version

Called as `gcs`, it has the defaults of the agent that it replaces: -loglevel
debug -log-format text. That agent's other flags are taken as well: -v4 (there
is no other version) and -scrub-logs (what containers are given as environment
and annotations is never logged).

Called as `vsockexec [-r] [-i PORT] [-o PORT] [-e PORT] PROGRAM [ARGS]`, it runs
a program with standard streams on the host's ports; -r outlives a lost host.
";

impl Arguments {
    /// The defaults of a program called `gcs`.
    pub fn of_gcs() -> Self {
        Self { level: Level::DEBUG, format: Format::Text, ..Self::default() }
    }

    /// Reads the flags.
    ///
    /// # Errors
    /// Says which flag is wrong, and what would be right.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        Self::default().with(args)
    }

    /// Reads the flags; what they do not say stays as it is.
    ///
    /// # Errors
    /// Says which flag is wrong, and what would be right.
    pub fn with(self, args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = self;
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let flag = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'));
            let flag = flag.filter(|flag| !flag.is_empty());
            let flag = flag.ok_or_else(|| format!("{arg:?} is not a flag; see -help"))?;
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = || {
                let value = given.clone().or_else(|| args.next());
                value.ok_or_else(|| format!("-{name} needs a value"))
            };
            match name {
                "host" => {
                    let text = value()?;
                    parsed.host =
                        text.parse().map_err(|error| format!("-host {text:?}: {error}"))?;
                }
                "port" => parsed.port = number(name, &value()?)?,
                "use-inouterr" => parsed.use_stdio = boolean(name, given.as_deref())?,
                "loglevel" => parsed.level = level(&value()?)?,
                "disks" => parsed.disks = Some(value()?.into()),
                "cgroup" => parsed.cgroup = value()?.into(),
                "directory" => {
                    let directory = PathBuf::from(value()?);
                    parsed.disks.get_or_insert(directory.join("disks"));
                    parsed.directory = Some(directory);
                }
                "core-dump-location" => {
                    parsed.core_pattern = Some(value()?).filter(|pattern| !pattern.is_empty());
                }
                "log-format" => parsed.format = value()?.parse()?,
                "logfile" => {
                    let path = value()?;
                    parsed.log = match path.is_empty() {
                        true => Target::Stderr,
                        false => Target::File(path.into()),
                    };
                }
                "log-port" => parsed.log = Target::Port(number(name, &value()?)?),
                "kmsgLogLevel" => {
                    let level: i64 = number(name, &value()?)?;
                    parsed.kmsg_level = u8::try_from(level.min(7)).ok();
                }
                "disable-time-sync" => parsed.time_sync = !boolean(name, given.as_deref())?,
                "root-mem-reserve-bytes" => parsed.memory_reserve = number(name, &value()?)?,
                "gcs-mem-limit-bytes" => parsed.memory_warning = number(name, &value()?)?,
                "initial-policy-stance" => match value()?.as_str() {
                    "allow" => {}
                    // To start all the same would be to allow what was to be denied.
                    "deny" => {
                        return Err("-initial-policy-stance deny: confidential policies are not \
                                    supported"
                            .to_owned());
                    }
                    other => {
                        return Err(format!(
                            "-initial-policy-stance {other:?} is not allow or deny"
                        ));
                    }
                },
                "v4" | "scrub-logs" => drop(boolean(name, given.as_deref())?),
                other => return Err(format!("-{other} is not known; see -help")),
            }
        }
        Ok(parsed)
    }
}

fn number<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: &str,
) -> Result<T, String> {
    text.parse().map_err(|error| format!("-{name} {text:?}: {error}"))
}

/// A boolean's value comes behind `=` or not at all.
fn boolean(name: &str, given: Option<&str>) -> Result<bool, String> {
    match given {
        None => Ok(true),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("-{name}={other} is neither true nor false")),
    }
}

fn level(name: &str) -> Result<Level, String> {
    match name {
        "panic" | "fatal" | "error" => Ok(Level::ERROR),
        "warn" | "warning" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        other => Err(format!("-loglevel {other:?} is not error, warning, info, debug or trace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_lines_that_hosts_use_are_taken() {
        let parsed = parse(
            "-v4 -log-format json -loglevel debug -disable-time-sync -scrub-logs=true \
             --core-dump-location /run/core.%p",
        )
        .unwrap();
        assert_eq!(parsed.level, Level::DEBUG);
        assert_eq!(parsed.core_pattern.as_deref(), Some("/run/core.%p"));
        assert!(!parsed.use_stdio && parsed.port == 0x4000_0000);
        assert!(parse("-use-inouterr").unwrap().use_stdio);
        assert!(!parse("-use-inouterr=false").unwrap().use_stdio);
        assert!(!parsed.time_sync && parsed.log == Target::Stderr);
        let parsed = Arguments::of_gcs().with([]).unwrap();
        assert_eq!((parsed.level, parsed.format), (Level::DEBUG, Format::Text));
        assert_eq!(parse("-kmsgLogLevel -1").unwrap().kmsg_level, None);
    }

    #[test]
    fn a_wrong_flag_is_named() {
        for (line, named) in [
            ("-bogus", "-bogus"),
            ("-loglevel loud", "loud"),
            ("-port", "-port needs"),
            ("-port x", "\"x\""),
            ("-v4=maybe", "maybe"),
            ("-log-format xml", "xml"),
            ("-initial-policy-stance deny", "deny"),
            ("-gcs-mem-limit-bytes much", "much"),
            ("word", "word"),
        ] {
            assert!(parse(line).unwrap_err().contains(named), "{line}");
        }
    }
}
