//! `linkspan replay`: one side of a capture again.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};
use linkspan_conform::capture::Direction;
use linkspan_conform::replay::play;
use linkspan_conform::target::{Dial, Listen};
use linkspan_protocol::port;

use super::decode::packets;
use crate::error::{Context, Error};
use crate::options::Global;
use crate::output;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Side {
    /// The host, to another guest, which dials --listen
    Host,
    /// The guest, to another host, at --connect
    Guest,
}

/// Play one side of a captured bridge to another peer
///
/// Each recorded frame of the side is sent when the peer's frames before it have come. What the
/// peer answers otherwise than it was recorded is printed, and makes the exit code 1. Stdio streams
/// are not played.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan replay --as host --listen hybrid:/tmp/vm.sock run.pcapng
  linkspan replay --as guest --connect unix:/tmp/host.sock_1073741824 run.pcapng")]
pub(crate) struct Replay {
    /// Which side to play
    #[arg(long = "as", value_enum, value_name = "SIDE")]
    side: Side,
    /// Where the guest dials: hybrid:PATH, vsock:CID, vsock:any or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Listen>(), required_if_eq("side", "host"))]
    listen: Option<Listen>,
    /// Where the host's bridge is: unix:PATH, vsock:CID:PORT or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Dial>(), required_if_eq("side", "guest"))]
    connect: Option<Dial>,
    /// How long the peer has for each frame, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 30, value_parser = value_parser!(u32).range(1..))]
    timeout: u32,
    /// The capture
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Replay {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        let packets = packets(&self.file)?;
        let (way, stream) = match (self.side, self.listen, self.connect) {
            (Side::Host, Some(listen), _) => {
                let listener = listen.bind(port::BRIDGE).await;
                let mut listener = listener.context(|| "listen for the guest".into())?;
                let stream = listener.accept().await;
                (Direction::ToGuest, stream.context(|| "accept the guest's connection".into())?)
            }
            (Side::Guest, _, Some(dial)) => {
                let stream = dial.connect().await;
                (Direction::ToHost, stream.context(|| "dial the host".into())?)
            }
            _ => return Err(Error::input("--as", "takes --listen for host, --connect for guest")),
        };
        let patience = Duration::from_secs(self.timeout.into());
        let differences = play(&packets, way, stream, patience).await;
        let differences = differences.context(|| format!("play {}", self.file.display()))?;
        if global.json {
            let rows: Vec<_> = differences
                .iter()
                .map(|d| serde_json::json!({"frame": d.frame, "difference": d.text}))
                .collect();
            output::json(&rows)?;
        } else {
            for difference in &differences {
                output::line(format!("frame {}: {}", difference.frame, difference.text))?;
            }
        }
        Ok(u32::from(!differences.is_empty()))
    }
}
