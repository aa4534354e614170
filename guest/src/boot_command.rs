//! What the kernel's command line has for the first process: `-e 1 [-w] [-d SHELL] PROGRAM ...`.
//!
//! Hosts name the agent and its log there: `/bin/vsockexec -e 109 /bin/gcs -v4 ...`. Where both
//! are this very program, no other has to be run for it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::vsock_exec::VsockExec;

/// Those of the first process's arguments that were written for it: the kernel puts in front of
/// them what it does not know of its own `command_line`, such as `nokaslr`.
pub(crate) fn meant_for_init(mut args: Vec<String>, command_line: &str) -> Vec<String> {
    let first = match words(command_line).skip_while(|&word| word != "--").count() {
        0 => args.iter().position(|arg| arg.starts_with('-')).unwrap_or(args.len()),
        with_dashes => args.len().saturating_sub(with_dashes - 1),
    };
    args.drain(..first);
    args
}

/// The words of a kernel command line, where double quotes keep spaces together.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let separator = move |c: char| {
        quoted ^= c == '"';
        c.is_whitespace() && !quoted
    };
    line.split(separator).filter(|word| !word.is_empty())
}

/// The first process's arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BootCommand {
    /// The host's port for entropy.
    pub(crate) entropy_port: Option<u32>,
    /// `/etc` and `/var` are to be writable.
    pub(crate) writable: bool,
    /// A shell to run beside the program; with it the machine ends.
    pub(crate) shell: Option<String>,
    /// The program to run, and its arguments; none for our own way.
    pub(crate) command: Vec<String>,
}

impl BootCommand {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut args = args.into_iter().peekable();
        while let Some(arg) = args.next_if(|arg| arg.starts_with('-') && arg.len() > 1) {
            if arg == "--" {
                break;
            }
            let (flag, rest) = arg.split_at(2);
            let mut value = || {
                let given = Some(rest.to_owned()).filter(|rest| !rest.is_empty());
                given.or_else(|| args.next()).ok_or(format!("{flag} needs a value"))
            };
            match flag {
                "-w" if rest.is_empty() => parsed.writable = true,
                "-d" => parsed.shell = Some(value()?),
                "-e" => {
                    let text = value()?;
                    let port = text.parse().ok().filter(|&port| port != 0);
                    parsed.entropy_port =
                        Some(port.ok_or_else(|| format!("invalid entropy port {text:?}"))?);
                }
                _ => return Err(format!("{arg} is not known")),
            }
        }
        parsed.command = args.collect();
        Ok(parsed)
    }

    /// The agent's flags, if the program is ours.
    pub(crate) fn own_agent(&self) -> Option<Vec<String>> {
        self.own_agent_if(is_ours)
    }

    fn own_agent_if(&self, is_ours: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let (program, args) = self.command.split_first()?;
        let named = |program: &str, name: &str| {
            Path::new(program).file_name().is_some_and(|file| file == name) && is_ours(program)
        };
        if named(program, "gcs") {
            return Some(args.to_vec());
        }
        if !named(program, "vsockexec") {
            return None;
        }
        let VsockExec { ports, command, .. } = VsockExec::parse(args.iter().cloned()).ok()?;
        let (program, args) = command.split_first()?;
        if !named(program, "gcs") {
            return None;
        }
        let mut flags = args.to_vec();
        // The agent's own log outlives connections, with -r and without.
        flags.extend(ports[2].map(|port| format!("-log-port={port}")));
        Some(flags)
    }
}

/// Whether a program is missing, or this very one.
fn is_ours(program: &str) -> bool {
    let identity = |path: &str| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let theirs = identity(program);
    theirs.is_none() || theirs == identity("/proc/self/exe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<BootCommand, String> {
        BootCommand::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_lines_that_hosts_use_lead_to_our_agent() {
        let parsed = parse("-e 1 -w /bin/vsockexec -r -e 109 /bin/gcs -v4 -loglevel info").unwrap();
        assert!(parsed.entropy_port == Some(1) && parsed.writable);
        let flags = parsed.own_agent_if(|_| true).unwrap();
        assert_eq!(flags, ["-v4", "-loglevel", "info", "-log-port=109"]);
        assert_eq!(parse("-e1 /bin/gcs -v4").unwrap().own_agent_if(|_| true).unwrap(), ["-v4"]);
        let foreign = |program: &str| program != "/bin/gcs";
        assert_eq!(parsed.own_agent_if(foreign), None);
        assert_eq!(parse("-e 1 sh -c x").unwrap().own_agent_if(|_| true), None);
        assert_eq!(parse("").unwrap(), BootCommand::default());
    }

    #[test]
    fn what_the_kernel_did_not_know_is_not_taken_for_a_program() {
        for (given, line, meant) in [
            ("nokaslr -e 1 /bin/gcs", "quiet nokaslr -- -e 1 /bin/gcs", "-e 1 /bin/gcs"),
            ("nokaslr /bin/gcs", "nokaslr a=b -- /bin/gcs\n", "/bin/gcs"),
            ("nokaslr", "quiet nokaslr", ""),
            ("nokaslr", "nokaslr --", ""),
            ("nokaslr -e 1 x", "nokaslr -e 1 x", "-e 1 x"),
            ("x -- y", "x -- -- y", "-- y"),
            ("x", "a=\"b -- c\" -- x", "x"),
            ("x", "-- x y z", "x"),
        ] {
            let given = given.split_whitespace().map(str::to_owned).collect();
            assert_eq!(meant_for_init(given, line).join(" "), meant, "{line}");
        }
    }

    #[test]
    fn a_wrong_option_is_named() {
        for (line, says) in [
            ("-e 0 x", "invalid entropy port"),
            ("-e port x", "invalid entropy port"),
            ("-e", "-e needs"),
            ("-x y", "-x"),
        ] {
            assert!(parse(line).unwrap_err().contains(says), "{line}");
        }
    }
}
