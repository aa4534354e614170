//! `vsockexec`: a program whose standard streams are ports of the host.
//!
//! Without `-r` the connections take the place of the streams and the program that of this
//! process. With it this process stays, and carries what the program writes to the host across any
//! number of lost connections.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use hyperv_socket::Peer;

/// What a command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VsockExec {
    /// Stay, and outlive lost connections.
    pub relay: bool,
    /// Ports for stdin, stdout and stderr.
    pub ports: [Option<u32>; 3],
    /// The program and its arguments.
    pub command: Vec<String>,
}

impl VsockExec {
    /// Reads the arguments behind the program's own name.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let which = match arg.as_str() {
                "-r" => {
                    parsed.relay = true;
                    continue;
                }
                "--" => break,
                _ => ["-i", "-o", "-e"].iter().position(|flag| arg.starts_with(flag)),
            };
            let Some(which) = which else {
                if arg.starts_with('-') {
                    return Err(format!("{arg} is not known"));
                }
                parsed.command.push(arg);
                break;
            };
            let value = Some(arg[2..].to_owned()).filter(|value| !value.is_empty());
            let value = value.or_else(|| args.next()).ok_or(format!("{arg} needs a port"))?;
            let port = value.parse().map_err(|error| format!("{arg} {value:?}: {error}"))?;
            parsed.ports[which] = Some(port);
        }
        parsed.command.extend(args);
        match parsed.command.is_empty() {
            true => Err("missing program argument".to_owned()),
            false if parsed.relay && parsed.ports[1].or(parsed.ports[2]).is_none() => {
                Err("-r requires -o or -e".to_owned())
            }
            false => Ok(parsed),
        }
    }

    /// Runs the program.
    ///
    /// # Errors
    /// What to say before the exit with code 1.
    pub fn run(self, host: &Peer) -> Result<ExitCode, String> {
        let (program, args) = self.command.split_first().ok_or("missing program argument")?;
        let mut command = Command::new(program);
        command.args(args);
        match self.relay {
            false => self.replace(host, command),
            true => self.stay(host, command),
        }
    }

    fn replace(&self, host: &Peer, mut command: Command) -> Result<ExitCode, String> {
        let mut made: Vec<(u32, OwnedFd)> = Vec::new();
        for (standard, port) in self.ports.iter().enumerate() {
            let Some(port) = *port else { continue };
            let connection = match made.iter().find(|(known, _)| *known == port) {
                Some((_, connection)) => connection,
                None => {
                    let fresh = connect(host, port);
                    let fresh = fresh.map_err(|error| format!("connect: port {port}: {error}"))?;
                    made.push((port, fresh));
                    &made.last().expect("just pushed").1
                }
            };
            let stream = connection.try_clone().map_err(|error| error.to_string())?;
            match standard {
                0 => command.stdin(Stdio::from(stream)),
                1 => command.stdout(Stdio::from(stream)),
                _ => command.stderr(Stdio::from(stream)),
            };
        }
        drop(made);
        let error = command.exec();
        Err(format!("run {:?}: {error}", command.get_program()))
    }

    fn stay(&self, host: &Peer, mut command: Command) -> Result<ExitCode, String> {
        let [_, output, error] = self.ports;
        let port = error.or(output).ok_or("-r requires -o or -e")?;
        let (mut read, write) = io::pipe().map_err(|error| format!("make a pipe: {error}"))?;
        let end = || write.try_clone().map_err(|error| error.to_string());
        if output.is_some() {
            command.stdout(end()?);
        }
        if error.is_some() {
            command.stderr(end()?);
        }
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                eprintln!("vsockexec: run {:?}: {error}", command.get_program());
                return Ok(ExitCode::from(127));
            }
        };
        // The program alone is to hold the pipe open.
        drop((command, write));
        carry(&mut read, || connect(host, port).ok().map(UnixStream::from));
        let status = child.wait().map_err(|error| format!("wait: {error}"))?;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(ExitCode::from(code as u8))
    }
}

/// How long to wait between two attempts to reach the host. Nobody says when it is back.
const PAUSE: Duration = Duration::from_millis(100);

/// Carries bytes to one connection after another until there are none.
fn carry(from: &mut impl Read, dial: impl Fn() -> Option<UnixStream>) {
    let mut buffer = vec![0; 64 << 10];
    let mut connection: Option<UnixStream> = None;
    loop {
        // The connection comes first: what is not read yet is safe with the pipe.
        if connection.is_none() {
            connection = dial();
            if connection.is_none() {
                std::thread::sleep(PAUSE);
            }
            continue;
        }
        let len = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            let Some(to) = &mut connection else {
                std::thread::sleep(PAUSE);
                connection = dial();
                continue;
            };
            match to.write(rest) {
                Ok(written @ 1..) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => connection = None,
            }
        }
    }
    if let Some(connection) = connection {
        let _ = connection.shutdown(Shutdown::Write);
    }
}

/// One connection, as a descriptor that blocks. A socket of any family reads and writes alike.
fn connect(host: &Peer, port: u32) -> io::Result<OwnedFd> {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = executor.block_on(hyperv_socket::connect(host, port))?.into_fd();
    rustix::io::ioctl_fionbio(stream.as_fd(), false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<VsockExec, String> {
        VsockExec::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_lines_that_hosts_use_are_taken() {
        let parsed = parse("-r -o 109 -e109 /bin/gcs -v4 -e 7").unwrap();
        assert!(parsed.relay);
        assert_eq!(parsed.ports, [None, Some(109), Some(109)]);
        assert_eq!(parsed.command, ["/bin/gcs", "-v4", "-e", "7"]);
        assert_eq!(parse("-i 1 -- -odd").unwrap().command, ["-odd"]);
        for (line, says) in [
            ("", "missing program argument"),
            ("-e 109", "missing program argument"),
            ("-r x", "-r requires -o or -e"),
            ("-e nine x", "nine"),
            ("-x x", "-x"),
        ] {
            assert!(parse(line).unwrap_err().contains(says), "{line}");
        }
    }

    #[test]
    fn nothing_is_lost_with_a_connection_that_has_taken_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (gone, _) = UnixStream::pair().unwrap();
        let made = std::cell::RefCell::new(vec![Some(ours), None, Some(gone), None]);
        let text = "x".repeat(1 << 20);
        let reader = std::thread::spawn(move || {
            let (mut theirs, mut all) = (theirs, String::new());
            theirs.read_to_string(&mut all).unwrap();
            all
        });
        carry(&mut text.as_bytes(), || made.borrow_mut().pop().flatten());
        drop(made);
        assert_eq!(reader.join().unwrap(), text);
    }
}
