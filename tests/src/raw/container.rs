//! Containers by hand.

use hyperv_socket::Stream;
use linkspan_conform::wire::{document, pipes, process};
use linkspan_protocol::{MessageType, UVM_ID};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::{BASE, Connection, Response};

/// What a process has written, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// Its pid.
    pub pid: u64,
    /// Its stdout.
    pub stdout: String,
    /// `ExitCode`.
    pub code: u64,
}

impl Connection<'_> {
    /// Puts a root together for a container of that id.
    pub async fn combine(&mut self, id: &str) {
        let settings = json!({
            "ContainerRootPath": format!("/run/gcs/c/{id}/rootfs"),
            "Layers": [{"Path": BASE}],
            "ScratchPath": format!("/run/gcs/scratch/{id}"),
        });
        self.modify("Add", "CombinedLayers", settings).await.expect_success();
    }

    /// Asks for a container of that document.
    pub async fn create_from(&mut self, id: &str, document: Value) -> Response {
        let body = json!({"ContainerConfig": document.to_string()});
        self.call(MessageType::CREATE, id, body).await
    }

    /// Makes a container, its root included.
    pub async fn create(&mut self, id: &str, args: &[&str]) {
        self.combine(id).await;
        let answer = self.create_from(id, document(id, args)).await;
        answer.expect_success();
        assert_eq!(answer.body.get("SelectedProtocolVersion").unwrap_or(&json!(0)), 0);
    }

    /// Takes a container's root down, and deletes what is left of it.
    pub async fn delete(&mut self, id: &str) -> Response {
        let settings = json!({"ContainerRootPath": format!("/run/gcs/c/{id}/rootfs")});
        self.modify("Remove", "CombinedLayers", settings).await.expect_success();
        self.call(MessageType::DELETE_CONTAINER_STATE, id, json!({})).await
    }

    /// Starts a container's init without streams. Returns its pid.
    pub async fn start(&mut self, id: &str) -> u64 {
        let settings = pipes(None, None, None, json!({}));
        self.pid_of(id, settings).await
    }

    /// Starts a further process without streams. Returns its pid.
    pub async fn exec(&mut self, id: &str, args: &[&str]) -> u64 {
        let settings = pipes(None, None, None, json!({"OciProcess": process(args)}));
        self.pid_of(id, settings).await
    }

    async fn pid_of(&mut self, id: &str, settings: Value) -> u64 {
        let answer = self.call(MessageType::EXECUTE_PROCESS, id, settings).await;
        answer.expect_success();
        answer.body["ProcessId"].as_u64().expect("a pid")
    }

    /// Runs a process of a container, or of the utility VM (`more` says what), and reads its
    /// stdout to the end.
    pub async fn run(&mut self, id: &str, more: Value) -> Finished {
        let ([port], [listener]) = self.host().listen();
        let settings = pipes(None, Some(port), None, more);
        let pid = self.pid_of(id, settings).await;
        let (mut stdout, _) = listener.accept().await.expect("accept");
        let text = read_all(&mut stdout).await;
        drop(stdout);
        let answer = self.wait(id, pid).await;
        answer.expect_success();
        let code = answer.body.get("ExitCode").map_or(0, |code| code.as_u64().expect("a code"));
        Finished { pid, stdout: text, code }
    }

    /// Runs a program in the utility VM's root.
    pub async fn external(&mut self, args: &[&str]) -> Finished {
        self.run(UVM_ID, json!({"CommandArgs": args})).await
    }

    /// Starts a program in the utility VM's root, its stdout at a port. Returns its pid.
    pub async fn start_external(&mut self, args: &[&str], port: u32) -> u64 {
        let settings = pipes(None, Some(port), None, json!({"CommandArgs": args}));
        self.pid_of(UVM_ID, settings).await
    }

    /// Makes a container of a document, its root included, and starts it. Returns its init's pid.
    pub async fn start_from(&mut self, id: &str, document: Value) -> u64 {
        self.combine(id).await;
        self.create_from(id, document).await.expect_success();
        self.start(id).await
    }

    /// What a shell in a container prints, without the last line's end.
    pub async fn shell(&mut self, id: &str, script: &str) -> String {
        let exec = json!({"OciProcess": process(&["sh", "-c", script])});
        self.run(id, exec).await.stdout.trim_end().to_owned()
    }

    /// Kills a container by its init, waits for it and deletes it.
    pub async fn end(&mut self, id: &str, pid: u64) {
        self.signal(id, pid, 9).await.expect_success();
        self.wait(id, pid).await.expect_success();
        self.delete(id).await.expect_success();
    }

    /// Posts a wait without limit.
    pub async fn post_wait(&mut self, id: &str, pid: u64) -> u64 {
        let body = json!({"ProcessId": pid, "TimeoutInMs": u32::MAX});
        self.post(MessageType::WAIT_FOR_PROCESS, id, body).await
    }

    /// Waits without limit.
    pub async fn wait(&mut self, id: &str, pid: u64) -> Response {
        let call = self.post_wait(id, pid).await;
        self.response_to(call).await
    }

    /// Sends a signal.
    pub async fn signal(&mut self, id: &str, pid: u64, number: u32) -> Response {
        let body = json!({"ProcessId": pid, "Options": {"Signal": number}});
        self.call(MessageType::SIGNAL_PROCESS, id, body).await
    }
}

/// All that a guest sends on a stream.
///
/// # Panics
/// When the stream breaks.
pub async fn read_all(stream: &mut Stream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("read a stream");
    String::from_utf8_lossy(&bytes).into_owned()
}
