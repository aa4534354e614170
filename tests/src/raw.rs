//! A host that speaks the bridge by hand: frames, not requests.
//!
//! It checks of every response what holds for all of them, so a scenario says only what is its
//! own.

mod container;
mod frame;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use hyperv_socket::{Listener, Local, Stream};
use linkspan_host::vmm::{Disk, ScsiAddress};
use linkspan_host::{Backend, Builder, Machine};
use linkspan_protocol::frame::{Decoder, HOST_LIMIT};
use linkspan_protocol::{MessageType, UVM_ID, port};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

pub use container::{Finished, read_all};
pub use frame::Response;
pub use linkspan_conform::wire::{document, frame, hresult, pipes, process};

use crate::machine::{layer_image, machine};

/// No answer takes this long.
const ANSWER: Duration = Duration::from_secs(30);

/// Where the base layer is in the guest.
const BASE: &str = "/run/layers/base";

/// A machine whose guest we are the host of.
#[derive(Debug)]
pub struct RawHost {
    machine: Machine,
    bridge: Listener,
    sockets: PathBuf,
    next_port: u32,
    _directory: TempDir,
}

/// One connection of the guest.
#[derive(Debug)]
pub struct Connection<'a> {
    host: &'a mut RawHost,
    stream: Stream,
    decoder: Decoder,
    next_id: u64,
    /// Responses that nobody has asked for yet.
    responses: VecDeque<Response>,
    /// Notifications in the order of their arrival.
    pub notifications: VecDeque<Value>,
}

/// Runs a scenario with the backend's shared hand-driven machine, on a fresh connection.
///
/// # Panics
/// When the scenario does.
pub fn with_connection(backend: Backend, scenario: impl AsyncFnOnce(&mut Connection<'_>)) {
    crate::block_on(async {
        let mut host = RawHost::shared(backend).await;
        let host = host.as_mut().expect("was just started");
        scenario(&mut host.connect().await).await;
    });
}

impl RawHost {
    async fn shared(backend: Backend) -> MutexGuard<'static, Option<Self>> {
        static LOOPBACK: Mutex<Option<RawHost>> = Mutex::const_new(None);
        static QEMU: Mutex<Option<RawHost>> = Mutex::const_new(None);
        let mut slot = match backend {
            Backend::Loopback => LOOPBACK.lock().await,
            Backend::Qemu => QEMU.lock().await,
        };
        if slot.is_none() {
            *slot = Some(Self::start(backend).await);
        }
        slot
    }

    async fn start(backend: Backend) -> Self {
        let mut host = Self::boot(machine("raw", backend), []).await.0;
        host.map_base().await;
        host
    }

    /// Starts a machine with nothing in it, and listens on further ports from before.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn boot<const N: usize>(machine: Builder, ports: [u32; N]) -> (Self, [Listener; N]) {
        let directory = tempfile::tempdir().expect("make a directory for sockets");
        let sockets = directory.path().join("vsock");
        let local = Local::HybridHost { path: sockets.clone() };
        let bridge = Listener::bind(&local, port::BRIDGE).expect("listen for the bridge");
        let listeners = ports.map(|port| Listener::bind(&local, port).expect("listen"));
        let machine = machine.start_exported(&sockets).await;
        let machine = machine.expect("the machine starts");
        let next_port = port::FIRST_STDIO;
        (Self { machine, bridge, sockets, next_port, _directory: directory }, listeners)
    }

    /// What runs the machine.
    pub fn vmm(&self) -> &dyn linkspan_host::vmm::Vmm {
        self.machine.vmm()
    }

    /// Listens on a port that is already known to the guest.
    ///
    /// # Panics
    /// When that fails.
    pub fn listen_on(&self, port: u32) -> Listener {
        let local = Local::HybridHost { path: self.sockets.clone() };
        Listener::bind(&local, port).expect("listen")
    }

    /// Puts the root file system where containers find it.
    ///
    /// # Panics
    /// When that fails.
    pub async fn map_base(&mut self) {
        let file = std::fs::File::open(layer_image()).expect("open the layer image");
        let size = file.metadata().expect("look at the layer image").len();
        let address = ScsiAddress { controller: 0, lun: 0 };
        let disk = Disk { file, size, read_only: true };
        self.machine.vmm().attach_disk(address, disk).await.expect("attach the layer image");
        let mut connection = self.connect().await;
        connection.negotiate().await;
        let settings = json!({"MountPath": BASE, "ReadOnly": true, "Options": ["ro"]});
        let answer = connection.modify("Add", "MappedVirtualDisk", settings).await;
        answer.expect_success();
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Puts an image at a SCSI address of controller 3, which is for scenarios alone.
    ///
    /// # Panics
    /// When that fails.
    pub async fn attach(&self, lun: u8, file: &std::fs::File, read_only: bool) {
        let file = file.try_clone().expect("keep the image");
        let size = file.metadata().expect("look at the image").len();
        let disk = Disk { file, size, read_only };
        let attached = self.machine.vmm().attach_disk(Self::scenarios(lun), disk).await;
        attached.expect("attach the image");
    }

    /// Takes an image away again, whatever the guest does with it.
    ///
    /// # Panics
    /// When that fails.
    pub async fn detach(&self, lun: u8) {
        let detached = self.machine.vmm().detach_disk(Self::scenarios(lun)).await;
        detached.expect("detach the image");
    }

    fn scenarios(lun: u8) -> ScsiAddress {
        ScsiAddress { controller: 3, lun }
    }

    /// Waits for the guest to dial.
    pub async fn connect(&mut self) -> Connection<'_> {
        let accepted = timeout(Duration::from_secs(60), self.bridge.accept()).await;
        let (stream, _) = accepted.expect("the agent dials").expect("accept");
        Connection {
            host: self,
            stream,
            decoder: Decoder::new(HOST_LIMIT),
            next_id: 0,
            responses: VecDeque::new(),
            notifications: VecDeque::new(),
        }
    }

    /// Listens on fresh ports.
    ///
    /// # Panics
    /// When that fails.
    pub fn listen<const N: usize>(&mut self) -> ([u32; N], [Listener; N]) {
        let local = Local::HybridHost { path: self.sockets.clone() };
        let ports = std::array::from_fn(|index| self.next_port + index as u32);
        self.next_port += N as u32;
        (ports, ports.map(|port| Listener::bind(&local, port).expect("listen")))
    }
}

impl Connection<'_> {
    /// The machine.
    pub fn host(&mut self) -> &mut RawHost {
        self.host
    }

    /// Closes it and waits for the guest to dial again.
    pub async fn reconnect(&mut self) {
        let (gone, _) = Stream::pair().expect("a pair of sockets");
        self.stream = gone;
        let fresh = self.host.connect().await;
        self.stream = fresh.stream;
        self.decoder = Decoder::new(HOST_LIMIT);
        self.responses.clear();
    }

    /// Writes bytes as they are.
    ///
    /// # Panics
    /// When the guest has closed.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("write to the guest");
    }

    /// Sends a frame and does not wait.
    pub async fn send(&mut self, message_type: MessageType, id: u64, payload: &[u8]) {
        self.write(&frame(message_type, id, payload)).await;
    }

    /// Sends a request to `container` and does not wait. Returns its id.
    pub async fn post(&mut self, message: MessageType, container: &str, body: Value) -> u64 {
        let mut document = json!({
            "ContainerId": container,
            "ActivityId": "00000000-0000-0000-0000-000000000000",
        });
        let own = body.as_object().cloned().unwrap_or_default();
        document.as_object_mut().expect("an object").extend(own);
        let id = self.next_id;
        self.next_id += 1;
        let payload = serde_json::to_vec(&document).expect("a JSON document");
        self.send(message, id, &payload).await;
        id
    }

    /// Asks and waits for the answer.
    pub async fn call(&mut self, message: MessageType, container: &str, body: Value) -> Response {
        let id = self.post(message, container, body).await;
        let response = self.response_to(id).await;
        assert_eq!(response.message_type, message.response(), "{response:?}");
        response
    }

    /// ModifySettings of the utility VM.
    pub async fn modify(&mut self, modify: &str, resource: &str, settings: Value) -> Response {
        let id = self.post_modify(modify, resource, settings).await;
        self.response_to(id).await
    }

    /// As [`modify`](Self::modify), without waiting for the answer. Returns the request's id.
    pub async fn post_modify(&mut self, modify: &str, resource: &str, settings: Value) -> u64 {
        let request =
            json!({"RequestType": modify, "ResourceType": resource, "Settings": settings});
        self.post(MessageType::MODIFY_SETTINGS, UVM_ID, json!({"Request": request})).await
    }

    /// Asks for a range of versions.
    pub async fn negotiate_for(&mut self, minimum: u32, maximum: u32) -> Response {
        let range = json!({"MinimumVersion": minimum, "MaximumVersion": maximum});
        self.call(MessageType::NEGOTIATE_PROTOCOL, "", range).await
    }

    /// Agrees on version 4.
    pub async fn negotiate(&mut self) -> Response {
        let answer = self.negotiate_for(4, 4).await;
        answer.expect_success();
        assert_eq!(answer.body["Version"], 4);
        answer
    }

    /// The next response, whatever it answers.
    pub async fn next_response(&mut self) -> Response {
        loop {
            if let Some(response) = self.responses.pop_front() {
                return response;
            }
            self.pump().await;
        }
    }

    /// The response to one request; others are kept.
    pub async fn response_to(&mut self, id: u64) -> Response {
        loop {
            if let Some(at) = self.responses.iter().position(|response| response.id == id) {
                return self.responses.remove(at).expect("is there");
            }
            self.pump().await;
        }
    }

    /// The next notification.
    pub async fn next_notification(&mut self) -> Value {
        while self.notifications.is_empty() {
            self.pump().await;
        }
        self.notifications.pop_front().expect("is there")
    }

    /// Whether the guest leaves `id` unanswered for so long.
    pub async fn stays_silent_on(&mut self, id: u64, long: Duration) -> bool {
        timeout(long, self.response_to(id)).await.is_err()
    }

    /// Waits for the guest to close the connection.
    ///
    /// # Panics
    /// When it sends something, or does not.
    pub async fn closed_by_guest(&mut self) {
        let mut byte = [0; 1];
        match timeout(ANSWER, self.stream.read(&mut byte)).await {
            Ok(Ok(0) | Err(_)) => {}
            Ok(Ok(_)) => panic!("the agent answers what it should not be able to read"),
            Err(_) => panic!("the agent keeps a connection that it cannot follow"),
        }
    }

    /// The response to a request, or nothing if the guest closes in its stead.
    pub async fn answer_or_end(&mut self, id: u64) -> Option<Response> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(len) => self.decoder.push(&buffer[..len]),
            }
            while let Some(frame) = self.decoder.next_frame().expect("a frame within bounds") {
                match frame::check(frame) {
                    Ok(response) if response.id == id => return Some(response),
                    Ok(response) => self.responses.push_back(response),
                    Err(notification) => self.notifications.push_back(notification),
                }
            }
        }
    }

    /// Reads until at least one more frame is there.
    async fn pump(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let mut any = false;
            while let Some(frame) = self.decoder.next_frame().expect("a frame within bounds") {
                any = true;
                match frame::check(frame) {
                    Ok(response) => self.responses.push_back(response),
                    Err(notification) => self.notifications.push_back(notification),
                }
            }
            if any {
                return;
            }
            let read = timeout(ANSWER, self.stream.read(&mut buffer)).await;
            let len = read.expect("the agent answers in time").expect("read from the guest");
            assert!(len > 0, "the agent has closed the connection");
            self.decoder.push(&buffer[..len]);
        }
    }
}
