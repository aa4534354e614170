//! What containerd is told, in the order in which it happened.
//!
//! Events go to containerd's ttrpc socket; where it has none (`TTRPC_ADDRESS` is not set), through
//! its binary. One that cannot be delivered is tried again, and holds up those behind it: containerd
//! may be restarting.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::context::{self, Context};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::arguments::Arguments;
use crate::error::Error;
use crate::timestamp;

/// How often an event is tried.
const TRIES: u32 = 5;

/// How long one try may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Where events are handed in.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    namespace: String,
    queue: mpsc::UnboundedSender<Entry>,
}

#[derive(Debug)]
enum Entry {
    Event(Box<Envelope>),
    /// All before it have been delivered or given up.
    Flush(oneshot::Sender<()>),
}

impl Events {
    /// Delivers what is handed in, from now on.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let (queue, entries) = mpsc::unbounded_channel();
        let namespace = arguments.namespace.clone();
        let address = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
        let route = match address {
            Some(address) => Route::Socket { address, client: None },
            None => Route::Binary {
                program: arguments.publish_binary.clone(),
                address: arguments.address.clone(),
            },
        };
        tokio::spawn(deliver(route, entries));
        Self { namespace, queue }
    }

    /// For what containerd is not to hear of: nothing is delivered.
    pub(crate) fn silent() -> Self {
        let (queue, _) = mpsc::unbounded_channel();
        Self { namespace: String::new(), queue }
    }

    /// Hands an event in.
    pub(crate) fn publish<M: MessageFull>(&self, topic: &str, event: &M) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return warn!(topic, %error, "an event cannot be written"),
        };
        let type_url = M::descriptor().full_name().to_owned();
        let envelope = Envelope {
            timestamp: timestamp::now(),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any { type_url, value, ..Any::default() }).into(),
            ..Envelope::default()
        };
        // Only a server that ends delivers nothing more.
        let _ = self.queue.send(Entry::Event(Box::new(envelope)));
    }

    /// Waits until all that has been handed in is delivered, or given up.
    pub(crate) async fn flushed(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Entry::Flush(done)).is_ok() {
            let _ = flushed.await;
        }
    }
}

/// The way to containerd.
enum Route {
    Socket { address: String, client: Option<EventsClient> },
    Binary { program: PathBuf, address: String },
}

async fn deliver(mut route: Route, mut entries: mpsc::UnboundedReceiver<Entry>) {
    while let Some(entry) = entries.recv().await {
        let envelope = match entry {
            Entry::Event(envelope) => envelope,
            Entry::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        for attempt in 1..=TRIES {
            let sent = tokio::time::timeout(LIMIT, route.send(&envelope)).await;
            let error = match sent {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            warn!(topic = envelope.topic, attempt, error, "an event was not delivered");
            if attempt < TRIES {
                tokio::time::sleep(Duration::from_secs(attempt.into())).await;
            }
        }
    }
}

impl Route {
    async fn send(&mut self, envelope: &Envelope) -> Result<(), Error> {
        match self {
            Self::Socket { address, client } => {
                let used = match client.take() {
                    Some(client) => client,
                    None => EventsClient::new(Client::connect(&format!("unix://{address}")).await?),
                };
                let request = ForwardRequest {
                    envelope: Some(envelope.clone()).into(),
                    ..ForwardRequest::default()
                };
                used.forward(in_namespace(&envelope.namespace), &request).await?;
                *client = Some(used);
                Ok(())
            }
            Self::Binary { program, address } => {
                let event = envelope.event.write_to_bytes();
                let event = event.map_err(|error| Error::input("event", error.to_string()))?;
                let what = || format!("run {}", program.display());
                let mut child = Command::new(&*program)
                    .args(["--address", address, "publish", "--topic", &envelope.topic])
                    .args(["--namespace", &envelope.namespace])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .spawn()
                    .map_err(Error::io(what()))?;
                if let Some(mut stdin) = child.stdin.take() {
                    stdin.write_all(&event).await.map_err(Error::io(what()))?;
                }
                match child.wait().await.map_err(Error::io(what()))? {
                    status if status.success() => Ok(()),
                    status => Err(Error::Machine(format!("{}: {status}", what()))),
                }
            }
        }
    }
}

fn in_namespace(namespace: &str) -> Context {
    let mut context = context::with_duration(LIMIT);
    context.add("containerd-namespace-ttrpc".to_owned(), namespace.to_owned());
    context
}
