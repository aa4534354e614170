//! Streams and terminals of processes.

use std::net::Shutdown;
use std::time::Duration;

use hyperv_socket::Stream;
use linkspan_protocol::{HResult, MessageType, UVM_ID};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::session::Session;
use crate::verdict::{Checked, Stop, ensure};
use crate::wire::{document, pipes, process};

pub(super) async fn order(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("order").await?;
    // An agent that keeps the order does not get past a port that refuses.
    for refused in 0..2 {
        let (ports, listeners) = s.listen::<3>().await?;
        let mut listeners: Vec<_> = listeners.into_iter().map(Some).collect();
        listeners[refused] = None;
        let body = settings(ports, &["true"]);
        s.call(MessageType::EXECUTE_PROCESS, &id, body).await?.refused()?;
        for (index, listener) in listeners.iter_mut().enumerate().skip(refused + 1) {
            let Some(listener) = listener else { continue };
            let came = timeout(Duration::from_millis(200), listener.accept()).await.is_ok();
            ensure!(!came, "stream {index} was dialled though stream {refused} was refused");
        }
    }
    let (ports, mut listeners) = s.listen::<3>().await?;
    let answer = s.call(MessageType::EXECUTE_PROCESS, &id, settings(ports, &["true"])).await?;
    let pid = answer.pid()?;
    for (index, listener) in listeners.iter_mut().enumerate() {
        // All have been made: nothing has to be waited for.
        let first = timeout(Duration::from_millis(500), listener.accept()).await;
        let _stream = first
            .map_err(|_| Stop::fail(format!("stream {index} is not there at the answer")))??;
        let second = timeout(Duration::from_millis(100), listener.accept()).await;
        ensure!(second.is_err(), "stream {index} was dialled twice");
    }
    let code = s.wait(&id, pid).await?.exit_code()?;
    s.clean_up(&id, init).await;
    ensure!(code == 0, "the exit code is {code}");
    Ok(())
}

fn settings(ports: [u32; 3], args: &[&str]) -> serde_json::Value {
    let more = json!({"OciProcess": process(args)});
    pipes(Some(ports[0]), Some(ports[1]), Some(ports[2]), more)
}

pub(super) async fn unwanted(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("unwanted").await?;
    let ([port], mut listeners) = s.listen().await?;
    let mut body = pipes(None, None, None, json!({"OciProcess": process(&["true"])}));
    body["Settings"]["VsockStdioRelaySettings"] =
        json!({"StdIn": port, "StdOut": port, "StdErr": port});
    let pid = s.call(MessageType::EXECUTE_PROCESS, &id, body).await?.pid()?;
    s.wait(&id, pid).await?.ok()?;
    let came = timeout(Duration::from_millis(200), listeners[0].accept()).await.is_ok();
    s.clean_up(&id, init).await;
    ensure!(!came, "a port was dialled whose stream is not wanted");
    Ok(())
}

pub(super) async fn refused(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("refused", &["echo", "at last"]).await?;
    let ([good, closed], mut listeners) = s.listen().await?;
    listeners.pop();
    let body = pipes(None, Some(good), Some(closed), json!({}));
    s.answer *= 4; // some transports only time out
    let answer = s.call(MessageType::EXECUTE_PROCESS, &id, body).await;
    s.answer /= 4;
    answer?.refused()?;
    let mut stream = s.accept(&mut listeners[0]).await?;
    ensure!(
        s.read_all(&mut stream).await?.is_empty(),
        "something came on the stream that was made"
    );
    let run = s.run(&id, json!({})).await?;
    s.delete(&id).await?;
    ensure!((run.stdout.as_str(), run.code) == ("at last\n", 0), "the repetition: {run:?}");
    Ok(())
}

pub(super) async fn stdin(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("stdin").await?;
    let mut cat = s.interactive(&id, json!({"OciProcess": process(&["cat"])})).await?;
    let bytes: Vec<u8> = (0..64 << 10).map(|index: u32| (index ^ (index >> 8)) as u8).collect();
    let sent = bytes.clone();
    let writer = async {
        cat.stdin.write_all(&sent).await?;
        cat.stdin.shutdown(Shutdown::Write)
    };
    let mut back = Vec::new();
    let limit = s.answer;
    let both =
        timeout(limit, async { tokio::join!(writer, cat.stdout.read_to_end(&mut back)) }).await;
    let Ok((written, read)) = both else {
        return Err(Stop::fail(format!(
            "{} of {} bytes came back, and no end within {limit:?}",
            back.len(),
            bytes.len()
        )));
    };
    written?;
    read?;
    drop(cat.stdout);
    let code = s.wait(&id, cat.pid).await?.exit_code()?;
    s.clean_up(&id, init).await;
    ensure!(
        back == bytes,
        "{} bytes came back, not the {} that were sent",
        back.len(),
        bytes.len()
    );
    ensure!(code == 0, "the exit code is {code}");
    Ok(())
}

pub(super) async fn output(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("output").await?;
    let run = s.output(&id, &["seq", "1", "100000"]).await?;
    s.clean_up(&id, init).await;
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    let same =
        run.stdout.bytes().zip(expected.bytes()).take_while(|(one, other)| one == other).count();
    ensure!(
        run.stdout == expected,
        "{} bytes came, not {}; they differ from byte {same} on",
        run.stdout.len(),
        expected.len()
    );
    Ok(())
}

/// Whether the peer has closed both directions of a stream whose end has been read.
fn is_closed(stream: &Stream) -> bool {
    let mut ready = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ready, Some(&now)).is_ok() && ready[0].revents().contains(PollFlags::HUP)
}

pub(super) async fn half_close(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("half").await?;
    let (ports, mut listeners) = s.listen::<3>().await?;
    let body = settings(ports, &["sh", "-c", "echo out; echo err >&2"]);
    let pid = s.call(MessageType::EXECUTE_PROCESS, &id, body).await?.pid()?;
    let _stdin = s.accept(&mut listeners[0]).await?;
    let mut outputs = [s.accept(&mut listeners[1]).await?, s.accept(&mut listeners[2]).await?];
    let mut said = Vec::new();
    for output in &mut outputs {
        said.push(s.read_all(output).await?);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let closed = outputs.iter().map(is_closed).collect::<Vec<_>>();
    drop(outputs);
    s.wait(&id, pid).await?.ok()?;
    s.clean_up(&id, init).await;
    ensure!(said == [b"out\n", b"err\n"], "the streams said {said:?}");
    ensure!(closed == [false, false], "stdout and stderr are closed in full: {closed:?}");
    Ok(())
}

pub(super) async fn exit_waits(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("drain").await?;
    let ([port], mut listeners) = s.listen().await?;
    let echo = json!({"OciProcess": process(&["echo", "said"])});
    let body = pipes(None, Some(port), None, echo);
    let pid = s.call(MessageType::EXECUTE_PROCESS, &id, body).await?.pid()?;
    let mut stdout = s.accept(&mut listeners[0]).await?;
    let wait = s.post_wait(&id, pid).await?;
    let silence = s.environment.silence;
    let held = s.stays_silent_on(wait, silence).await?;
    ensure!(held, "the exit is told before the output has been read");
    s.read_all(&mut stdout).await?;
    let held = s.stays_silent_on(wait, silence).await?;
    ensure!(held, "the exit is told before the host has closed its end of stdout");
    drop(stdout);
    s.response_to(wait).await?.ok()?;
    s.clean_up(&id, init).await;
    Ok(())
}

pub(super) async fn root_exit(s: &mut Session) -> Checked {
    s.ready().await?;
    let ([port], mut listeners) = s.listen().await?;
    let args = s.script("echo said");
    let body = pipes(None, Some(port), None, json!({"CommandArgs": args, "WorkingDirectory": "/"}));
    let pid = s.call(MessageType::EXECUTE_PROCESS, UVM_ID, body).await?.pid()?;
    s.wait(UVM_ID, pid).await?.ok()?;
    let mut stdout = s.accept(&mut listeners[0]).await?;
    let said = s.read_all(&mut stdout).await?;
    ensure!(said == b"said\n", "it said {:?}", String::from_utf8_lossy(&said));
    Ok(())
}

pub(super) async fn no_stdin(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("nothing", &["cat"]).await?;
    let run = s.run(&id, json!({})).await?;
    s.delete(&id).await?;
    ensure!((run.stdout.as_str(), run.code) == ("", 0), "{run:?}");
    Ok(())
}

/// A process with a terminal.
fn terminal(args: &[&str], height: u32, width: u32) -> serde_json::Value {
    let mut process = process(args);
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": height, "width": width});
    process
}

/// Everything that a terminal shows until its end.
async fn shown(s: &mut Session, stream: &mut Stream) -> Checked<String> {
    let (limit, mut bytes, mut buffer) = (s.answer, Vec::new(), [0; 4096]);
    let reading = async {
        // A terminal may end with an error.
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            bytes.extend_from_slice(&buffer[..len]);
        }
    };
    let ended = timeout(limit, reading).await;
    ensure!(ended.is_ok(), "the terminal does not end within {limit:?}");
    Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
}

async fn terminal_container(s: &mut Session, what: &str, args: &[&str]) -> Checked<String> {
    let id = s.name(what);
    s.combine(&id).await?;
    let mut document = document(&id, args);
    document["OciSpecification"]["process"] = terminal(args, 33, 77);
    s.create_from(&id, document).await?.ok()?;
    let mut running = s.interactive(&id, json!({})).await?;
    let text = shown(s, &mut running.stdout).await?;
    drop(running.stdout);
    s.wait(&id, running.pid).await?.ok()?;
    s.delete(&id).await?;
    Ok(text)
}

pub(super) async fn on_a_terminal(s: &mut Session) -> Checked {
    s.ready().await?;
    let text = terminal_container(s, "terminal", &["sh", "-c", "echo out; echo err >&2"]).await?;
    ensure!(text == "out\nerr\n", "stdout has {text:?}");
    Ok(())
}

pub(super) async fn console_size(s: &mut Session) -> Checked {
    s.ready().await?;
    let text = terminal_container(s, "size", &["stty", "size"]).await?;
    ensure!(text == "33 77\n", "the size of the terminal is {text:?}");
    Ok(())
}

pub(super) async fn resize(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("resize").await?;
    let script = ["sh", "-c", "read line; stty size"];
    let mut running = s.interactive(&id, json!({"OciProcess": terminal(&script, 33, 77)})).await?;
    let size = json!({"ProcessId": running.pid, "Height": 41, "Width": 121});
    s.call(MessageType::RESIZE_CONSOLE, &id, size).await?.ok()?;
    running.stdin.write_all(b"\n").await?;
    let text = shown(s, &mut running.stdout).await?;
    drop(running.stdout);
    s.wait(&id, running.pid).await?.ok()?;
    let plain = json!({"ProcessId": init, "Height": 41, "Width": 121});
    let answer = s.call(MessageType::RESIZE_CONSOLE, &id, plain).await?;
    s.clean_up(&id, init).await;
    ensure!(text.ends_with("41 121\n"), "the terminal shows {text:?}");
    answer.fault(HResult::FAIL)
}
