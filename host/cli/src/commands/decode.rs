//! `linkspan decode`: a capture as text.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::Args;
use linkspan_conform::capture::{self, Direction, Packet, PacketKind};
use linkspan_conform::hindsight;
use serde_json::json;

use crate::error::{Context, Error};
use crate::options::Global;
use crate::output;

/// Print a capture of `linkspan record`, decoded
///
/// With --check the guest is held against those statements of `linkspan conform guest` about which the
/// conversation says something; they are listed on stderr, and the exit code is 1 if one is broken.
#[derive(Args, Debug)]
#[command(after_help = "\
Wireshark and tshark show captures as well, with tools/wireshark/linkspan.lua:
  tshark -X lua_script:tools/wireshark/linkspan.lua -r capture.pcapng")]
pub(crate) struct Decode {
    /// The capture
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Hold the guest against the statements about which the conversation says something
    #[arg(long)]
    check: bool,
}

/// Reads a capture.
pub(crate) fn packets(path: &PathBuf) -> Result<Vec<Packet>, Error> {
    let file = File::open(path).context(|| format!("open {}", path.display()))?;
    capture::read(BufReader::new(file)).context(|| format!("read {}", path.display()))
}

impl Decode {
    pub(crate) fn run(&self, global: &Global) -> Result<u32, Error> {
        let packets = packets(&self.file)?;
        let begun = packets.first().map(|packet| packet.at).unwrap_or_default();
        if global.json {
            let rows: Vec<_> = packets.iter().map(row).collect();
            output::json(&rows)?;
        } else {
            for packet in &packets {
                output::line(capture::line(packet, begun))?;
            }
        }
        if !self.check {
            return Ok(0);
        }
        let judgement = hindsight::judge(&packets);
        for (statement, judged) in &judgement {
            match judged.broken.as_slice() {
                [] => eprintln!("statement {statement}: holds {} times", judged.held),
                broken => broken.iter().for_each(|text| eprintln!("statement {statement}: {text}")),
            }
        }
        Ok(u32::from(judgement.values().any(|judged| !judged.broken.is_empty())))
    }
}

fn row(packet: &Packet) -> serde_json::Value {
    let document = packet
        .bytes
        .get(linkspan_protocol::frame::HEADER_LEN..)
        .and_then(|payload| serde_json::from_slice::<serde_json::Value>(payload).ok());
    let frame = packet.kind == PacketKind::Frame;
    json!({
        "seconds": packet.at.as_secs_f64(),
        "to": if packet.direction == Direction::ToGuest { "guest" } else { "host" },
        "kind": format!("{:?}", packet.kind).to_lowercase(),
        "port": packet.port,
        "connection": packet.connection,
        "size": packet.bytes.len(),
        "text": capture::line(packet, packet.at).trim_start(),
        "document": document.filter(|_| frame),
    })
}
