//! The host's end of one connection, for any number of requests at a time. Frames are not judged
//! here: that is what a conformance run is for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use linkspan_protocol::frame::Decoder;
use linkspan_protocol::{Kind, MessageType};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex as Lock, oneshot};
use tokio::task::JoinHandle;

use crate::session::ACTIVITY;
use crate::target::Wire;
use crate::wire::frame;

/// No answer is longer.
const LIMIT: usize = 1 << 20;

type Answered = (Instant, Vec<u8>);

/// The host's end.
pub(super) struct Bridge {
    writer: Lock<Box<dyn AsyncWrite + Send + Unpin>>,
    waiting: Arc<Waiting>,
    reader: JoinHandle<()>,
    next_id: AtomicU64,
    patience: Duration,
}

#[derive(Default)]
struct Waiting {
    calls: Mutex<HashMap<u64, oneshot::Sender<Answered>>>,
    /// Why there will be no more answers.
    ended: Mutex<Option<String>>,
}

impl Waiting {
    fn calls(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answered>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> MutexGuard<'_, Option<String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bridge {
    /// A bridge on which version 4 has been agreed on.
    pub(super) async fn negotiate(wire: Wire, patience: Duration) -> Result<Self, String> {
        let waiting = Arc::new(Waiting::default());
        let reader = tokio::spawn(read(wire.reader, Arc::clone(&waiting)));
        let (writer, next_id) = (Lock::new(wire.writer), AtomicU64::new(0));
        let bridge = Self { writer, waiting, reader, next_id, patience };
        let versions = json!({"MinimumVersion": 4, "MaximumVersion": 4});
        bridge.call(MessageType::NEGOTIATE_PROTOCOL, "", versions).await?;
        Ok(bridge)
    }

    /// Sends a request, and waits for an answer of any kind. Returns how long it took, too.
    pub(super) async fn ask(
        &self,
        kind: MessageType,
        target: &str,
        body: Value,
    ) -> Result<(Value, Duration), String> {
        let mut document = json!({"ContainerId": target, "ActivityId": ACTIVITY});
        if let (Some(document), Value::Object(body)) = (document.as_object_mut(), body) {
            document.extend(body);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let bytes = frame(kind, id, document.to_string().as_bytes());
        let (sender, answer) = oneshot::channel();
        self.waiting.calls().insert(id, sender);
        if let Some(why) = self.waiting.ended().clone() {
            return Err(format!("{kind}: {why}"));
        }
        let begun = Instant::now();
        {
            let mut writer = self.writer.lock().await;
            let written = async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            };
            written.await.map_err(|error| format!("write {kind}: {error}"))?;
        }
        let answered = tokio::time::timeout(self.patience, answer).await;
        let answered = answered.map_err(|_| {
            self.waiting.calls().remove(&id);
            format!("{kind} is not answered within {:?}", self.patience)
        })?;
        let (at, payload) = answered.map_err(|_| {
            let why = self.waiting.ended().clone().unwrap_or_default();
            format!("{kind}: {why}")
        })?;
        let body = serde_json::from_slice(&payload)
            .map_err(|error| format!("the answer to {kind} is no JSON: {error}"))?;
        Ok((body, at.saturating_duration_since(begun)))
    }

    /// As [`ask`](Self::ask), for what has to succeed.
    pub(super) async fn call(
        &self,
        kind: MessageType,
        target: &str,
        body: Value,
    ) -> Result<Value, String> {
        let (body, _) = self.ask(kind, target, body).await?;
        match body["Result"].as_i64() {
            Some(0) => Ok(body),
            result => {
                let code = result.and_then(|code| i32::try_from(code).ok()).unwrap_or_default();
                let said = body["ErrorMessage"].as_str().unwrap_or_default();
                Err(format!("{kind} is answered {code:#010x}: {said}"))
            }
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(mut from: Box<dyn AsyncRead + Send + Unpin>, waiting: Arc<Waiting>) {
    let mut decoder = Decoder::new(LIMIT);
    let mut buffer = vec![0; 64 << 10];
    let why = loop {
        let len = match from.read(&mut buffer).await {
            Ok(0) => break "the agent has closed the connection".to_owned(),
            Ok(len) => len,
            Err(error) => break format!("read from the agent: {error}"),
        };
        let now = Instant::now();
        decoder.push(&buffer[..len]);
        let failed = loop {
            match decoder.next_frame() {
                Ok(Some(next)) if next.message_type.kind() == Kind::Response => {
                    if let Some(call) = waiting.calls().remove(&next.id) {
                        let _ = call.send((now, next.payload));
                    }
                }
                // Notifications are nobody's business here.
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        if let Some(error) = failed {
            break error;
        }
    };
    *waiting.ended() = Some(why);
    waiting.calls().clear();
}
