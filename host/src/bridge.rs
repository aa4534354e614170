//! Pumps [`linkspan_protocol::Client`] over the guest's connections.
//!
//! One task reads, writes and watches the clock; callers meet it through a channel of oneshots.
//! When the connection is lost, the guest has a while to make a new one: calls stay pending, the
//! version is negotiated anew, late answers come on it. A guest agent that had to be started again
//! says so in that negotiation; what was pending then fails, for nobody will answer it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hyperv_socket::{ReadHalf, Stream, WriteHalf};
use linkspan_protocol::client::CloseReason;
use linkspan_protocol::message::{
    Capabilities, ContainerId, NegotiateProtocol, NegotiateProtocolResponse, Notification,
    NotificationType, Procedure,
};
use linkspan_protocol::{CallError, CallId, Client, ClientEvent, Reply, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot, watch};
use tracing::{debug, info, warn};

use crate::vmm::PortListener;
use crate::{Error, Result};

/// How long a guest has for an answer, unless a call says otherwise.
const ANSWER: Duration = Duration::from_secs(300);

/// How long a guest may stay away after a lost connection.
const RECONNECT: Duration = Duration::from_secs(15);

/// How long the reason for a machine's end may take to arrive.
const LAST_WORD: Duration = Duration::from_secs(2);

/// How long a connected guest has to negotiate.
const NEGOTIATION: Duration = Duration::from_secs(30);

/// The host's end of a bridge. Cheap to clone; the last clone closes it.
#[derive(Clone, Debug)]
pub(crate) struct Bridge {
    shared: Arc<Shared>,
    _alive: Arc<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or to stop for.
    changed: Notify,
    closed: watch::Sender<Option<CloseReason>>,
}

#[derive(Debug)]
struct State {
    client: Client,
    waiting: HashMap<CallId, oneshot::Sender<Result<Reply, CallError>>>,
    /// Containers whose end somebody wants to know: true once it has come.
    exits: HashMap<String, watch::Sender<bool>>,
    /// How many processes containers have lost for want of memory.
    oom_kills: HashMap<String, watch::Sender<u64>>,
    capabilities: Capabilities,
}

impl Bridge {
    /// Negotiates on a guest's first connection; `listener` brings any further one.
    pub(crate) async fn establish(stream: Stream, listener: PortListener) -> Result<Self> {
        let state = State {
            client: Client::resuming(session()),
            waiting: HashMap::new(),
            exits: HashMap::new(),
            oom_kills: HashMap::new(),
            capabilities: Capabilities::default(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Notify::new(),
            closed: watch::Sender::new(None),
        });
        let (mut read, mut write) = stream.into_split();
        let capabilities = shared.negotiate(&mut read, &mut write).await?.capabilities;
        info!(?capabilities, "negotiated");
        shared.lock().capabilities = capabilities;
        let (alive, dropped) = oneshot::channel();
        tokio::spawn(run(Arc::clone(&shared), (read, write), listener, dropped));
        Ok(Self { shared, _alive: Arc::new(alive) })
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.shared.lock().capabilities.clone()
    }

    /// Asks the guest for something and waits for the answer, for at most five minutes. A guest that
    /// takes longer is given up, and the bridge with it.
    pub(crate) async fn call<P: Procedure>(
        &self,
        container: &ContainerId,
        request: &P,
        what: impl FnOnce() -> String,
    ) -> Result<P::Response> {
        let answer = self.call_within(container, request, Some(ANSWER), what).await;
        if let Err(error @ Error::TimedOut { .. }) = &answer {
            self.close(CloseReason::Transport(error.to_string()));
        }
        answer
    }

    /// As [`call`](Self::call), with another limit or none. A caller that stops waiting takes
    /// the request back as far as that goes: a late answer is passed over.
    pub(crate) async fn call_within<P: Procedure>(
        &self,
        container: &ContainerId,
        request: &P,
        limit: Option<Duration>,
        what: impl FnOnce() -> String,
    ) -> Result<P::Response> {
        let (sender, answer) = oneshot::channel();
        let call = {
            let mut state = self.shared.lock();
            let deadline = limit.map(|limit| Instant::now() + limit);
            let call = state.client.call(container.clone(), request, deadline);
            state.waiting.insert(call, sender);
            self.shared.deliver(&mut state);
            call
        };
        self.shared.changed.notify_one();
        let mut abandon = Abandon { shared: &self.shared, call: Some(call) };
        let outcome = answer.await.unwrap_or(Err(CallError::Closed { reason: CloseReason::Local }));
        abandon.call = None;
        let seconds = limit.unwrap_or_default().as_secs();
        match outcome {
            Ok(reply) => reply
                .decode::<P>()
                .map_err(|error| Error::Answer { what: what(), reason: error.to_string() }),
            Err(error) => Err(Error::from_call(what(), seconds, error)),
        }
    }

    /// Becomes true when the guest says that the container has exited, or when the bridge ends.
    pub(crate) fn container_exit(&self, id: &str) -> watch::Receiver<bool> {
        let mut state = self.shared.lock();
        let ended = state.client.closed().is_some();
        let sender = state.exits.entry(id.to_owned()).or_insert_with(|| watch::Sender::new(false));
        if ended {
            sender.send_replace(true);
        }
        sender.subscribe()
    }

    /// How many processes the container has lost for want of memory, as it is told. Guests that
    /// are not Linkspan's never tell.
    pub(crate) fn oom_kills(&self, id: &str) -> watch::Receiver<u64> {
        let mut state = self.shared.lock();
        state.oom_kills.entry(id.to_owned()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    pub(crate) fn forget_container(&self, id: &str) {
        let mut state = self.shared.lock();
        state.exits.remove(id);
        state.oom_kills.remove(id);
    }

    /// Ends the bridge; every call fails with `reason`.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.shared.close(reason);
    }

    /// For whoever only ever ends it.
    pub(crate) fn downgrade(&self) -> Closing {
        Closing(Arc::downgrade(&self.shared))
    }

    /// Waits for the bridge's end.
    pub(crate) async fn closed(&self) -> CloseReason {
        let mut closed = self.shared.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(CloseReason::Local),
            Err(_) => CloseReason::Local,
        }
    }
}

/// A number that no other bridge has.
fn session() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Each `RandomState` has keys of its own, of the system's randomness.
    RandomState::new().hash_one(std::process::id()) | 1
}

/// A handle that keeps nothing open.
pub(crate) struct Closing(std::sync::Weak<Shared>);

impl Closing {
    pub(crate) fn close(&self, reason: CloseReason) {
        if let Some(shared) = self.0.upgrade() {
            shared.close(reason);
        }
    }
}

struct Abandon<'a> {
    shared: &'a Shared,
    call: Option<CallId>,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call {
            let mut state = self.shared.lock();
            state.client.abandon(call);
            state.waiting.remove(&call);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half done in here.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Hands what has happened to those who wait for it.
    fn deliver(&self, state: &mut State) {
        while let Some(event) = state.client.poll_event() {
            match event {
                ClientEvent::Answered { call, outcome } => match state.waiting.remove(&call) {
                    Some(waiting) => drop(waiting.send(outcome)),
                    None => debug!(?call, "nobody waits for this answer any more"),
                },
                ClientEvent::Notified(notification) => notified(state, &notification),
                ClientEvent::Closed(reason) => {
                    for exit in state.exits.values() {
                        exit.send_replace(true);
                    }
                    self.closed.send_replace(Some(reason));
                }
            }
        }
    }

    fn close(&self, reason: CloseReason) {
        let mut state = self.lock();
        state.client.close(reason);
        self.deliver(&mut state);
        drop(state);
        self.changed.notify_one();
    }

    /// The first exchange on a connection. Nothing else may be written before it is over;
    /// answers from before may come while it lasts.
    async fn negotiate(
        &self,
        read: &mut ReadHalf,
        write: &mut WriteHalf,
    ) -> Result<NegotiateProtocolResponse> {
        let what = || "negotiate with the guest".to_owned();
        let (sender, mut answer) = oneshot::channel();
        let (call, frame) = {
            let mut state = self.lock();
            let request = state.client.negotiation();
            let (call, frame) = state.client.call_now(ContainerId::none(), &request);
            state.waiting.insert(call, sender);
            (call, frame)
        };
        // One that was not answered means nothing on another connection.
        let _abandon = Abandon { shared: self, call: Some(call) };
        let exchange = async {
            let io = |source| Error::Io { what: what(), source };
            write.write_all(&frame).await.map_err(io)?;
            let mut buffer = vec![0; 16 << 10];
            loop {
                match answer.try_recv() {
                    Ok(outcome) => {
                        let reply = outcome.map_err(|error| Error::from_call(what(), 0, error))?;
                        return reply.decode::<NegotiateProtocol>().map_err(|error| {
                            Error::Answer { what: what(), reason: error.to_string() }
                        });
                    }
                    Err(oneshot::error::TryRecvError::Empty) => {}
                    Err(oneshot::error::TryRecvError::Closed) => {
                        return Err(Error::Closed { what: what(), reason: CloseReason::Local });
                    }
                }
                let len = read.read(&mut buffer).await.map_err(io)?;
                if len == 0 {
                    return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
                }
                let mut state = self.lock();
                // A violation has closed the bridge, which the next look at `answer` tells.
                let _ = state.client.handle_input(&buffer[..len], Instant::now());
                self.deliver(&mut state);
            }
        };
        let late = |_| Error::TimedOut { what: what(), seconds: NEGOTIATION.as_secs() };
        let response: NegotiateProtocolResponse =
            tokio::time::timeout(NEGOTIATION, exchange).await.map_err(late)??;
        if response.version != VERSION {
            let reason = format!("it chose version {}, not {VERSION}", response.version);
            return Err(Error::Answer { what: what(), reason });
        }
        let system = &response.capabilities.runtime_os_type;
        if system.is_empty() || system.eq_ignore_ascii_case("windows") {
            let reason = format!("its RuntimeOsType is {system:?}: a Windows guest's");
            return Err(Error::Answer { what: what(), reason });
        }
        Ok(response)
    }
}

fn notified(state: &mut State, notification: &Notification) {
    let id = notification.container_id.as_str();
    if notification.kind == NotificationType::LinkspanOomKill {
        let count = notification.result_info.as_ref().and_then(|info| info.0["OomKills"].as_u64());
        if let (Some(count), Some(kills)) = (count, state.oom_kills.get(id)) {
            kills.send_replace(count);
        }
        return;
    }
    match state.exits.get(id) {
        Some(exit) => drop(exit.send_replace(true)),
        None => warn!(id, "the guest tells of the exit of a container that nobody knows"),
    }
}

/// Serves connections until nobody has the bridge any more, or the guest stays away.
async fn run(
    shared: Arc<Shared>,
    mut connection: (ReadHalf, WriteHalf),
    mut listener: PortListener,
    mut dropped: oneshot::Receiver<()>,
) {
    loop {
        let ended = tokio::select! {
            ended = exchange(&shared, &mut connection) => ended,
            _ = &mut dropped => return shared.close(CloseReason::Local),
        };
        if shared.lock().client.closed().is_some() {
            return;
        }
        warn!(%ended, "lost the connection to the guest");
        let again = tokio::select! {
            again = tokio::time::timeout(RECONNECT, listener.accept()) => again.ok().flatten(),
            _ = &mut dropped => return shared.close(CloseReason::Local),
        };
        let Some(stream) = again else {
            // Where the machine has ended, whoever watches it knows a better reason.
            let mut closed = shared.closed.subscribe();
            let _ = tokio::time::timeout(LAST_WORD, closed.wait_for(Option::is_some)).await;
            return shared.close(CloseReason::Transport(ended));
        };
        shared.lock().client.reconnect();
        connection = stream.into_split();
        let (read, write) = &mut connection;
        match shared.negotiate(read, write).await {
            Ok(response) => renegotiated(&shared, response),
            // The guest will be back; only a guest that says what it should not is given up.
            Err(error @ Error::Io { .. }) => warn!(%error, "lost the guest in the negotiation"),
            Err(error) => return shared.close(CloseReason::Transport(error.to_string())),
        }
    }
}

fn renegotiated(shared: &Shared, response: NegotiateProtocolResponse) {
    let NegotiateProtocolResponse { capabilities, linkspan, .. } = response;
    let mut state = shared.lock();
    let restarts = |of: &Capabilities| of.guest_defined_capabilities.linkspan_restarts;
    if restarts(&capabilities) != restarts(&state.capabilities) {
        let reason = "the guest agent broke and was started again".to_owned();
        warn!("{reason}");
        state.client.fail_pending(&CloseReason::Transport(reason));
        for exit in state.exits.values() {
            exit.send_replace(true);
        }
    } else {
        info!("the guest is connected again");
        state.client.resume(&linkspan.unwrap_or_default());
    }
    state.capabilities = capabilities;
    shared.deliver(&mut state);
}

/// Reads and writes until one of the two ends; returns why.
async fn exchange(shared: &Shared, (read, write): &mut (ReadHalf, WriteHalf)) -> String {
    let receive = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => return "the guest closed the connection".to_owned(),
                Ok(len) => {
                    let mut state = shared.lock();
                    let handled = state.client.handle_input(&buffer[..len], Instant::now());
                    shared.deliver(&mut state);
                    drop(state);
                    shared.changed.notify_one();
                    if let Err(violation) = handled {
                        return violation.to_string();
                    }
                }
                Err(error) => return error.to_string(),
            }
        }
    };
    let transmit = async {
        loop {
            let (frame, deadline) = {
                let mut state = shared.lock();
                if state.client.closed().is_some() {
                    return "the bridge is closed".to_owned();
                }
                state.client.handle_timeout(Instant::now());
                shared.deliver(&mut state);
                (state.client.poll_transmit(), state.client.next_timeout())
            };
            if let Some(frame) = frame {
                if let Err(error) = write.write_all(&frame).await {
                    return error.to_string();
                }
                continue;
            }
            tokio::select! {
                () = shared.changed.notified() => {}
                () = until(deadline) => {}
            }
        }
    };
    tokio::select! {
        ended = receive => ended,
        ended = transmit => ended,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
