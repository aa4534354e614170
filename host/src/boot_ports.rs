//! What a booting guest dials beside the bridge: port 1 for random bytes, port 109 with its log.
//!
//! A guest that dials neither is none the worse for it: ours takes its random bytes from the
//! machine, and its log goes where it was told.

use std::sync::Arc;

use hyperv_socket::Stream;
use linkspan_protocol::port;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tracing::{debug, error, info, trace, warn};

use crate::vmm::{Accept, PortListener, Vmm};

/// The longest line of a log, in bytes; the rest of it is another line.
const LINE: u64 = 64 << 10;

/// How much is kept of what an agent says last.
const LAST_WORDS: usize = 64 << 10;

/// Listens on both ports for as long as the machine runs. Where that cannot be, because somebody
/// else does, the guest is served by them.
pub(crate) async fn serve(name: &str, vmm: &Arc<dyn Vmm>) {
    let entropy = vmm.listen(port::ENTROPY, Accept::Once).await;
    let log = vmm.listen(port::LOG, Accept::Many).await;
    let (name, vmm) = (name.to_owned(), Arc::clone(vmm));
    tokio::spawn(async move {
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

/// Tells what comes, until it ends. What is no JSON is the last that an agent says, such as a panic.
async fn log_of(name: &str, stream: Stream) {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match (&mut lines).take(LINE).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        match serde_json::from_slice(&line) {
            Ok(Value::Object(entry)) => tell(name, entry),
            _ if line.trim_ascii().is_empty() => {}
            _ => return last_words(name, line, lines).await,
        }
    }
}

async fn last_words(name: &str, mut said: Vec<u8>, mut rest: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(len @ 1..) = rest.read(&mut buffer).await {
        let room = LAST_WORDS.saturating_sub(said.len());
        said.extend_from_slice(&buffer[..len.min(room)]);
    }
    let said = String::from_utf8_lossy(&said);
    error!(target: "linkspan_host::guest", name, said = said.trim_end(), "the guest agent's last words");
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
            $say!(target: "linkspan_host::guest", name, time, %fields, "{message}")
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
