//! The command line, as containerd writes it: `-name value` flags, then what to do.

use std::path::PathBuf;

use crate::error::Error;

/// For people: containerd never asks.
pub(crate) const HELP: &str = "\
containerd-shim-linkspan-v1 runs containerd's containers in utility VMs.

containerd starts it; put it into containerd's PATH and run

  ctr run --rm --runtime io.containerd.linkspan.v1 IMAGE ID [COMMAND...]

or make it a runtime of Kubernetes in containerd's config.toml:

  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.linkspan]
    runtime_type = \"io.containerd.linkspan.v1\"
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.linkspan.options]
      ConfigPath = \"/etc/linkspan/shim.toml\"

`linkspan doctor` checks this machine for what it needs.

Usage: containerd-shim-linkspan-v1 [FLAGS] start|delete

  -namespace NAME        the containerd namespace of the container
  -id ID                 the container
  -bundle DIR            its bundle, if that is not the current directory
  -address PATH          containerd's socket
  -publish-binary FILE   the program that takes events, where TTRPC_ADDRESS is not set
  -debug                 log more
  -info                  print what this runtime is, as protobuf
  -v                     print the version
";

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// See to a server for a container; containerd's.
    Start,
    /// Be that server; `start` runs it.
    Serve,
    /// Remove what is left of a container; containerd's.
    Delete,
    Info,
    Version,
    Help,
}

/// A read command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) action: Action,
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) bundle: Option<PathBuf>,
    /// containerd's own socket.
    pub(crate) address: String,
    pub(crate) publish_binary: PathBuf,
    /// Where a server is to listen; `start` says it.
    pub(crate) socket: PathBuf,
    pub(crate) debug: bool,
}

impl Arguments {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut read = Self {
            action: Action::Help,
            namespace: String::new(),
            id: String::new(),
            bundle: None,
            address: String::new(),
            publish_binary: PathBuf::new(),
            socket: PathBuf::new(),
            debug: false,
        };
        let mut args = args.into_iter();
        let mut action = None;
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix('-') else {
                action = Some(match arg.as_str() {
                    "start" => Action::Start,
                    "serve" => Action::Serve,
                    "delete" => Action::Delete,
                    other => {
                        let reason = format!("{other:?} is neither start nor delete");
                        return Err(Error::input("action", reason));
                    }
                });
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = || {
                let value = value.clone().or_else(|| args.next());
                value.ok_or_else(|| Error::input("flag", format!("-{name} lacks its value")))
            };
            match name {
                "namespace" => read.namespace = value()?,
                "id" => read.id = value()?,
                "bundle" => read.bundle = Some(value()?.into()),
                "address" => read.address = value()?,
                "publish-binary" => read.publish_binary = value()?.into(),
                "socket" => read.socket = value()?.into(),
                "debug" => read.debug = true,
                "info" => action = Some(Action::Info),
                "v" | "version" => action = Some(Action::Version),
                "h" | "help" => action = Some(Action::Help),
                other => return Err(Error::input("flag", format!("-{other} is not known"))),
            }
        }
        read.action = action.unwrap_or(Action::Help);
        let asked_by_containerd =
            matches!(read.action, Action::Start | Action::Serve | Action::Delete);
        if asked_by_containerd {
            for (field, value) in [("-namespace", &read.namespace), ("-id", &read.id)] {
                // Both become parts of paths.
                if value.is_empty() || value.contains('/') || value.starts_with('.') {
                    let reason = format!("{value:?} is not a name that containerd gives");
                    return Err(Error::input(field, reason));
                }
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, Error> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_command_lines_are_read_with_one_dash_or_two() {
        let line = "-namespace ns -address /c.sock -publish-binary /c -id x -debug start";
        let read = parse(line).unwrap();
        assert_eq!((read.action, read.debug), (Action::Start, true));
        assert_eq!((read.namespace.as_str(), read.id.as_str()), ("ns", "x"));
        assert_eq!(parse(&line.replace('-', "--").replace("--b", "-b")).unwrap(), read);
        let deleted = parse("-namespace=ns -id=x -bundle /b delete").unwrap();
        assert_eq!(deleted.bundle, Some("/b".into()));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (line, named) in [
            ("-id x -namespace n stop", "\"stop\""),
            ("-id x start", "-namespace"),
            ("-id ../x -namespace n start", "../x"),
            ("-what x start", "-what"),
            ("-namespace n -id", "-id lacks"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
