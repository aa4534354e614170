//! How an agent is reached.
//!
//! The agent dials: the bridge at port 0x40000000, each stdio stream at a port of its own. Where
//! it cannot, because it was started on pipes or listens itself, what would take that is skipped.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use hyperv_socket::{Endpoint, Listener, Local, Stream};
use linkspan_protocol::port;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::inner::Network;

/// One end of a bridge.
pub struct Wire {
    /// What the peer sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What it receives.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl From<Stream> for Wire {
    fn from(stream: Stream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }
}

/// Where the harness listens for an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `AF_VSOCK`, or Unix sockets named after ports.
    Socket(Local),
    /// TCP: the bridge at this port, the stdio port 0x40000000+n at this port plus n.
    Tcp(SocketAddr),
    /// Within this process.
    Inner(Network),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is not an address to listen on: hybrid:PATH (Unix sockets PATH_PORT), \
                 vsock:CID, vsock:any or tcp:ADDRESS:PORT"
            )
        };
        tcp_or(text, Self::Tcp, Self::Socket).ok_or_else(form)
    }
}

/// Where the harness dials an agent that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dial {
    /// Anything that has an endpoint.
    Socket(Endpoint),
    /// TCP.
    Tcp(SocketAddr),
}

impl FromStr for Dial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is not an address to connect to: unix:PATH, hybrid-host:PATH:PORT, \
                 vsock:CID:PORT or tcp:ADDRESS:PORT"
            )
        };
        tcp_or(text, Self::Tcp, Self::Socket).ok_or_else(form)
    }
}

impl Dial {
    /// Dials once.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Socket(endpoint) => endpoint.connect().await,
            Self::Tcp(address) => tcp_stream(TcpStream::connect(address).await?),
        }
    }
}

/// Listens on one port.
#[derive(Debug)]
pub enum PortListener {
    /// Any socket of a virtual machine.
    Socket(Listener),
    /// TCP.
    Tcp(TcpListener),
    /// Within this process.
    Inner(mpsc::UnboundedReceiver<Stream>, InnerPort),
}

/// A port of the process's own network; closed when dropped.
#[derive(Debug)]
pub struct InnerPort {
    pub(crate) network: Network,
    pub(crate) port: u32,
}

impl Drop for InnerPort {
    fn drop(&mut self) {
        self.network.close(self.port);
    }
}

impl PortListener {
    /// The next connection.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        match self {
            Self::Socket(listener) => Ok(listener.accept().await?.0),
            Self::Tcp(listener) => tcp_stream(listener.accept().await?.0),
            Self::Inner(incoming, _) => match incoming.recv().await {
                Some(stream) => Ok(stream),
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
        }
    }
}

/// An address in the form `tcp:ADDRESS:PORT`, or in that of another kind.
pub(crate) fn tcp_or<S: FromStr, A>(
    text: &str,
    tcp: impl FnOnce(SocketAddr) -> A,
    other: impl FnOnce(S) -> A,
) -> Option<A> {
    match text.strip_prefix("tcp:") {
        Some(address) => address.parse().ok().map(tcp),
        None => text.parse().ok().map(other),
    }
}

pub(crate) fn tcp_stream(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    Stream::from_fd(OwnedFd::from(stream.into_std()?))
}

impl Listen {
    /// Listens on a port.
    ///
    /// # Errors
    /// When the port is taken, or the address is not this machine's.
    pub async fn bind(&self, port: u32) -> io::Result<PortListener> {
        match self {
            Self::Socket(local) => Ok(PortListener::Socket(Listener::bind(local, port)?)),
            Self::Inner(network) => {
                let (incoming, guard) = network.open(port);
                Ok(PortListener::Inner(incoming, guard))
            }
            Self::Tcp(base) => {
                let mut address = *base;
                let offset = port.checked_sub(port::BRIDGE).and_then(|n| u16::try_from(n).ok());
                let number = offset.and_then(|offset| base.port().checked_add(offset));
                let number = number.ok_or_else(|| {
                    let text = format!("port {port:#x} has no TCP port above {}", base.port());
                    io::Error::new(io::ErrorKind::InvalidInput, text)
                })?;
                address.set_port(number);
                Ok(PortListener::Tcp(TcpListener::bind(address).await?))
            }
        }
    }
}

/// The agent's end of things.
#[derive(Debug)]
pub enum Target {
    /// It dials us.
    Listen {
        /// Where.
        listen: Listen,
        /// Open between connections.
        bridge: Option<PortListener>,
    },
    /// We dial it.
    Connect {
        /// Where.
        dial: Dial,
        /// Where its stdio connections come, if they do.
        stdio: Option<Listen>,
    },
    /// We start it, on its standard input and output.
    Spawn(Box<Spawned>),
}

/// An agent on pipes.
#[derive(Debug)]
pub struct Spawned {
    command: Vec<OsString>,
    stdio: Option<Listen>,
    child: Option<Child>,
    /// The end of what it has said on its standard error.
    said: Arc<Mutex<Vec<u8>>>,
}

impl Target {
    /// An agent that dials.
    pub fn listen(listen: Listen) -> Self {
        Self::Listen { listen, bridge: None }
    }

    /// An agent to be started on pipes. With `stdio` its stdio connections come there.
    pub fn spawn(command: Vec<OsString>, stdio: Option<Listen>) -> Self {
        let said = Arc::default();
        Self::Spawn(Box::new(Spawned { command, stdio, child: None, said }))
    }

    /// Whether a lost connection comes back to the same agent.
    pub fn redials(&self) -> bool {
        !matches!(self, Self::Spawn(_))
    }

    /// Whether the agent dials the bridge.
    pub fn dials(&self) -> bool {
        matches!(self, Self::Listen { .. })
    }

    /// Where stdio connections come.
    pub fn stdio(&self) -> Option<&Listen> {
        match self {
            Self::Listen { listen, .. } => Some(listen),
            Self::Connect { stdio, .. } => stdio.as_ref(),
            Self::Spawn(spawned) => spawned.stdio.as_ref(),
        }
    }

    /// Where it is, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Listen { listen: Listen::Socket(local), .. } => format!("listen {local:?}"),
            Self::Listen { listen: Listen::Tcp(address), .. } => format!("listen tcp:{address}"),
            Self::Listen { listen: Listen::Inner(_), .. } => "within this process".to_owned(),
            Self::Connect { dial, .. } => format!("connect {dial:?}"),
            Self::Spawn(spawned) => {
                let words: Vec<_> =
                    spawned.command.iter().map(|word| word.to_string_lossy()).collect();
                format!("spawn {}", words.join(" "))
            }
        }
    }

    /// Opens the bridge's port, so that the agent finds it.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn open(&mut self) -> io::Result<()> {
        if let Self::Listen { listen, bridge } = self
            && bridge.is_none()
        {
            *bridge = Some(listen.bind(port::BRIDGE).await?);
        }
        Ok(())
    }

    /// Closes the bridge's port: dialling is refused.
    pub fn close(&mut self) {
        if let Self::Listen { bridge, .. } = self {
            *bridge = None;
        }
    }

    /// A new connection to the agent. An agent on pipes is started anew for it.
    ///
    /// # Errors
    /// When it cannot be reached or started.
    pub async fn connect(&mut self) -> io::Result<Wire> {
        self.open().await?;
        match self {
            Self::Listen { bridge, .. } => {
                let bridge = bridge.as_mut().ok_or(io::ErrorKind::NotConnected)?;
                Ok(bridge.accept().await?.into())
            }
            Self::Connect { dial, .. } => Ok(dial.connect().await?.into()),
            Self::Spawn(spawned) => spawned.start().await,
        }
    }

    /// What an agent on pipes said last, and how it ended.
    pub fn last_words(&mut self) -> Option<String> {
        let Self::Spawn(spawned) = self else { return None };
        let said = spawned.said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&said);
        let tail: Vec<&str> = text.lines().rev().take(5).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join(" | ");
        let ended = match spawned.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => format!("the agent has ended: {status}; "),
            _ => String::new(),
        };
        (!tail.is_empty() || !ended.is_empty()).then(|| format!("{ended}it said: {tail}"))
    }

    /// Ends an agent on pipes.
    pub async fn end(&mut self) {
        if let Self::Spawn(spawned) = self
            && let Some(mut child) = spawned.child.take()
        {
            let _ = child.kill().await;
        }
    }
}

/// How much of an agent's words is kept.
const KEPT: usize = 16 << 10;

impl Spawned {
    async fn start(&mut self) -> io::Result<Wire> {
        if let Some(mut old) = self.child.take() {
            old.kill().await?;
        }
        let (program, arguments) = self.command.split_first().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "there is no command to start an agent with",
            )
        })?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let text = format!("start {}: {error}", program.to_string_lossy());
                io::Error::new(error.kind(), text)
            })?;
        let (Some(stdin), Some(stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let said = Arc::clone(&self.said);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stderr.read(&mut buffer).await {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&buffer[..len]);
                let excess = said.len().saturating_sub(KEPT);
                said.drain(..excess);
            }
        });
        self.child = Some(child);
        Ok(Wire { reader: Box::new(stdout), writer: Box::new(stdin) })
    }
}
