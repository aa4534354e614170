//! Between a guest and its host: passes everything on, and writes it down.
//!
//! To the guest it is the host: it listens where the guest dials. To the host it is the guest. It
//! learns the ports of stdio streams from the requests that name them, and listens there before
//! it passes such a request on.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use hyperv_socket::{Local, Peer, Stream, connect};
use linkspan_protocol::frame::{Decoder, GUEST_LIMIT};
use linkspan_protocol::port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::capture::{Direction, Packet, PacketKind, Writer, stdio_ports};
use crate::inner::Network;
use crate::target::{Dial, Listen, PortListener};
use crate::wire::frame;

/// Where the host listens.
#[derive(Clone, Debug)]
pub enum Host {
    /// A machine's sockets, or Unix sockets named after ports.
    Socket(Peer),
    /// As [`Listen::Tcp`].
    Tcp(std::net::SocketAddr),
    /// Within this process.
    Inner(Network),
}

impl std::str::FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Listen>()? {
            Listen::Tcp(address) => Ok(Self::Tcp(address)),
            Listen::Socket(Local::HybridHost { path }) => {
                Ok(Self::Socket(Peer::HybridGuest { path }))
            }
            Listen::Socket(Local::Vsock { cid }) => Ok(Self::Socket(Peer::Vsock { cid })),
            other => Err(format!("{other:?} is nowhere to dial")),
        }
    }
}

impl Host {
    async fn dial(&self, port: u32) -> io::Result<Stream> {
        match self {
            Self::Socket(peer) => connect(peer, port).await,
            Self::Inner(network) => network.dial(port),
            Self::Tcp(base) => {
                let mut address = *base;
                let offset =
                    u16::try_from(port.saturating_sub(port::BRIDGE)).map_err(io::Error::other)?;
                address.set_port(base.port().saturating_add(offset));
                Dial::Tcp(address).connect().await
            }
        }
    }
}

/// Passes connections on until it is dropped.
pub struct Recorder<W> {
    guest: Listen,
    host: Host,
    capture: Mutex<(Writer<W>, u32)>,
    /// Stdio ports that are listened on.
    listening: Mutex<HashMap<u32, ()>>,
    errors: mpsc::UnboundedSender<io::Error>,
}

impl<W: Write + Send + 'static> Recorder<W> {
    /// Records into `out` what goes between a guest that dials `guest` and a host at `host`, until
    /// writing fails.
    ///
    /// # Errors
    /// When it cannot listen, or the capture cannot be written.
    pub async fn run(guest: Listen, host: Host, out: W) -> io::Result<()> {
        let (errors, mut failed) = mpsc::unbounded_channel();
        let capture = Mutex::new((Writer::new(out)?, 0));
        let listening = Mutex::default();
        let recorder = Arc::new(Self { guest, host, capture, listening, errors });
        let mut bridge = recorder.guest.bind(port::BRIDGE).await?;
        loop {
            let stream = tokio::select! {
                stream = bridge.accept() => stream?,
                Some(error) = failed.recv() => return Err(error),
            };
            tokio::spawn(Arc::clone(&recorder).pass_on(stream, port::BRIDGE));
        }
    }

    fn note(
        &self,
        direction: Direction,
        kind: PacketKind,
        port: u32,
        connection: u32,
        bytes: &[u8],
    ) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let packet = Packet { at, direction, kind, port, connection, bytes: bytes.to_vec() };
        let mut capture = self.capture.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = capture.0.write(&packet) {
            let _ = self.errors.send(error);
        }
    }

    async fn pass_on(self: Arc<Self>, guest: Stream, port: u32) {
        let connection = {
            let mut capture = self.capture.lock().unwrap_or_else(PoisonError::into_inner);
            capture.1 += 1;
            capture.1 - 1
        };
        self.note(Direction::ToHost, PacketKind::Opened, port, connection, b"");
        // Nobody there: the guest sees its connection end, as it would have been refused.
        let Ok(host) = self.host.dial(port).await else {
            self.note(Direction::ToGuest, PacketKind::Ended, port, connection, b"");
            return;
        };
        let (guest_reads, guest_writes) = guest.into_split();
        let (host_reads, host_writes) = host.into_split();
        let up = self.copy(guest_reads, host_writes, Direction::ToHost, port, connection);
        let down = self.copy(host_reads, guest_writes, Direction::ToGuest, port, connection);
        tokio::join!(up, down);
    }

    async fn copy(
        self: &Arc<Self>,
        mut from: hyperv_socket::ReadHalf,
        mut to: hyperv_socket::WriteHalf,
        direction: Direction,
        port: u32,
        connection: u32,
    ) {
        let mut decoder = (port == port::BRIDGE).then(|| Decoder::new(GUEST_LIMIT));
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            let bytes = &buffer[..len];
            match &mut decoder {
                None => self.note(direction, PacketKind::Data, port, connection, bytes),
                Some(frames) => {
                    frames.push(bytes);
                    loop {
                        match frames.next_frame() {
                            Ok(Some(next)) => {
                                if direction == Direction::ToGuest {
                                    self.listen(&stdio_ports(next.message_type, &next.payload))
                                        .await;
                                }
                                let whole = frame(next.message_type, next.id, &next.payload);
                                self.note(direction, PacketKind::Frame, port, connection, &whole);
                            }
                            Ok(None) => break,
                            // It cannot be followed any more, and is written down as it comes.
                            Err(_) => {
                                self.note(direction, PacketKind::Frame, port, connection, bytes);
                                decoder = None;
                                break;
                            }
                        }
                    }
                }
            }
            if to.write_all(bytes).await.is_err() {
                break;
            }
        }
        self.note(direction, PacketKind::Ended, port, connection, b"");
        let _ = to.stream().shutdown(Shutdown::Write);
    }

    /// Listens on ports of streams before the guest is told of them.
    async fn listen(self: &Arc<Self>, ports: &[u32]) {
        for &port in ports {
            let known =
                self.listening.lock().unwrap_or_else(PoisonError::into_inner).insert(port, ());
            if known.is_some() {
                continue;
            }
            match self.guest.bind(port).await {
                Ok(listener) => drop(tokio::spawn(Arc::clone(self).serve(listener, port))),
                Err(error) => drop(self.errors.send(error)),
            }
        }
    }

    /// A port is dialled once, and again by agents that resume a stream.
    fn serve(
        self: Arc<Self>,
        mut listener: PortListener,
        port: u32,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            while let Ok(stream) = listener.accept().await {
                tokio::spawn(Arc::clone(&self).pass_on(stream, port));
            }
        })
    }
}
