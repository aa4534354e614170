//! A guest agent whose containers are simulated: what the harness itself is tried on, within its
//! process or as the program `simulated-guest`. It can be given one [`Defect`].
//!
//! It stands on the protocol's own [`Server`]; what a defect does to frames is done to them
//! afterwards.

mod defect;
mod frames;
mod programs;
mod state;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use hyperv_socket::Stream;
use linkspan_protocol::frame::GUEST_LIMIT;
use linkspan_protocol::message::{Capabilities, Empty, SchemaVersion};
use linkspan_protocol::{MessageType, Server, ServerOptions, port};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::spawn_local;

pub use defect::{BROKEN, Defect};

use crate::host::HostAddress;
use crate::inner::Network;
use crate::wire::frame;
use state::State;

/// How a guest dials its host.
#[derive(Clone, Debug)]
pub enum Way {
    /// Within this process.
    Inner(Network),
    /// Over sockets.
    Socket(HostAddress),
    /// Not at all.
    Nowhere,
}

/// How long a guest waits before it dials a host again that does not listen.
const REDIAL: Duration = Duration::from_millis(20);

impl Way {
    async fn dial(&self, port: u32) -> io::Result<Stream> {
        match self {
            Self::Inner(network) => network.dial(port),
            Self::Socket(address) => address.dial(port).await,
            Self::Nowhere => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    async fn dial_until_heard(&self, port: u32) -> io::Result<Stream> {
        loop {
            match self {
                Self::Inner(network) => return network.dial_until_heard(port).await,
                Self::Nowhere => return std::future::pending().await,
                Self::Socket(address) => match address.dial(port).await {
                    Ok(stream) => return Ok(stream),
                    Err(_) => tokio::time::sleep(REDIAL).await,
                },
            }
        }
    }
}

/// The guest. Runs on a `LocalSet`.
pub struct Guest {
    way: Way,
    pub(crate) defect: Option<Defect>,
    pub(crate) server: RefCell<Server>,
    pub(crate) outgoing: Notify,
    pub(crate) state: RefCell<State>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("defect", &self.defect).finish_non_exhaustive()
    }
}

impl Guest {
    /// A guest that will dial that way.
    pub fn new(way: Way, defect: Option<Defect>) -> Rc<Self> {
        let mut capabilities = Capabilities::linux();
        match defect {
            Some(Defect::ForeignSystem) => capabilities.runtime_os_type = "Windows".to_owned(),
            Some(Defect::NoSchemas) => capabilities.supported_schema_versions = Vec::new(),
            Some(Defect::OldSchemas) => {
                capabilities.supported_schema_versions = vec![SchemaVersion { major: 2, minor: 0 }];
            }
            Some(Defect::WantsCreate) => capabilities.send_host_create_message = true,
            _ => {}
        }
        let request_limit = match defect {
            Some(Defect::SmallRequests) => 0x1_0000,
            _ => GUEST_LIMIT,
        };
        let options = ServerOptions { capabilities, request_limit, module_name: "simulated" };
        Rc::new(Self {
            way,
            defect,
            server: RefCell::new(Server::new(options)),
            outgoing: Notify::new(),
            state: RefCell::default(),
        })
    }

    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    pub(crate) async fn dial(&self, port: u32) -> io::Result<Stream> {
        self.way.dial(port).await
    }

    /// Dials hosts and serves them, for ever.
    ///
    /// # Errors
    /// When there are no sockets to be had.
    pub async fn run(self: Rc<Self>) -> io::Result<()> {
        loop {
            let stream = match self.way.dial(port::BRIDGE).await {
                Ok(stream) => stream,
                Err(_) if self.has(Defect::SlowRedial) => {
                    tokio::time::sleep(Duration::from_secs(6)).await;
                    continue;
                }
                Err(_) => self.way.dial_until_heard(port::BRIDGE).await?,
            };
            let (read, write) = stream.into_split();
            let _ = self.serve(read, write).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Serves one host, until it goes.
    ///
    /// # Errors
    /// What ended the connection, if the host did not.
    pub async fn serve(
        self: &Rc<Self>,
        read: impl AsyncRead + Unpin,
        write: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let in_flight = RefCell::new(None);
        let ended = tokio::select! {
            ended = self.receive(read) => ended,
            ended = self.transmit(write, &in_flight) => ended,
        };
        self.server.borrow_mut().disconnect(in_flight.into_inner());
        self.state.borrow_mut().connections += 1;
        ended
    }

    async fn receive(self: &Rc<Self>, mut read: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = read.read(&mut buffer).await?;
            if len == 0 {
                return Ok(());
            }
            let bytes = &buffer[..len];
            if self.has(Defect::LosesPartialHeaders) && len < 16 {
                continue;
            }
            let bytes = self.spoiled_request(bytes)?;
            let mut requests = Vec::new();
            {
                let mut server = self.server.borrow_mut();
                server.handle_input(&bytes).map_err(io::Error::other)?;
                while let Some(incoming) = server.poll_request() {
                    requests.push(incoming);
                }
            }
            for incoming in requests {
                spawn_local(Rc::clone(self).answer(incoming));
            }
            self.outgoing.notify_one();
        }
    }

    /// What a defect makes of what has been read. The error closes the connection.
    fn spoiled_request(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        let word = |at: usize| {
            bytes
                .get(at..at + 4)
                .map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()))
        };
        let (kind, size) = (word(0), word(4));
        match self.defect {
            Some(Defect::ClosesOnBadJson)
                if size == u32::try_from(bytes.len()).ok() && bytes.get(16) != Some(&b'{') =>
            {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Some(Defect::NoNewline) if bytes.last() == Some(&b'\n') => bytes[16] = b'!',
            Some(Defect::AnyVersion) if kind == Some(MessageType::NEGOTIATE_PROTOCOL.0) => {
                let text = String::from_utf8_lossy(&bytes[16..]).replace(":5", ":4");
                return Ok(frame(
                    MessageType::NEGOTIATE_PROTOCOL,
                    self.id_of(&bytes),
                    text.as_bytes(),
                ));
            }
            Some(Defect::OldVersion) if kind == Some(MessageType::NEGOTIATE_PROTOCOL.0) => {
                let text = String::from_utf8_lossy(&bytes[16..]).replace(":3,", ":4,");
                return Ok(frame(
                    MessageType::NEGOTIATE_PROTOCOL,
                    self.id_of(&bytes),
                    text.as_bytes(),
                ));
            }
            Some(Defect::NarrowVersion) if kind == Some(MessageType::NEGOTIATE_PROTOCOL.0) => {
                let text = String::from_utf8_lossy(&bytes[16..])
                    .replace("\"MaximumVersion\":10", "\"MaximumVersion\":3");
                return Ok(frame(
                    MessageType::NEGOTIATE_PROTOCOL,
                    self.id_of(&bytes),
                    text.as_bytes(),
                ));
            }
            _ => {}
        }
        Ok(bytes)
    }

    fn id_of(&self, bytes: &[u8]) -> u64 {
        bytes.get(8..16).map_or(0, |id| u64::from_le_bytes(id.try_into().unwrap_or_default()))
    }

    async fn transmit(
        &self,
        mut write: impl AsyncWrite + Unpin,
        in_flight: &RefCell<Option<Vec<u8>>>,
    ) -> io::Result<()> {
        if self.has(Defect::TalksFirst) {
            let early = frame(MessageType::NOTIFICATION, 0, b"{\"ContainerId\":\"early\"}");
            write.write_all(&early).await?;
        }
        loop {
            let mut pending = Vec::new();
            {
                let mut server = self.server.borrow_mut();
                while let Some(bytes) = server.poll_transmit() {
                    pending.push(bytes);
                }
            }
            if pending.is_empty() {
                self.outgoing.notified().await;
                continue;
            }
            for bytes in frames::spoil(self, pending) {
                in_flight.replace(Some(bytes.clone()));
                write.write_all(&bytes).await?;
                write.flush().await?;
                in_flight.replace(None);
            }
        }
    }

    async fn answer(self: Rc<Self>, incoming: linkspan_protocol::Incoming) {
        let connection = self.state.borrow().connections;
        let (ticket, outcome) = state::handle(&self, incoming).await;
        if self.has(Defect::ForgetsWaits) && self.state.borrow().connections != connection {
            return;
        }
        let mut server = self.server.borrow_mut();
        match outcome {
            Ok(body) => server.respond(ticket, Ok(body)),
            Err(fault) => server.respond::<Empty>(ticket, Err(fault)),
        }
        drop(server);
        self.outgoing.notify_one();
    }
}
