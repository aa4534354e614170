//! An agent that is measured: one container that runs throughout, and what is done with it.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyperv_socket::Stream;
use linkspan_protocol::{MessageType, UVM_ID, port};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Contender;
use super::bridge::Bridge;
use crate::environment::Environment;
use crate::statement::Need;
use crate::target::{Listen, Target};
use crate::wire::{document, pipes, process};

/// Where a layer's disk is mounted.
const LAYER: &str = "/run/layers/bench";

/// Bytes that are read or written at a time.
const PIECE: usize = 256 << 10;

pub(super) struct Agent {
    pub(super) name: String,
    pub(super) peer: String,
    bridge: Bridge,
    target: tokio::sync::Mutex<Target>,
    stdio: Option<Listen>,
    environment: Environment,
    /// Of containers.
    names: AtomicU32,
    next_port: AtomicU32,
    /// One that runs throughout, and its init; not where there is no layer.
    container: Option<(String, u64)>,
    lacking: Vec<(Need, &'static str)>,
}

type Took = Result<Duration, String>;

impl Agent {
    pub(super) async fn open(contender: Contender, answer: Duration) -> Result<Arc<Self>, String> {
        let Contender { name, mut target, mut environment } = contender;
        let reach = async {
            let wire = target.connect().await.map_err(|error| format!("connect: {error}"))?;
            Bridge::negotiate(wire, answer).await
        };
        let reached = tokio::time::timeout(answer, reach).await;
        let bridge = reached.unwrap_or_else(|_| {
            Err(format!("the agent does not connect and negotiate within {answer:?}"))
        });
        let bridge = bridge.map_err(|error| {
            let words = target.last_words().unwrap_or_default();
            format!("{error} {words}").trim_end().to_owned()
        })?;
        if let Some(disk) = environment.layer_disk.filter(|_| environment.layer.is_none()) {
            let settings = json!({
                "MountPath": LAYER, "Controller": disk.controller, "Lun": disk.lun,
                "ReadOnly": true, "Options": ["ro"],
            });
            modify(&bridge, "Add", "MappedVirtualDisk", settings).await?;
            environment.layer = Some(LAYER.to_owned());
        }
        let needs = [Need::Layer, Need::Stdio];
        let lacking = needs
            .into_iter()
            .filter(|&need| environment.lacks(&[need], &target).is_some())
            .map(|need| (need, need.missing()))
            .collect();
        let mut agent = Self {
            name,
            peer: target.describe(),
            bridge,
            stdio: target.stdio().cloned(),
            target: tokio::sync::Mutex::new(target),
            environment,
            names: AtomicU32::new(0),
            next_port: AtomicU32::new(port::FIRST_STDIO),
            container: None,
            lacking,
        };
        if agent.environment.layer.is_some() {
            let id = agent.create(&["sleep", "100000"]).await?;
            let pid = agent.start(&id).await?;
            agent.container = Some((id, pid));
        }
        Ok(Arc::new(agent))
    }

    /// Why something that takes that cannot be measured.
    pub(super) fn lacks(&self, needs: &[Need]) -> Option<String> {
        let lacking = self.lacking.iter().find(|(need, _)| needs.contains(need));
        lacking.map(|(_, why)| (*why).to_owned())
    }

    /// Takes down what was set up.
    pub(super) async fn close(&self) {
        if let Some((id, pid)) = &self.container {
            let body = json!({"ProcessId": pid, "Options": {"Signal": 9}});
            let _ = self.bridge.call(MessageType::SIGNAL_PROCESS, id, body).await;
            let _ = self.wait(id, *pid).await;
            let _ = self.delete(id).await;
        }
        self.target.lock().await.end().await;
    }

    /// The machine itself has no properties: an agent refuses without having to do anything.
    pub(super) async fn cheap_request(&self) -> Took {
        let query = json!({"Query": r#"{"PropertyTypes":["ProcessList"]}"#});
        self.bridge.ask(MessageType::GET_PROPERTIES, UVM_ID, query).await.map(|(_, took)| took)
    }

    pub(super) async fn statistics(&self) -> Took {
        let begun = Instant::now();
        let query = json!({"Query": r#"{"PropertyTypes":["Statistics"]}"#});
        self.bridge.call(MessageType::GET_PROPERTIES, &self.running()?.0, query).await?;
        Ok(begun.elapsed())
    }

    pub(super) async fn exec(&self) -> Took {
        let begun = Instant::now();
        let id = &self.running()?.0;
        let settings = pipes(None, None, None, json!({"OciProcess": process(&["true"])}));
        let pid = self.execute(id, settings).await?;
        ended_well("true", self.wait(id, pid).await?)?;
        Ok(begun.elapsed())
    }

    pub(super) async fn container_cycle(&self) -> Took {
        let begun = Instant::now();
        let id = self.create(&["true"]).await?;
        let pid = self.start(&id).await?;
        ended_well("the init", self.wait(&id, pid).await?)?;
        self.delete(&id).await?;
        Ok(begun.elapsed())
    }

    /// From the first byte to the last.
    pub(super) async fn read_output(&self, bytes: u64) -> Took {
        let (id, count) = (&self.running()?.0, bytes.to_string());
        let args = ["head", "-c", count.as_str(), "/dev/zero"];
        let (pid, mut output) = self.with_stream(id, &args, true).await?;
        let (mut buffer, mut total) = (vec![0; PIECE], 0);
        let begun = Instant::now();
        loop {
            match output.read(&mut buffer).await {
                Ok(0) => break,
                Ok(len) => total += len as u64,
                Err(error) => return Err(format!("read an output: {error}")),
            }
        }
        let took = begun.elapsed();
        drop(output);
        ended_well("head", self.wait(id, pid).await?)?;
        match total == bytes {
            true => Ok(took),
            false => Err(format!("{total} of {bytes} bytes have come")),
        }
    }

    /// From the first byte to the exit of a process that has read all of them.
    pub(super) async fn write_input(&self, bytes: u64) -> Took {
        let id = &self.running()?.0;
        let args = ["sh", "-c", "cat >/dev/null"];
        let (pid, mut input) = self.with_stream(id, &args, false).await?;
        let buffer = vec![0; PIECE];
        let mut left = bytes;
        let begun = Instant::now();
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let written = input.write_all(&buffer[..len]).await;
            written.map_err(|error| format!("write an input: {error}"))?;
            left -= len as u64;
        }
        input.shutdown(Shutdown::Write).map_err(|error| format!("end an input: {error}"))?;
        ended_well("cat", self.wait(id, pid).await?)?;
        Ok(begun.elapsed())
    }

    fn running(&self) -> Result<&(String, u64), String> {
        self.container.as_ref().ok_or_else(|| "there is no container".to_owned())
    }

    /// Starts a process with one stream.
    async fn with_stream(
        &self,
        id: &str,
        args: &[&str],
        output: bool,
    ) -> Result<(u64, Stream), String> {
        let listen = self.stdio.as_ref().ok_or("stdio would not come here")?;
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        let bound = listen.bind(port).await;
        let mut listener = bound.map_err(|error| format!("listen on port {port:#x}: {error}"))?;
        let (stdin, stdout) = if output { (None, Some(port)) } else { (Some(port), None) };
        let settings = pipes(stdin, stdout, None, json!({"OciProcess": process(args)}));
        let (pid, stream) = tokio::join!(self.execute(id, settings), async {
            let accepted = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
            match accepted {
                Ok(accepted) => accepted.map_err(|error| format!("accept a stream: {error}")),
                Err(_) => Err("the agent does not dial a stream within 10 s".to_owned()),
            }
        });
        Ok((pid?, stream?))
    }

    async fn create(&self, args: &[&str]) -> Result<String, String> {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        let id = format!("bench-{}-{number}", std::process::id());
        let settings = json!({
            "ContainerRootPath": format!("/run/gcs/c/{id}/rootfs"),
            "Layers": [{"Path": self.environment.layer}],
            "ScratchPath": format!("/run/gcs/scratch/{id}"),
        });
        modify(&self.bridge, "Add", "CombinedLayers", settings).await?;
        let config = json!({"ContainerConfig": document(&id, args).to_string()});
        self.bridge.call(MessageType::CREATE, &id, config).await?;
        Ok(id)
    }

    async fn start(&self, id: &str) -> Result<u64, String> {
        self.execute(id, pipes(None, None, None, json!({}))).await
    }

    async fn execute(&self, id: &str, settings: Value) -> Result<u64, String> {
        let answer = self.bridge.call(MessageType::EXECUTE_PROCESS, id, settings).await?;
        let pid = answer["ProcessId"].as_u64();
        pid.ok_or_else(|| format!("ExecuteProcess is answered without ProcessId: {answer}"))
    }

    async fn wait(&self, id: &str, pid: u64) -> Result<u64, String> {
        let body = json!({"ProcessId": pid, "TimeoutInMs": u32::MAX});
        let answer = self.bridge.call(MessageType::WAIT_FOR_PROCESS, id, body).await?;
        Ok(answer["ExitCode"].as_u64().unwrap_or(0))
    }

    async fn delete(&self, id: &str) -> Result<(), String> {
        let settings = json!({"ContainerRootPath": format!("/run/gcs/c/{id}/rootfs")});
        modify(&self.bridge, "Remove", "CombinedLayers", settings).await?;
        self.bridge.call(MessageType::DELETE_CONTAINER_STATE, id, json!({})).await.map(drop)
    }
}

fn ended_well(what: &str, code: u64) -> Result<(), String> {
    match code {
        0 => Ok(()),
        code => Err(format!("{what} ends with {code}")),
    }
}

async fn modify(
    bridge: &Bridge,
    change: &str,
    kind: &str,
    settings: Value,
) -> Result<Value, String> {
    let request = json!({"RequestType": change, "ResourceType": kind, "Settings": settings});
    let answer = bridge.call(MessageType::MODIFY_SETTINGS, UVM_ID, json!({"Request": request}));
    answer.await.map_err(|error| format!("{change} {kind}: {error}"))
}
