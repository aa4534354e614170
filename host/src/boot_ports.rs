//! What a booting guest dials beside the bridge: port 1 for random bytes, port 109 with its log.
//!
//! A guest that dials neither is none the worse for it: ours takes its random bytes from the
//! machine, and its log goes where it was told.

use std::io;
use std::sync::Arc;

use linkspan_protocol::port;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinSet;
use tracing::{debug, error, info, trace, warn};

use crate::vmm::{Accept, PortListener, Vmm};

/// The target of the events that a guest's log becomes.
const GUEST: &str = "linkspan_host::guest";

/// The longest line of a log that is told, in bytes.
const LINE: u64 = 64 << 10;

/// Listens on both ports for as long as the machine runs. Where that cannot be, because somebody
/// else does, the guest is served by them. What listens holds on to the machine.
pub(crate) async fn serve(name: &str, vmm: &Arc<dyn Vmm>, tasks: &mut JoinSet<()>) {
    let entropy = vmm.listen(port::ENTROPY, Accept::Once).await;
    let log = vmm.listen(port::LOG, Accept::Many).await;
    let (name, vmm) = (name.to_owned(), Arc::clone(vmm));
    tasks.spawn(async move {
        let both = async {
            tokio::join!(
                async {
                    match entropy {
                        Ok(listener) => give_entropy(listener).await,
                        Err(error) => debug!(name, %error, "no random bytes for the guest"),
                    }
                },
                async {
                    match log {
                        Ok(listener) => take_log(&name, listener).await,
                        Err(error) => debug!(name, %error, "the guest's log is not taken"),
                    }
                }
            )
        };
        tokio::select! {
            _ = both => {}
            _ = vmm.exited() => {}
        }
    });
}

async fn give_entropy(mut listener: PortListener) {
    let Some(mut stream) = listener.accept().await else { return };
    // The guest has the kernel's own in any case.
    let mut bytes = [0; port::ENTROPY_LEN];
    if let Err(error) = getrandom::fill(&mut bytes) {
        return warn!(%error, "no random bytes for the guest");
    }
    if let Err(error) = stream.write_all(&bytes).await {
        debug!(%error, "the guest does not take its random bytes");
    }
}

async fn take_log(name: &str, mut listener: PortListener) {
    while let Some(stream) = listener.accept().await {
        log_of(name, stream).await;
    }
}

/// Tells what comes, until it ends.
async fn log_of(name: &str, stream: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(stream);
    while let Some(line) = next_line(&mut lines).await {
        match line {
            Line::Entry(entry) => tell(name, entry),
            // Such as a panic.
            Line::Text(text) => error!(target: GUEST, name, "{text}"),
            Line::TooLong => warn!(name, "a line of the guest's log is too long to be told"),
        }
    }
}

/// A line of a log.
#[derive(Debug, PartialEq)]
enum Line {
    Entry(Map<String, Value>),
    /// No object in JSON.
    Text(String),
    TooLong,
}

/// The next line that is not empty; `None` at the end.
async fn next_line(lines: &mut (impl AsyncBufRead + Unpin)) -> Option<Line> {
    loop {
        let mut line = Vec::new();
        if lines.take(LINE).read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        if line.len() as u64 == LINE && !line.ends_with(b"\n") {
            skip_line(lines).await.ok()?;
            return Some(Line::TooLong);
        }
        match serde_json::from_slice(&line) {
            Ok(Value::Object(entry)) => return Some(Line::Entry(entry)),
            _ if line.trim_ascii().is_empty() => {}
            _ => return Some(Line::Text(String::from_utf8_lossy(&line).trim_end().to_owned())),
        }
    }
}

/// Reads to the end of a line, and keeps nothing.
async fn skip_line(lines: &mut (impl AsyncBufRead + Unpin)) -> io::Result<()> {
    loop {
        let buffer = lines.fill_buf().await?;
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let len = end.map_or(buffer.len(), |end| end + 1);
        lines.consume(len);
        if end.is_some() || len == 0 {
            return Ok(());
        }
    }
}

fn tell(name: &str, mut entry: Map<String, Value>) {
    let mut text = |key: &str| match entry.remove(key) {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let (level, message, time) = (text("level"), text("msg"), text("time"));
    let fields = Value::Object(entry);
    macro_rules! say {
        ($say:ident) => {
            $say!(target: GUEST, name, time, %fields, "{message}")
        };
    }
    match level.as_str() {
        "trace" => say!(trace),
        "debug" => say!(debug),
        "info" => say!(info),
        "warning" | "warn" => say!(warn),
        // Whatever ends an agent is no more than an error here.
        _ => say!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_goes_on_after_lines_that_are_too_long_or_no_json() {
        let long = "x".repeat(200 << 10);
        let log = format!("{{\"msg\":\"a\"}}\nthread panicked\n\n{long}\n{{\"msg\":\"b\"}}\nend");
        let mut lines = BufReader::new(log.as_bytes());
        let entry = |msg: &str| Line::Entry(Map::from_iter([("msg".to_owned(), msg.into())]));
        for expected in [
            entry("a"),
            Line::Text("thread panicked".to_owned()),
            Line::TooLong,
            entry("b"),
            Line::Text("end".to_owned()),
        ] {
            assert_eq!(next_line(&mut lines).await, Some(expected));
        }
        assert_eq!(next_line(&mut lines).await, None);
    }
}
