//! `linkspan logs`: what detached containers and utility VMs have written.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use clap::Args;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;

use super::UvmName;
use crate::client;
use crate::control::Request;
use crate::error::{Context, Error};
use crate::options::Global;
use crate::relay::Streams;
use crate::signals::Signals;

/// The longest piece of a line that becomes one JSON object, in bytes.
const LINE: u64 = 64 << 10;

/// Print what a detached container has written
///
/// Its stdout to stdout, its stderr to stderr; the last 8 MiB are kept. Without CONTAINER, the end
/// of the utility VM's console. With --json each line becomes an object of its own, with "stream" and
/// "text"; what is not UTF-8 is replaced.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan logs web
  linkspan logs -f --uvm dev web
  linkspan logs --uvm dev")]
pub(crate) struct Logs {
    #[command(flatten)]
    uvm: UvmName,
    /// Go on until it has exited
    #[arg(short, long, requires = "container")]
    follow: bool,
    /// Which container
    container: Option<String>,
}

impl Logs {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        let place = self.uvm.place()?;
        let console = self.container.is_none();
        let request = Request::Log { container: self.container, follow: self.follow };
        let mut signals = Signals::take_over()?;
        let printing = async {
            let streams = client::log(&place, &request).await?;
            match global.json {
                true => print_objects(streams, if console { "console" } else { "stdout" }).await,
                false => relay(streams).await,
            }
        };
        match signals.interrupt(printing).await {
            // The usual way to leave a log that is followed.
            Err(Error::Interrupted(signal)) if self.follow => Ok(128 + signal.unsigned_abs()),
            outcome => outcome.map(|()| 0),
        }
    }
}

async fn relay(streams: Streams) -> Result<(), Error> {
    streams.relay().context(|| "relay the log".into())?.finished().await;
    Ok(())
}

/// `stdout` is what its stdout is called.
async fn print_objects(streams: Streams, stdout: &str) -> Result<(), Error> {
    let print = async |socket: Option<OwnedFd>, name: &str| {
        let Some(socket) = socket else { return Ok(()) };
        let mut from = BufReader::new(stream(socket).context(|| "read the log".into())?);
        while let Some(text) = line(&mut from).await.context(|| "read the log".into())? {
            let what = || "write to stdout".to_owned();
            writeln!(io::stdout().lock(), "{}", json!({ "stream": name, "text": text }))
                .context(what)?;
        }
        Ok(())
    };
    match tokio::try_join!(print(streams.stdout, stdout), print(streams.stderr, "stderr")) {
        // Nobody reads it any more.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map(drop),
    }
}

fn stream(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// The next line without its end, or as much of it as is allowed at once.
async fn line(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if from.take(LINE).read_until(b'\n', &mut bytes).await? == 0 {
        return Ok(None);
    }
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_told_one_by_one_and_long_ones_in_pieces() {
        let long = "x".repeat(LINE as usize);
        let text = format!("a\n\n\u{fc}\n{long}y\nlast");
        let mut from = text.as_bytes();
        let mut told = Vec::new();
        while let Some(line) = line(&mut from).await.unwrap() {
            told.push(line);
        }
        assert_eq!(told, ["a", "", "\u{fc}", &long, "y", "last"]);
    }
}
