//! `linkspan record`: between a host and a guest.

use std::fs::File;
use std::path::PathBuf;

use clap::Args;
use linkspan_conform::record::{Host, Recorder};
use linkspan_conform::target::Listen;

use crate::error::{Context, Error};

/// Record what a host and a guest say to each other
///
/// Sits between the two: the guest dials it where it would dial its host, and it dials the host.
/// The bridge and all stdio streams are passed on and written to a pcapng file, until it is
/// interrupted.
#[derive(Args, Debug)]
#[command(after_help = "\
Example, with a host that listens at Unix sockets /tmp/host.sock_PORT and a guest that is told to
dial /tmp/guest.sock_PORT:
  linkspan record --guest hybrid:/tmp/guest.sock --host hybrid:/tmp/host.sock run.pcapng
  linkspan decode run.pcapng")]
pub(crate) struct Record {
    /// Where the guest dials: hybrid:PATH, vsock:CID, vsock:any or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Listen>())]
    guest: Listen,
    /// Where the host listens: hybrid:PATH, vsock:CID or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Host>())]
    host: Host,
    /// The capture; it is whole up to the last packet at any time
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Record {
    pub(crate) async fn run(self) -> Result<u32, Error> {
        let file =
            File::create(&self.file).context(|| format!("create {}", self.file.display()))?;
        tokio::select! {
            ended = Recorder::run(self.guest, self.host, file) => {
                ended.context(|| format!("record into {}", self.file.display()))?;
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context(|| "wait for an interruption".into())?;
            }
        }
        Ok(0)
    }
}
