//! The command line, in the syntax of the agent that this one replaces: one dash or two,
//! `-name value` or `-name=value`, a boolean's value only behind `=`.
//!
//! All of that agent's flags are taken, so that the same image scripts work; what has no meaning
//! here is taken and does nothing.

use std::path::PathBuf;

use hyperv_socket::Peer;
use linkspan_protocol::port;
use tracing::Level;

/// What the command line says.
#[derive(Debug)]
pub struct Arguments {
    /// Where the host is.
    pub host: Peer,
    /// Its port for the bridge.
    pub port: u32,
    /// Serve the bridge on standard input and output.
    pub use_stdio: bool,
    /// How much to log.
    pub level: Level,
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
  -help, -version

Flags of the agent that this one replaces are taken and have no effect where
they are not listed here: -v4, -log-format, -logfile, -kmsgLogLevel,
-root-mem-reserve-bytes, -gcs-mem-limit-bytes, -disable-time-sync, -scrub-logs,
-initial-policy-stance.
";

/// Flags without effect, and whether they are booleans.
const IGNORED: [(&str, bool); 9] = [
    ("v4", true),
    ("disable-time-sync", true),
    ("scrub-logs", true),
    ("log-format", false),
    ("logfile", false),
    ("kmsgLogLevel", false),
    ("root-mem-reserve-bytes", false),
    ("gcs-mem-limit-bytes", false),
    ("initial-policy-stance", false),
];

impl Arguments {
    /// Reads the flags.
    ///
    /// # Errors
    /// Says which flag is wrong, and what would be right.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
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
                "port" => {
                    let text = value()?;
                    parsed.port =
                        text.parse().map_err(|error| format!("-port {text:?}: {error}"))?;
                }
                "use-inouterr" => parsed.use_stdio = given.as_deref() != Some("false"),
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
                other => match IGNORED.iter().find(|(name, _)| *name == other) {
                    Some((_, true)) => {}
                    Some((_, false)) => drop(value()?),
                    None => return Err(format!("-{other} is not known; see -help")),
                },
            }
        }
        Ok(parsed)
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
    }

    #[test]
    fn a_wrong_flag_is_named() {
        for (line, named) in [
            ("-bogus", "-bogus"),
            ("-loglevel loud", "loud"),
            ("-port", "-port needs"),
            ("-port x", "\"x\""),
            ("word", "word"),
        ] {
            assert!(parse(line).unwrap_err().contains(named), "{line}");
        }
    }
}
