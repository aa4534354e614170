//! Containers and processes, for checks.

use std::time::Duration;

use hyperv_socket::Stream;
use linkspan_protocol::{MessageType, UVM_ID};
use serde_json::{Value, json};

use crate::session::{Response, Session};
use crate::verdict::{Checked, Stop};
use crate::wire::{document, pipes, process};

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

/// A process with its streams at the harness.
#[derive(Debug)]
pub struct Running {
    /// Its pid.
    pub pid: u64,
    /// Where it reads.
    pub stdin: Stream,
    /// What it writes.
    pub stdout: Stream,
}

/// How long a notification may take after the wait has been answered.
pub const NOTIFICATION: Duration = Duration::from_secs(10);

impl Response {
    /// `ProcessId`, which has to be there.
    pub fn pid(&self) -> Checked<u64> {
        self.ok()?;
        let pid = self.body["ProcessId"].as_u64().filter(|&pid| pid > 0);
        pid.ok_or_else(|| Stop::fail(format!("no ProcessId: {}", self.body)))
    }

    /// `ExitCode`; one that is left out is 0.
    pub fn exit_code(&self) -> Checked<u64> {
        self.ok()?;
        let code = self.body.get("ExitCode").map_or(Some(0), Value::as_u64);
        code.ok_or_else(|| Stop::fail(format!("no ExitCode: {}", self.body)))
    }
}

impl Session {
    /// Puts a root together for a container.
    pub async fn combine(&mut self, id: &str) -> Checked {
        let layer = self.environment.layer.clone();
        let layer = layer.ok_or_else(|| Stop::Skip("there is no layer".into()))?;
        let settings = json!({
            "ContainerRootPath": format!("/run/gcs/c/{id}/rootfs"),
            "Layers": [{"Path": layer}],
            "ScratchPath": format!("/run/gcs/scratch/{id}"),
        });
        let answer = self.modify("Add", "CombinedLayers", settings).await?;
        match answer.succeeded() {
            true => Ok(()),
            false => Err(Stop::Skip(format!("no root for a container: {}", answer.body))),
        }
    }

    /// Asks for a container of that document.
    pub async fn create_from(&mut self, id: &str, document: Value) -> Checked<Response> {
        let body = json!({"ContainerConfig": document.to_string()});
        self.call(MessageType::CREATE, id, body).await
    }

    /// Makes a container, its root included. Returns its id.
    pub async fn create(&mut self, what: &str, args: &[&str]) -> Checked<String> {
        let id = self.name(what);
        self.combine(&id).await?;
        self.create_from(&id, document(&id, args)).await?.ok()?;
        Ok(id)
    }

    /// Makes a container that runs until it is told to end. Returns its id and the pid.
    pub async fn sleeper(&mut self, what: &str) -> Checked<(String, u64)> {
        let id = self.create(what, &["sleep", "1000"]).await?;
        let pid = self.start(&id).await?;
        Ok((id, pid))
    }

    /// Takes a container's root down, and deletes what is left of it.
    pub async fn delete(&mut self, id: &str) -> Checked<Response> {
        let settings = json!({"ContainerRootPath": format!("/run/gcs/c/{id}/rootfs")});
        self.modify("Remove", "CombinedLayers", settings).await?.ok()?;
        self.call(MessageType::DELETE_CONTAINER_STATE, id, json!({})).await
    }

    /// Ends a container for the sake of the next check; whatever is wrong with that is another
    /// statement's business.
    pub async fn clean_up(&mut self, id: &str, pid: u64) {
        let _ = self.signal(id, pid, 9).await;
        if let Ok(wait) = self.post_wait(id, pid).await {
            let _ = self.response_to(wait).await;
        }
        let _ = self.delete(id).await;
    }

    /// Starts a container's init without streams. Returns its pid.
    pub async fn start(&mut self, id: &str) -> Checked<u64> {
        self.call(MessageType::EXECUTE_PROCESS, id, pipes(None, None, None, json!({}))).await?.pid()
    }

    /// Starts a further process without streams. Returns its pid.
    pub async fn exec(&mut self, id: &str, args: &[&str]) -> Checked<u64> {
        let settings = pipes(None, None, None, json!({"OciProcess": process(args)}));
        self.call(MessageType::EXECUTE_PROCESS, id, settings).await?.pid()
    }

    /// Runs a process, reads its stdout to the end, and waits for it.
    pub async fn run(&mut self, id: &str, more: Value) -> Checked<Finished> {
        let ([port], mut listeners) = self.listen().await?;
        let settings = pipes(None, Some(port), None, more);
        let pid = self.call(MessageType::EXECUTE_PROCESS, id, settings).await?.pid()?;
        let mut stdout = self.accept(&mut listeners[0]).await?;
        let bytes = self.read_all(&mut stdout).await?;
        drop(stdout);
        let code = self.wait(id, pid).await?.exit_code()?;
        Ok(Finished { pid, stdout: String::from_utf8_lossy(&bytes).into_owned(), code })
    }

    /// Runs a further process of a container, as [`run`](Self::run).
    pub async fn output(&mut self, id: &str, args: &[&str]) -> Checked<Finished> {
        self.run(id, json!({"OciProcess": process(args)})).await
    }

    /// Starts a process with stdin and stdout.
    pub async fn interactive(&mut self, id: &str, more: Value) -> Checked<Running> {
        let ([stdin, stdout], mut listeners) = self.listen().await?;
        let settings = pipes(Some(stdin), Some(stdout), None, more);
        let pid = self.call(MessageType::EXECUTE_PROCESS, id, settings).await?.pid()?;
        let stdin = self.accept(&mut listeners[0]).await?;
        let stdout = self.accept(&mut listeners[1]).await?;
        Ok(Running { pid, stdin, stdout })
    }

    /// What runs a script in the utility VM's root.
    pub fn script(&self, text: &str) -> Vec<String> {
        self.environment.shell.iter().cloned().chain([text.to_owned()]).collect()
    }

    /// Runs a script in the utility VM's root.
    pub async fn shell(&mut self, text: &str) -> Checked<Finished> {
        let args = self.script(text);
        self.run(UVM_ID, json!({"CommandArgs": args, "WorkingDirectory": "/"})).await
    }

    /// Posts a wait without limit.
    pub async fn post_wait(&mut self, id: &str, pid: u64) -> Checked<u64> {
        let body = json!({"ProcessId": pid, "TimeoutInMs": u32::MAX});
        self.post(MessageType::WAIT_FOR_PROCESS, id, body).await
    }

    /// Waits without limit.
    pub async fn wait(&mut self, id: &str, pid: u64) -> Checked<Response> {
        let call = self.post_wait(id, pid).await?;
        self.response_to(call).await
    }

    /// Waits for so many milliseconds.
    pub async fn wait_for(&mut self, id: &str, pid: u64, milliseconds: u32) -> Checked<Response> {
        let body = json!({"ProcessId": pid, "TimeoutInMs": milliseconds});
        self.call(MessageType::WAIT_FOR_PROCESS, id, body).await
    }

    /// Sends a signal.
    pub async fn signal(&mut self, id: &str, pid: u64, number: u32) -> Checked<Response> {
        let body = json!({"ProcessId": pid, "Options": {"Signal": number}});
        self.call(MessageType::SIGNAL_PROCESS, id, body).await
    }

    /// GetProperties, with what is in `Properties`.
    pub async fn properties(&mut self, id: &str, query: &str) -> Checked<Value> {
        let body = json!({"Query": query});
        let answer = self.call(MessageType::GET_PROPERTIES, id, body).await?;
        answer.ok()?;
        let text = answer.body["Properties"].as_str();
        let text =
            text.ok_or_else(|| Stop::fail(format!("Properties is no string: {}", answer.body)))?;
        serde_json::from_str(text)
            .map_err(|error| Stop::fail(format!("Properties holds no JSON ({error}): {text:?}")))
    }

    /// Maps the layers that are disks, once for the whole run.
    pub(crate) async fn prepare(&mut self) -> Checked {
        if self.environment.layer.is_some() {
            return Ok(());
        }
        let Some(disk) = self.environment.layer_disk else { return Ok(()) };
        self.map_layer(disk, LAYER).await?;
        self.environment.layer = Some(LAYER.to_owned());
        Ok(())
    }

    /// Maps a disk read-only.
    pub(crate) async fn map_layer(
        &mut self,
        disk: crate::environment::DiskAddress,
        path: &str,
    ) -> Checked {
        let settings = json!({
            "MountPath": path, "Controller": disk.controller, "Lun": disk.lun,
            "ReadOnly": true, "Options": ["ro"],
        });
        self.modify("Add", "MappedVirtualDisk", settings).await?.ok()
    }
}

/// Where the layer is mounted in the guest.
const LAYER: &str = "/run/layers/conform";
