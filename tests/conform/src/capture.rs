//! Captures of conversations: pcapng files, which Wireshark reads with `tools/wireshark`.
//!
//! One packet is one bridge frame, or one piece of a stdio stream. Its data are a header of 12
//! bytes, then what went over the wire; integers are little-endian:
//!
//! | offset | size |                                                                   |
//! |-------:|-----:|-------------------------------------------------------------------|
//! |      0 |    1 | version of this header: 1                                         |
//! |      1 |    1 | way: 0 host to guest, 1 guest to host                             |
//! |      2 |    1 | kind: 0 bridge frame, 1 stream data, 2 opened, 3 end of this way  |
//! |      3 |    1 | 0                                                                 |
//! |      4 |    4 | port                                                              |
//! |      8 |    4 | which connection, counted from 0                                  |
//!
//! The link type is USER0 (147), timestamps are in nanoseconds.

use std::io::{self, Read, Write};
use std::time::Duration;

use linkspan_protocol::frame::Decoder;
use linkspan_protocol::{Kind, MessageType, port};
use serde_json::Value;

use crate::observer::{Asked, Echo, Observer};
use crate::transcript::describe;

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the host.
    ToGuest,
    /// From the guest.
    ToHost,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// A frame of the bridge, or what there was of it when the connection ended.
    Frame,
    /// A piece of a stream.
    Data,
    /// A connection was made.
    Opened,
    /// This way of the connection has ended.
    Ended,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Since 1970.
    pub at: Duration,
    /// Which way.
    pub direction: Direction,
    /// What.
    pub kind: PacketKind,
    /// The vsock port.
    pub port: u32,
    /// Which connection.
    pub connection: u32,
    /// What went over the wire.
    pub bytes: Vec<u8>,
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const USER0: u16 = 147;
const HEADER: usize = 12;
/// No block of ours comes near it: a guest takes frames of 4 MiB, a host less.
const MOST: usize = 17 << 20;

/// Writes a capture.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins a capture.
    ///
    /// # Errors
    /// What writing gives.
    pub fn new(mut out: W) -> io::Result<Self> {
        let mut section = BYTE_ORDER.to_le_bytes().to_vec();
        section.extend_from_slice(&[1, 0, 0, 0]);
        section.extend_from_slice(&u64::MAX.to_le_bytes());
        block(&mut out, SECTION, &section)?;
        let mut interface = USER0.to_le_bytes().to_vec();
        interface.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
        // if_tsresol: 10^-9 s; the end of the options.
        interface.extend_from_slice(&[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        block(&mut out, INTERFACE, &interface)?;
        out.flush()?;
        Ok(Self { out })
    }

    /// Adds a packet.
    ///
    /// # Errors
    /// What writing gives.
    pub fn write(&mut self, packet: &Packet) -> io::Result<()> {
        let len = u32::try_from(packet.bytes.len() + HEADER).map_err(io::Error::other)?;
        let nanoseconds = u64::try_from(packet.at.as_nanos()).unwrap_or(u64::MAX);
        let mut body = Vec::with_capacity(packet.bytes.len() + 48);
        body.extend_from_slice(&0u32.to_le_bytes());
        body.extend_from_slice(&((nanoseconds >> 32) as u32).to_le_bytes());
        body.extend_from_slice(&(nanoseconds as u32).to_le_bytes());
        body.extend_from_slice(&len.to_le_bytes());
        body.extend_from_slice(&len.to_le_bytes());
        body.extend_from_slice(&[1, packet.direction as u8, packet.kind as u8, 0]);
        body.extend_from_slice(&packet.port.to_le_bytes());
        body.extend_from_slice(&packet.connection.to_le_bytes());
        body.extend_from_slice(&packet.bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        block(&mut self.out, ENHANCED, &body)?;
        // A capture is to be whole up to the moment when something goes wrong.
        self.out.flush()
    }
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let total = u32::try_from(body.len() + 12).map_err(io::Error::other)?;
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&total.to_le_bytes())?;
    out.write_all(body)?;
    out.write_all(&total.to_le_bytes())
}

/// Reads a capture that [`Writer`] wrote.
///
/// # Errors
/// `InvalidData` where it is none, with the offset.
pub fn read(mut input: impl Read) -> io::Result<Vec<Packet>> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes)?;
    let mut packets = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let bad = |what: &str| {
            let text = format!("{what} at byte {at}: not a capture of `linkspan record`");
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let rest = &bytes[at..];
        let kind = word(rest, 0).ok_or_else(|| bad("half a block"))?;
        let total = word(rest, 4).ok_or_else(|| bad("half a block"))? as usize;
        if !(12..=MOST).contains(&total) || !total.is_multiple_of(4) || total > rest.len() {
            return Err(bad(&format!("a block of {total} bytes")));
        }
        let body = &rest[8..total - 4];
        match kind {
            SECTION if word(body, 0) != Some(BYTE_ORDER) => return Err(bad("another byte order")),
            INTERFACE if body.get(..2) != Some(&USER0.to_le_bytes()) => {
                return Err(bad("another link type"));
            }
            ENHANCED => packets.push(packet(body).ok_or_else(|| bad("a packet of another kind"))?),
            _ if at == 0 && kind != SECTION => return Err(bad("no section")),
            _ => {}
        }
        at += total;
    }
    Ok(packets)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn packet(body: &[u8]) -> Option<Packet> {
    let nanoseconds = (u64::from(word(body, 4)?) << 32) | u64::from(word(body, 8)?);
    let len = word(body, 12)? as usize;
    let data = body.get(20..20usize.checked_add(len)?)?;
    let (head, bytes) = data.split_at_checked(HEADER)?;
    let direction = [Direction::ToGuest, Direction::ToHost].get(usize::from(head[1]))?;
    let kinds = [PacketKind::Frame, PacketKind::Data, PacketKind::Opened, PacketKind::Ended];
    (head[0] == 1).then_some(Packet {
        at: Duration::from_nanos(nanoseconds),
        direction: *direction,
        kind: *kinds.get(usize::from(head[2]))?,
        port: word(head, 4)?,
        connection: word(head, 8)?,
        bytes: bytes.to_vec(),
    })
}

/// A packet for people, `since` the first.
pub fn line(packet: &Packet, since: Duration) -> String {
    let seconds = packet.at.saturating_sub(since).as_secs_f64();
    let way = match packet.direction {
        Direction::ToGuest => "host -> guest",
        Direction::ToHost => "guest -> host",
    };
    let place = match packet.port {
        port::BRIDGE => format!("bridge #{}", packet.connection),
        port => format!("port {port:#x} #{}", packet.connection),
    };
    let what = match packet.kind {
        PacketKind::Frame => describe(&packet.bytes),
        PacketKind::Opened => "connected".to_owned(),
        PacketKind::Ended => "end".to_owned(),
        PacketKind::Data => {
            let shown = &packet.bytes[..packet.bytes.len().min(80)];
            format!("{} bytes {:?}", packet.bytes.len(), String::from_utf8_lossy(shown))
        }
    };
    format!("{seconds:9.4} {way} {place} {what}")
}

/// What a recorded guest does wrong in its frames: statements, each with a sentence.
pub fn violations(packets: &[Packet]) -> Vec<(u32, String)> {
    let mut observer = Observer::default();
    for packet in packets.iter().filter(|packet| packet.kind == PacketKind::Frame) {
        let mut decoder = Decoder::new(usize::MAX);
        decoder.push(&packet.bytes);
        let Ok(Some(frame)) = decoder.next_frame() else { continue };
        if packet.direction == Direction::ToHost {
            observer.look(&frame);
        } else {
            let document = serde_json::from_slice::<Value>(&frame.payload).ok();
            let echo = document.filter(Value::is_object).map_or(Echo::Any, |body| {
                Echo::Exactly(body["ActivityId"].as_str().unwrap_or_default().to_owned())
            });
            observer.ask(frame.id, Asked { message_type: frame.message_type, echo });
        }
    }
    observer.take()
}

/// The ports that an ExecuteProcess names, so that somebody can listen there.
pub(crate) fn stdio_ports(message_type: MessageType, payload: &[u8]) -> Vec<u32> {
    if message_type != MessageType::EXECUTE_PROCESS || message_type.kind() != Kind::Request {
        return Vec::new();
    }
    let document: Value = serde_json::from_slice(payload).unwrap_or_default();
    let settings = &document["Settings"]["VsockStdioRelaySettings"];
    let ports = ["StdIn", "StdOut", "StdErr"].map(|key| settings[key].as_u64());
    ports
        .into_iter()
        .flatten()
        .filter_map(|port| u32::try_from(port).ok())
        .filter(|&p| p != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;

    fn packets() -> Vec<Packet> {
        let at = Duration::new(1_700_000_000, 123_456_789);
        let packet = |direction, kind, port, bytes: &[u8]| Packet {
            at,
            direction,
            kind,
            port,
            connection: 3,
            bytes: bytes.to_vec(),
        };
        let request = frame(MessageType::DUMP_STACKS, 7, b"{}");
        vec![
            packet(Direction::ToHost, PacketKind::Opened, port::BRIDGE, b""),
            packet(Direction::ToGuest, PacketKind::Frame, port::BRIDGE, &request),
            packet(Direction::ToHost, PacketKind::Data, port::FIRST_STDIO, b"abc"),
        ]
    }

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        packets().iter().for_each(|packet| writer.write(packet).unwrap());
        bytes
    }

    #[test]
    fn a_capture_reads_back_as_it_was_written() {
        assert_eq!(read(&written()[..]).unwrap(), packets());
    }

    #[test]
    fn no_damage_to_a_capture_makes_its_reader_panic() {
        let good = written();
        for at in 0..good.len() {
            let _ = read(&good[..at]);
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = read(&bad[..]);
            }
        }
        assert!(read(&good[..good.len() - 1]).is_err());
        assert!(read(&b"no capture at all"[..]).is_err());
    }
}
