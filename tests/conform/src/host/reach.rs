//! How a host is reached: it is started, or it listens already.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyperv_socket::{Peer, Stream};
use linkspan_protocol::port;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::target::{tcp_or, tcp_stream};

/// The environment variable that names the sockets: the host has to listen on port P at the Unix
/// socket `<value>_P`.
pub const SOCKETS: &str = "LINKSPAN_CONFORM_SOCKETS";

/// The environment variable with the whole path of the bridge's socket.
pub const BRIDGE: &str = "LINKSPAN_CONFORM_BRIDGE";

/// The environment variable that says what the present run is about, for people.
pub const RUN: &str = "LINKSPAN_CONFORM_RUN";

/// What begins a line by which a host tells of an exit: `conform: exit PID CODE`.
pub const EXIT_LINE: &str = "conform: exit ";

/// How much of what a host says is kept.
const KEPT: usize = 64 << 10;

/// How long what a program said may take to come after its end. A child of its own may hold it.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How a host is reached.
#[derive(Clone, Debug)]
pub enum HostReach {
    /// It is started anew for each run, and is told by environment variables where to listen.
    Spawn(Vec<OsString>),
    /// It listens there, and again after each run.
    Connect(HostAddress),
}

/// Where a host listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// `AF_VSOCK`, or Unix sockets named after ports.
    Socket(Peer),
    /// TCP: the bridge at this port, the stdio port 0x40000000+n at this port plus n.
    Tcp(SocketAddr),
}

impl FromStr for HostAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is not where a host listens: hybrid:PATH (Unix sockets PATH_PORT), \
                 vsock:CID or tcp:ADDRESS:PORT"
            )
        };
        tcp_or(text, Self::Tcp, Self::Socket).ok_or_else(form)
    }
}

impl HostAddress {
    /// Dials a port of the host's once.
    pub(crate) async fn dial(&self, port: u32) -> io::Result<Stream> {
        match self {
            Self::Socket(peer) => hyperv_socket::connect(peer, port).await,
            Self::Tcp(base) => {
                let offset = port.checked_sub(port::BRIDGE).and_then(|n| u16::try_from(n).ok());
                let number = offset.and_then(|offset| base.port().checked_add(offset));
                let number = number.ok_or(io::ErrorKind::ConnectionRefused)?;
                tcp_stream(TcpStream::connect(SocketAddr::new(base.ip(), number)).await?)
            }
        }
    }

    /// Whether a socket tells a half-closed peer from one that has closed.
    pub(super) fn tells_half_closed(&self) -> bool {
        matches!(self, Self::Socket(Peer::HybridGuest { .. } | Peer::HybridHost { .. }))
    }
}

/// A host, for one run.
pub(super) struct Reached {
    pub(super) address: HostAddress,
    pub(super) program: Option<Program>,
    _sockets: Option<TempDir>,
}

impl HostReach {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Spawn(command) => {
                let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
                format!("spawn {}", words.join(" "))
            }
            Self::Connect(HostAddress::Socket(peer)) => format!("connect {peer}"),
            Self::Connect(HostAddress::Tcp(address)) => format!("connect tcp:{address}"),
        }
    }

    pub(super) fn reach(&self, run: &str) -> io::Result<Reached> {
        match self {
            Self::Connect(address) => {
                Ok(Reached { address: address.clone(), program: None, _sockets: None })
            }
            Self::Spawn(command) => {
                let sockets = tempfile::tempdir()?;
                let path = sockets.path().join("vsock");
                let mut bridge = path.clone().into_os_string();
                bridge.push(format!("_{}", port::BRIDGE));
                let environment =
                    [(SOCKETS, path.clone().into_os_string()), (BRIDGE, bridge), (RUN, run.into())];
                let program = Program::start(command, environment)?;
                let address = HostAddress::Socket(Peer::HybridGuest { path });
                Ok(Reached { address, program: Some(program), _sockets: Some(sockets) })
            }
        }
    }
}

/// A host that was started.
pub(super) struct Program {
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    errors: Arc<Mutex<Vec<u8>>>,
    readers: [JoinHandle<()>; 2],
}

/// How a program ended, and what it said.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    /// For people; `None` if it had to be killed.
    pub(crate) status: Option<String>,
    pub(crate) success: bool,
    /// By a signal, or as a panic ends a program.
    pub(crate) crashed: bool,
    output: String,
    errors: String,
}

impl Ending {
    /// Whether it has said that anywhere.
    pub(crate) fn says(&self, words: &str) -> bool {
        self.output.contains(words) || self.errors.contains(words)
    }

    /// Pids with the exit codes that it has told of.
    pub(crate) fn exits(&self) -> Vec<(u32, u32)> {
        let lines = self.output.lines().filter_map(|line| line.strip_prefix(EXIT_LINE));
        let pairs = lines.filter_map(|line| line.trim().split_once(' '));
        pairs.filter_map(|(pid, code)| Some((pid.parse().ok()?, code.parse().ok()?))).collect()
    }

    /// The end of what it said, for people.
    pub(crate) fn last_words(&self) -> String {
        let lines: Vec<&str> = self.errors.lines().chain(self.output.lines()).collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}

impl Program {
    fn start<const N: usize>(
        command: &[OsString],
        environment: [(&str, OsString); N],
    ) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "there is no command to start a host with")
        })?;
        let mut child = Command::new(program)
            .args(arguments)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let text = format!("start {}: {error}", program.to_string_lossy());
                io::Error::new(error.kind(), text)
            })?;
        let (output, errors) = (Arc::default(), Arc::default());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let readers = [
            tokio::spawn(keep(stdout, Arc::clone(&output))),
            tokio::spawn(keep(stderr, Arc::clone(&errors))),
        ];
        Ok(Self { child, output, errors, readers })
    }

    /// Waits for its end. May be given up and called again.
    pub(super) async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.child.wait().await
    }

    /// How it ended; one that has not is killed.
    pub(super) async fn ending(mut self) -> Ending {
        use std::os::unix::process::ExitStatusExt;
        let status = match self.child.try_wait() {
            Ok(Some(status)) => Some(status),
            _ => {
                let _ = self.child.kill().await;
                None
            }
        };
        for reader in self.readers {
            let _ = tokio::time::timeout(LAST_WORDS, reader).await;
        }
        let text = |kept: &Mutex<Vec<u8>>| {
            let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&kept).into_owned()
        };
        /// What Rust's panics end a program with.
        const PANIC: i32 = 101;
        let crashed =
            status.is_some_and(|status| status.signal().is_some() || status.code() == Some(PANIC));
        Ending {
            success: status.is_some_and(|status| status.success()),
            status: status.map(|status| status.to_string()),
            crashed,
            output: text(&self.output),
            errors: text(&self.errors),
        }
    }
}

async fn keep(from: Option<impl AsyncRead + Unpin>, to: Arc<Mutex<Vec<u8>>>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        let mut kept = to.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..len]);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_hosts_have_a_text_form() {
        assert!(matches!("tcp:127.0.0.1:5".parse(), Ok(HostAddress::Tcp(_))));
        let hybrid: HostAddress = "hybrid:/run/vm.sock".parse().unwrap();
        assert!(hybrid.tells_half_closed());
        for wrong in ["", "tcp:5", "/run/vm.sock", "hybrid"] {
            let error = wrong.parse::<HostAddress>().unwrap_err();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }

    #[test]
    fn a_host_tells_of_exits_by_lines() {
        let output = "starting\nconform: exit 7 137\nconform: exit x 1\nconform: exit 8\n";
        let ending = Ending {
            status: None,
            success: false,
            crashed: false,
            output: output.to_owned(),
            errors: String::new(),
        };
        assert_eq!(ending.exits(), [(7, 137)]);
    }
}
