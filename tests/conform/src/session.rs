//! The harness as a host: connections, requests, answers, within limits.

use std::collections::VecDeque;
use std::time::Duration;

use linkspan_protocol::frame::{Decoder, FrameError};
use linkspan_protocol::{HResult, Kind, MessageType, UVM_ID, port};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::environment::Environment;
pub use crate::observer::Response;
use crate::observer::{Asked, Echo, Observer, Seen};
use crate::run::Harness;
use crate::statement::{Need, Profile};
use crate::target::{PortListener, Target, Wire};
use crate::transcript::{Transcript, Way};
use crate::verdict::{Checked, Stop, ensure};
use crate::wire::frame;

/// The `ActivityId` of all requests that are not about it.
pub const ACTIVITY: &str = "6fb5e2a8-93d1-4c0a-b2f0-0d7f3a2c9b11";

/// How long an answer may take after a frame that breaks the rules.
const SPOILED: Duration = Duration::from_millis(150);

/// No frame of a peer is read beyond this: it is a defect already, and has been noted.
const READ_LIMIT: usize = 64 << 20;

/// The harness's end of one run.
#[derive(Debug)]
pub struct Session {
    /// The agent.
    pub target: Target,
    /// What there is beside it.
    pub environment: Environment,
    /// How strict we are.
    pub profile: Profile,
    /// How long an answer may take.
    pub answer: Duration,
    /// What went over the wire since the present check began.
    pub transcript: Transcript,
    pub(crate) observer: Observer,
    /// Why there is nothing to make containers of.
    pub(crate) unprepared: Option<String>,
    link: Option<Link>,
    next_id: u64,
    next_port: u32,
    names: u32,
    responses: VecDeque<Response>,
    pub(crate) notifications: VecDeque<Value>,
}

#[derive(Debug)]
struct Link {
    wire: Wire,
    decoder: Decoder,
    negotiated: bool,
}

impl Session {
    /// A session with nothing connected yet.
    pub fn new(target: Target, environment: Environment, profile: Profile) -> Self {
        Self {
            target,
            environment,
            profile,
            answer: Duration::from_secs(10),
            transcript: Transcript::default(),
            observer: Observer::default(),
            unprepared: None,
            link: None,
            next_id: 0,
            next_port: port::FIRST_STDIO,
            names: 0,
            responses: VecDeque::new(),
            notifications: VecDeque::new(),
        }
    }

    /// Gives the connection up.
    pub fn hang_up(&mut self) {
        if self.link.take().is_some() {
            self.transcript.note("the harness closes the connection");
        }
    }

    /// A connection on which nothing has been said.
    pub async fn fresh(&mut self) -> Checked {
        self.link = None;
        let limit = self.answer;
        let connected = timeout(limit, self.target.connect()).await;
        let Ok(connected) = connected else {
            let words = self.target.last_words().unwrap_or_default();
            return Err(Stop::fail(format!("the agent does not connect within {limit:?} {words}")));
        };
        let wire = connected.map_err(|error| Stop::fail(format!("connect: {error}")))?;
        self.transcript.note("connected");
        self.link = Some(Link { wire, decoder: Decoder::new(READ_LIMIT), negotiated: false });
        Ok(())
    }

    /// A connection on which version 4 has been agreed on.
    pub async fn ready(&mut self) -> Checked {
        if self.link.as_ref().is_some_and(|link| link.negotiated) {
            return Ok(());
        }
        self.fresh().await?;
        self.negotiate(4, 4).await?.ok()?;
        Ok(())
    }

    /// Asks for a range of versions.
    pub async fn negotiate(&mut self, minimum: u64, maximum: u64) -> Checked<Response> {
        let body = json!({"MinimumVersion": minimum, "MaximumVersion": maximum});
        let answer = self.call(MessageType::NEGOTIATE_PROTOCOL, "", body).await?;
        if let Some(link) = &mut self.link
            && answer.succeeded()
        {
            link.negotiated = true;
        }
        Ok(answer)
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> Checked {
        self.transcript.push(Way::Sent, bytes);
        let limit = self.answer;
        let link = self.link.as_mut().ok_or_else(|| Stop::fail("there is no connection"))?;
        let writing = async {
            link.wire.writer.write_all(bytes).await?;
            link.wire.writer.flush().await
        };
        match timeout(limit, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.lost(&format!("write to the agent: {error}"))),
            Err(_) => Err(Stop::fail(format!("the agent reads nothing for {limit:?}"))),
        }
    }

    fn lost(&mut self, what: &str) -> Stop {
        self.link = None;
        let words = self.target.last_words().unwrap_or_default();
        self.transcript.note(what);
        Stop::fail(format!("{what} {words}").trim_end().to_owned())
    }

    /// An id that no request has had.
    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Expects a response to a request that the check writes itself.
    pub(crate) fn expect(&mut self, id: u64, message_type: MessageType, echo: Echo) {
        self.observer.ask(id, Asked { message_type, echo });
    }

    /// Sends a frame with an id and a payload of the check's choice, and does not wait.
    pub async fn send(&mut self, message_type: MessageType, id: u64, payload: &[u8]) -> Checked {
        let document = serde_json::from_slice::<Value>(payload).ok().filter(Value::is_object);
        let echo = document.map_or(Echo::Any, |body| {
            Echo::Exactly(body["ActivityId"].as_str().unwrap_or_default().to_owned())
        });
        self.expect(id, message_type, echo);
        self.write(&frame(message_type, id, payload)).await
    }

    /// Sends a request and does not wait. Returns its id.
    pub async fn post(&mut self, kind: MessageType, target: &str, body: Value) -> Checked<u64> {
        let mut document = json!({"ContainerId": target, "ActivityId": ACTIVITY});
        if let (Some(document), Value::Object(body)) = (document.as_object_mut(), body) {
            document.extend(body);
        }
        let id = self.fresh_id();
        self.send(kind, id, document.to_string().as_bytes()).await?;
        Ok(id)
    }

    /// Sends a request and waits for its answer.
    pub async fn call(
        &mut self,
        kind: MessageType,
        target: &str,
        body: Value,
    ) -> Checked<Response> {
        let id = self.post(kind, target, body).await?;
        self.response_to(id).await
    }

    /// As [`call`](Self::call), for ModifySettings of the utility VM.
    pub async fn modify(&mut self, change: &str, kind: &str, settings: Value) -> Checked<Response> {
        let request = json!({"RequestType": change, "ResourceType": kind, "Settings": settings});
        self.call(MessageType::MODIFY_SETTINGS, UVM_ID, json!({"Request": request})).await
    }

    /// The answer to a request; others are kept.
    pub async fn response_to(&mut self, id: u64) -> Checked<Response> {
        let begun = Instant::now();
        loop {
            // Once frames are wrong, what is missing is hardly on its way.
            let spoiled = self.observer.has_violations();
            let patience = if spoiled { self.answer.min(SPOILED) } else { self.answer };
            let limit = begun + patience;
            if let Some(at) = self.responses.iter().position(|response| response.id == id) {
                return self.responses.remove(at).ok_or_else(|| Stop::fail("lost"));
            }
            if !self.pump(limit).await? {
                return Err(Stop::fail(format!("no answer to request {id} within {patience:?}")));
            }
        }
    }

    /// Whether a request stays without answer for so long.
    pub async fn stays_silent_on(&mut self, id: u64, long: Duration) -> Checked<bool> {
        let limit = Instant::now() + long;
        loop {
            if self.responses.iter().any(|response| response.id == id) {
                return Ok(false);
            }
            if !self.pump(limit).await? {
                return Ok(true);
            }
        }
    }

    /// The next notification for a container within `long`.
    pub async fn notification(
        &mut self,
        container: &str,
        long: Duration,
    ) -> Checked<Option<Value>> {
        let limit = Instant::now() + long;
        loop {
            let for_it = |body: &Value| body["ContainerId"] == container;
            if let Some(at) = self.notifications.iter().position(for_it) {
                return Ok(self.notifications.remove(at));
            }
            if !self.pump(limit).await? {
                return Ok(None);
            }
        }
    }

    /// Whether any byte comes within `long`; frames are kept.
    pub async fn says_something(&mut self, long: Duration) -> Checked<bool> {
        let before = self.transcript.entries().len();
        self.pump(Instant::now() + long).await?;
        Ok(self.transcript.entries().len() > before)
    }

    /// Waits for the agent to close the connection. What it says before is not looked at.
    pub async fn closed_by_agent(&mut self) -> Checked {
        let limit = self.answer;
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut buffer = vec![0; 16 << 10];
        let closed = timeout(limit, async {
            while let Ok(1..) = link.wire.reader.read(&mut buffer).await {}
        })
        .await;
        self.link = None;
        ensure!(closed.is_ok(), "the agent keeps a connection that it cannot follow for {limit:?}");
        self.transcript.note("the agent closes the connection");
        Ok(())
    }

    /// Reads until at least one frame has come; `false` at the limit.
    async fn pump(&mut self, limit: Instant) -> Checked<bool> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if self.take_frames()? {
                return Ok(true);
            }
            let link = self.link.as_mut().ok_or_else(|| Stop::fail("there is no connection"))?;
            let len = match timeout_at(limit, link.wire.reader.read(&mut buffer)).await {
                Err(_) => return Ok(false),
                Ok(Ok(0)) => return Err(self.lost("the agent closes the connection")),
                Ok(Ok(len)) => len,
                Ok(Err(error)) => return Err(self.lost(&format!("read from the agent: {error}"))),
            };
            link.decoder.push(&buffer[..len]);
        }
    }

    fn take_frames(&mut self) -> Checked<bool> {
        let mut any = false;
        let Some(link) = &mut self.link else { return Ok(false) };
        loop {
            match link.decoder.next_frame() {
                Ok(None) => return Ok(any),
                Ok(Some(next)) => {
                    any = true;
                    let bytes = frame(next.message_type, next.id, &next.payload);
                    self.transcript.push(Way::Received, &bytes);
                    match self.observer.look(&next) {
                        Seen::Response(response) => self.responses.push_back(response),
                        Seen::Notification(body) => self.notifications.push_back(body),
                        Seen::Noise => {}
                    }
                }
                Err(FrameError { size, message_type, id, .. }) => {
                    let text = format!("{message_type} (id {id}) claims {size} bytes");
                    // A type that makes sense the other way round is in the other byte order.
                    let turned = MessageType(message_type.0.swap_bytes()).kind();
                    let statement = if turned == Kind::Response { 4 } else { 5 };
                    self.observer.violation(statement, text.clone());
                    return Err(self.lost(&text));
                }
            }
        }
    }

    /// A name that no container of this run has.
    pub fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("conform-{what}-{}-{}", std::process::id(), self.names)
    }

    /// Listens on fresh ports, in their order.
    pub async fn listen<const N: usize>(&mut self) -> Checked<([u32; N], Vec<PortListener>)> {
        let listen = self.target.stdio().cloned();
        let listen =
            listen.ok_or_else(|| Stop::Skip("stdio would not reach the harness".into()))?;
        let ports = std::array::from_fn(|index| self.next_port + index as u32);
        self.next_port += N as u32;
        let mut listeners = Vec::with_capacity(N);
        for port in ports {
            listeners.push(listen.bind(port).await?);
        }
        Ok((ports, listeners))
    }

    /// Accepts one connection within the limit of an answer.
    pub async fn accept(&mut self, listener: &mut PortListener) -> Checked<hyperv_socket::Stream> {
        let limit = self.answer;
        match timeout(limit, listener.accept()).await {
            Ok(accepted) => Ok(accepted?),
            Err(_) => Err(Stop::fail(format!("the agent does not dial within {limit:?}"))),
        }
    }

    /// Everything of a stream, within the limit of an answer.
    pub async fn read_all(&mut self, stream: &mut hyperv_socket::Stream) -> Checked<Vec<u8>> {
        let (limit, mut bytes) = (self.answer, Vec::new());
        match timeout(limit, stream.read_to_end(&mut bytes)).await {
            Ok(Ok(_)) => Ok(bytes),
            Ok(Err(error)) => Err(Stop::fail(format!("read a stream: {error}"))),
            Err(_) => Err(Stop::fail(format!("a stream does not end within {limit:?}"))),
        }
    }
}

impl Harness for Session {
    const SIDE: &'static str = "guest";

    fn profile(&self) -> Profile {
        self.profile
    }

    /// What earlier checks left unread is forgotten.
    fn begin(&mut self, _statement: u32) {
        self.transcript = Transcript::default();
        self.responses.clear();
        self.notifications.clear();
        if self.target.redials() {
            self.link = None;
        }
    }

    fn lacks(&self, needs: &[Need]) -> Option<String> {
        let need = self.environment.lacks(needs, &self.target)?;
        let why = self.unprepared.clone().filter(|_| self.environment.layer_disk.is_some());
        Some(why.unwrap_or_else(|| need.missing().to_owned()))
    }

    fn give_up(&mut self) {
        self.hang_up();
    }

    fn violations(&mut self) -> Vec<(u32, String)> {
        self.observer.take()
    }

    fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    fn describe(&self) -> String {
        self.target.describe()
    }
}

impl Response {
    /// Fails unless it says success.
    pub fn ok(&self) -> Checked {
        ensure!(self.succeeded(), "expected success: {}", self.body);
        Ok(())
    }

    /// Fails unless it says that code.
    pub fn fault(&self, code: HResult) -> Checked {
        ensure!(self.is(code), "expected R={code}: {}", self.body);
        Ok(())
    }

    /// Fails unless it says any code.
    pub fn refused(&self) -> Checked {
        ensure!(!self.succeeded(), "expected a failure: {}", self.body);
        Ok(())
    }
}
