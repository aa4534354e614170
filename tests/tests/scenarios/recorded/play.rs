//! The recorded host, played to our agent.

mod line;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use hyperv_socket::{Listener, Stream};
use linkspan_protocol::MessageType;
use linkspan_tests::raw::{Connection, RawHost, Response};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::compare::{code, differences};
use line::Line;

/// As long as an answer of ours takes, deadlines for devices included.
const PATIENCE: Duration = Duration::from_secs(28);

/// How long the recorded host waited for what did not come.
const SILENCE: Duration = Duration::from_secs(3);

/// Says the recorded host's part. Returns what our agent does otherwise, as `line | difference`,
/// lines counted from 1.
pub(super) async fn play(host: &mut RawHost, recording: &str) -> Vec<String> {
    let connection = host.connect().await;
    let mut player = Player {
        connection,
        negotiated: false,
        asked: BTreeMap::new(),
        pids: HashMap::new(),
        inputs: HashMap::new(),
        outputs: JoinSet::new(),
        begun: watch::channel(true).1,
        found: Vec::new(),
    };
    for (line, number) in recording.lines().map(Line::parse).zip(1..) {
        player.step(line, number).await;
    }
    player.end().await;
    player.found
}

/// A request that has not been answered.
struct Asked {
    line: usize,
    /// Where the input of the process that it starts comes from.
    input: Option<Listener>,
    /// Who waits for its outputs.
    outputs: Vec<AbortHandle>,
    /// The process of ours that it is about.
    pid: Option<u64>,
}

struct Player<'a> {
    connection: Connection<'a>,
    negotiated: bool,
    /// By id.
    asked: BTreeMap<u64, Asked>,
    /// Our pid for each of the recording.
    pids: HashMap<u64, u64>,
    /// Where our processes read.
    inputs: HashMap<u64, Stream>,
    outputs: JoinSet<()>,
    /// Whether the last process has written something.
    begun: watch::Receiver<bool>,
    found: Vec<String>,
}

impl Player<'_> {
    async fn step(&mut self, line: Line, number: usize) {
        match line {
            Line::Note(text) => self.heed(&text, number).await,
            Line::Bytes(bytes) => self.connection.write(&bytes).await,
            Line::Text { message, id, text } => {
                self.connection.send(message, id, text.as_bytes()).await;
            }
            Line::Request { message, id, body } => self.ask(message, id, body, number).await,
            Line::Response { id, body } => self.answer(id, &body, number).await,
            Line::Notification(expected) => {
                let came = timeout(PATIENCE, self.notification_of(&expected["ContainerId"])).await;
                let same = |ours: Value| differences(&expected, &ours);
                let wrong = came.map_or_else(|_| vec!["no notification".to_owned()], same);
                self.report(number, wrong);
            }
        }
    }

    async fn notification_of(&mut self, container: &Value) -> Value {
        let mut others = Vec::new();
        loop {
            let notification = self.connection.next_notification().await;
            if notification["ContainerId"] == *container {
                self.connection.notifications.extend(others);
                return notification;
            }
            others.push(notification);
        }
    }

    fn report(&mut self, line: usize, differences: impl IntoIterator<Item = String>) {
        self.found.extend(differences.into_iter().map(|what| format!("{line} | {what}")));
    }

    /// Does what a note says that the recorded host did.
    async fn heed(&mut self, note: &str, number: usize) {
        if note.starts_with("agent dialled again") {
            self.dial().await;
        } else if note == "kill it out of band" {
            let pid = self.asked.values().rev().find_map(|asked| asked.pid).expect("a process");
            self.connection.external(&["/bin/busybox", "kill", "-9", &pid.to_string()]).await;
        } else if note.contains("no response") {
            let (&id, &Asked { line, .. }) = self.asked.last_key_value().expect("a request");
            let answer = timeout(SILENCE, self.connection.response_to(id)).await;
            if let Ok(answer) = answer {
                self.asked.remove(&id);
                self.report(line, [said(&answer)]);
            }
        } else if note.contains("BridgeClosed") {
            let (id, _) = self.asked.pop_last().expect("a request");
            let answer = self.connection.answer_or_end(id).await;
            self.report(number, answer.map(|answer| said(&answer)));
        }
    }

    async fn dial(&mut self) {
        self.connection.reconnect().await;
        self.negotiated = false;
        self.asked.clear();
    }

    async fn ask(&mut self, message: MessageType, id: u64, mut body: Value, line: usize) {
        if message == MessageType::NEGOTIATE_PROTOCOL && self.negotiated && id == 1 {
            self.dial().await;
        }
        let recorded = body["ProcessId"].as_u64();
        let pid = recorded.map(|pid| self.pids.get(&pid).copied().unwrap_or(pid));
        if let Some(pid) = pid {
            body["ProcessId"] = pid.into();
        }
        if message == MessageType::SHUTDOWN_GRACEFUL {
            // Before it speaks it does not listen; ours is asked sooner than the recorded one was.
            let _ = timeout(PATIENCE, self.begun.wait_for(|&begun| begun)).await;
        }
        let (input, outputs) = match message {
            MessageType::EXECUTE_PROCESS => {
                self.listen(&body["Settings"]["VsockStdioRelaySettings"])
            }
            _ => Default::default(),
        };
        if let Some(text) = body["Settings"]["ProcessParameters"].as_str() {
            body["Settings"]["ProcessParameters"] = in_busybox(text).into();
        }
        self.asked.insert(id, Asked { line, input, outputs, pid });
        self.connection.send(message, id, body.to_string().as_bytes()).await;
    }

    /// Listens for a process's streams, and reads its outputs.
    fn listen(&mut self, ports: &Value) -> (Option<Listener>, Vec<AbortHandle>) {
        let host = self.connection.host();
        let listener = |key: &str| Some(host.listen_on(ports[key].as_u64()? as u32));
        let (begun, has_begun) = watch::channel(false);
        let read = |output: Listener| {
            let begun = begun.clone();
            self.outputs.spawn(async move {
                let Ok((mut stream, _)) = output.accept().await else { return };
                drop(output);
                while stream.read(&mut [0; 64]).await.is_ok_and(|len| len > 0) {
                    begun.send_replace(true);
                }
            })
        };
        let outputs = ["StdOut", "StdErr"].into_iter().filter_map(listener).map(read).collect();
        self.begun = has_begun;
        (listener("StdIn"), outputs)
    }

    async fn answer(&mut self, id: u64, expected: &Value, number: usize) {
        let asked = self.asked.remove(&id);
        // Whoever is waited for may be waiting for somebody to type.
        if let Some(pid) = asked.as_ref().and_then(|asked| asked.pid)
            && let Some(mut input) = self.inputs.remove(&pid)
        {
            let _ = input.write_all(b"typed\n").await;
            let _ = input.shutdown(std::net::Shutdown::Write);
        }
        let Ok(answer) = timeout(PATIENCE, self.connection.response_to(id)).await else {
            return self.report(number, ["no answer".to_owned()]);
        };
        self.negotiated |= answer.body["Version"].is_number();
        let wrong = differences(expected, &answer.body);
        if !wrong.is_empty() {
            println!("line {number}: {}", answer.body);
        }
        self.report(number, wrong);
        let Some(ours) = answer.body["ProcessId"].as_u64() else {
            return asked.iter().flat_map(|asked| &asked.outputs).for_each(AbortHandle::abort);
        };
        if let Some(recorded) = expected["ProcessId"].as_u64() {
            self.pids.insert(recorded, ours);
        }
        if let Some(input) = asked.and_then(|asked| asked.input) {
            let accepted = timeout(PATIENCE, input.accept()).await.expect("the input is dialled");
            self.inputs.insert(ours, accepted.expect("accept").0);
        }
    }

    /// What the recorded agent never answered or said.
    async fn end(&mut self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for (id, asked) in std::mem::take(&mut self.asked) {
            let response = self.connection.response_to(id);
            if let Ok(answer) = tokio::time::timeout_at(deadline, response).await {
                self.report(asked.line, [said(&answer)]);
            }
        }
        for notification in std::mem::take(&mut self.connection.notifications) {
            let text = |key: &str| notification[key].as_str().unwrap_or_default();
            let what = format!("notification {} of {:.8}", text("Type"), text("ContainerId"));
            self.report(0, [what]);
        }
    }
}

fn said(answer: &Response) -> String {
    format!("{}, not silence", code(Some(answer.result())))
}

/// Our machines have all programs in one.
fn in_busybox(parameters: &str) -> String {
    ["uname", "sleep", "sh"].iter().fold(parameters.to_owned(), |text, program| {
        let (alone, with_arguments) = (format!("\"/bin/{program}\""), format!("\"/bin/{program} "));
        text.replace(&alone, &format!("\"/bin/busybox\",\"{program}\""))
            .replace(&with_arguments, &format!("\"/bin/busybox {program} "))
    })
}
