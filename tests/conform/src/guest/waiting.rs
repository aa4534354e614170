//! Waits, signals, shutdowns and notifications.

use std::time::{Duration, Instant};

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use serde_json::{Value, json};

use crate::container::NOTIFICATION;
use crate::session::{ACTIVITY, Session};
use crate::verdict::{Checked, Stop, ensure};

pub(super) async fn endless(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("endless").await?;
    let wait = s.post_wait(&id, pid).await?;
    let silence = s.environment.silence;
    let silent = s.stays_silent_on(wait, silence).await?;
    s.clean_up(&id, pid).await;
    ensure!(silent, "a wait without limit is answered while the process runs");
    Ok(())
}

pub(super) async fn limited(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("limited").await?;
    let begun = Instant::now();
    let answer = s.wait_for(&id, pid, 100).await?;
    let took = begun.elapsed();
    s.clean_up(&id, pid).await;
    answer.fault(HResult::TIMEOUT)?;
    let good = (Duration::from_millis(90)..Duration::from_secs(3)).contains(&took);
    ensure!(good, "a wait of 100 ms took {took:?}");
    Ok(())
}

pub(super) async fn codes(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("codes").await?;
    for code in [0, 3, 255] {
        let pid = s.exec(&id, &["sh", "-c", &format!("exit {code}")]).await?;
        let told = s.wait(&id, pid).await?.exit_code()?;
        ensure!(told == code, "exit {code} is told as {told}");
    }
    for signal in [15, 9, 10] {
        let pid = s.exec(&id, &["sleep", "1000"]).await?;
        s.signal(&id, pid, signal).await?.ok()?;
        let told = s.wait(&id, pid).await?.exit_code()?;
        ensure!(told == u64::from(128 + signal), "a death by signal {signal} is told as {told}");
    }
    s.clean_up(&id, init).await;
    Ok(())
}

pub(super) async fn several(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("several").await?;
    let pid = s.exec(&id, &["sleep", "1000"]).await?;
    let mut waits = Vec::new();
    for _ in 0..5 {
        waits.push(s.post_wait(&id, pid).await?);
    }
    s.signal(&id, pid, 15).await?.ok()?;
    for wait in waits {
        let told = s.response_to(wait).await?.exit_code()?;
        ensure!(told == 143, "one of several waits is told {told}");
    }
    s.clean_up(&id, init).await;
    Ok(())
}

pub(super) async fn init_again(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("again").await?;
    s.signal(&id, pid, 9).await?.ok()?;
    for _ in 0..3 {
        let told = s.wait(&id, pid).await?.exit_code()?;
        ensure!(told == 137, "the init's exit is told as {told}");
    }
    s.delete(&id).await?.ok()?;
    s.wait(&id, pid).await?.fault(HResult::SYSTEM_NOT_FOUND)
}

pub(super) async fn forgotten(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("forgotten").await?;
    let pid = s.exec(&id, &["true"]).await?;
    s.wait(&id, pid).await?.ok()?;
    let answer = s.wait(&id, pid).await?;
    s.clean_up(&id, init).await;
    answer.fault(HResult::ELEMENT_NOT_FOUND)
}

pub(super) async fn unknown(s: &mut Session) -> Checked {
    s.ready().await?;
    s.wait("nowhere", 1).await?.fault(HResult::SYSTEM_NOT_FOUND)?;
    s.wait(UVM_ID, 4_000_000).await?.fault(HResult::ELEMENT_NOT_FOUND)?;
    let (id, init) = s.sleeper("unknown").await?;
    let answer = s.wait(&id, 4_000_000).await?;
    s.clean_up(&id, init).await;
    answer.fault(HResult::ELEMENT_NOT_FOUND)
}

pub(super) async fn kill(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("kill").await?;
    for options in [json!({}), json!({"Options": {}}), json!({"Options": {"Signal": 0}})] {
        let pid = s.exec(&id, &["sh", "-c", "trap '' TERM; sleep 1000"]).await?;
        let mut body = options.clone();
        body["ProcessId"] = json!(pid);
        s.call(MessageType::SIGNAL_PROCESS, &id, body).await?.ok()?;
        let told = s.wait(&id, pid).await?.exit_code()?;
        ensure!(told == 137, "after {options} the exit is told as {told}");
    }
    s.clean_up(&id, init).await;
    Ok(())
}

pub(super) async fn term(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("term").await?;
    let one = s.exec(&id, &["sleep", "1000"]).await?;
    let two = s.exec(&id, &["sleep", "1000"]).await?;
    s.signal(&id, one, 15).await?.ok()?;
    let told = s.wait(&id, one).await?.exit_code()?;
    let other = s.wait_for(&id, two, 100).await?;
    s.clean_up(&id, init).await;
    ensure!(told == 143, "after SIGTERM the exit is told as {told}");
    ensure!(other.is(HResult::TIMEOUT), "another process does not run on: {}", other.body);
    Ok(())
}

pub(super) async fn signal_ended(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("ended").await?;
    let pid = s.exec(&id, &["true"]).await?;
    s.wait(&id, pid).await?.ok()?;
    let further = s.signal(&id, pid, 15).await?;
    s.signal(&id, init, 9).await?.ok()?;
    s.wait(&id, init).await?.ok()?;
    let init_answer = s.signal(&id, init, 15).await?;
    s.delete(&id).await?;
    further.fault(HResult::ELEMENT_NOT_FOUND)?;
    init_answer.fault(HResult::ELEMENT_NOT_FOUND)
}

pub(super) async fn root_process(s: &mut Session) -> Checked {
    s.ready().await?;
    s.signal(UVM_ID, 1, 15).await?.fault(HResult::SYSTEM_NOT_FOUND)?;
    let size = json!({"ProcessId": 1, "Height": 10, "Width": 10});
    s.call(MessageType::RESIZE_CONSOLE, UVM_ID, size).await?.fault(HResult::SYSTEM_NOT_FOUND)
}

pub(super) async fn does_not_block(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("pending").await?;
    let wait = s.post_wait(&id, init).await?;
    s.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await?.ok()?;
    let pid = s.exec(&id, &["true"]).await?;
    s.wait(&id, pid).await?.ok()?;
    s.signal(&id, init, 9).await?.ok()?;
    s.response_to(wait).await?.ok()?;
    s.delete(&id).await.map(drop)
}

pub(super) async fn shutdown(s: &mut Session) -> Checked {
    s.ready().await?;
    let patient =
        "trap 'sleep 0.5; exit 7' TERM; echo ready > /ready; while :; do sleep 0.05; done";
    for (kind, code, at_once) in
        [(MessageType::SHUTDOWN_GRACEFUL, 7, true), (MessageType::SHUTDOWN_FORCED, 137, false)]
    {
        let id = s.create("shutdown", &["sh", "-c", patient]).await?;
        let pid = s.start(&id).await?;
        let wait = s.post_wait(&id, pid).await?;
        has_trapped(s, &id).await?;
        s.call(kind, &id, json!({})).await?.ok()?;
        if at_once {
            let running = s.stays_silent_on(wait, Duration::from_millis(50)).await?;
            ensure!(running, "{kind} is answered only when the container has ended");
        }
        let told = s.response_to(wait).await?.exit_code()?;
        s.delete(&id).await?;
        ensure!(told == code, "after {kind} the exit is told as {told}, not {code}");
    }
    Ok(())
}

/// Waits until the init has set its trap up.
async fn has_trapped(s: &mut Session, id: &str) -> Checked {
    for _ in 0..100 {
        let pid = s.exec(id, &["test", "-e", "/ready"]).await?;
        if s.wait(id, pid).await?.exit_code()? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(Stop::fail("the container's init does not get to its trap"))
}

pub(super) async fn shutdown_ended(s: &mut Session) -> Checked {
    s.ready().await?;
    for kind in [MessageType::SHUTDOWN_GRACEFUL, MessageType::SHUTDOWN_FORCED] {
        let answer = s.call(kind, "nowhere", json!({})).await?;
        answer.fault(HResult::SYSTEM_NOT_FOUND)?;
    }
    let id = s.create("over", &["true"]).await?;
    let pid = s.start(&id).await?;
    s.wait(&id, pid).await?.ok()?;
    for kind in [MessageType::SHUTDOWN_GRACEFUL, MessageType::SHUTDOWN_FORCED] {
        let answer = s.call(kind, &id, json!({})).await?;
        answer.fault(HResult::SYSTEM_ALREADY_STOPPED)?;
    }
    s.delete(&id).await.map(drop)
}

/// The notification of a container, which has to come.
async fn notified(s: &mut Session, id: &str) -> Checked<Value> {
    let came = s.notification(id, NOTIFICATION).await?;
    came.ok_or_else(|| Stop::fail(format!("no notification for {id} within {NOTIFICATION:?}")))
}

pub(super) async fn one_notification(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("one", &["true"]).await?;
    let pid = s.start(&id).await?;
    s.wait(&id, pid).await?.ok()?;
    s.wait(&id, pid).await?.ok()?;
    notified(s, &id).await?;
    let silence = s.environment.silence;
    let second = s.notification(&id, silence).await?;
    s.delete(&id).await?;
    ensure!(second.is_none(), "there is a second notification: {second:?}");
    Ok(())
}

pub(super) async fn notification_fields(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("fields", &["true"]).await?;
    let pid = s.start(&id).await?;
    s.wait(&id, pid).await?.ok()?;
    let body = notified(s, &id).await?;
    s.delete(&id).await?;
    ensure!(body["ActivityId"] == ACTIVITY, "ActivityId is not Create's: {body}");
    ensure!(body["Operation"] == "None", "Operation is not None: {body}");
    ensure!(body["Result"] == 0, "Result is not 0: {body}");
    ensure!(body.get("ResultInfo").is_none(), "there is a ResultInfo: {body}");
    Ok(())
}

pub(super) async fn notification_types(s: &mut Session) -> Checked {
    s.ready().await?;
    for (signal, kind) in
        [(None, "UnexpectedExit"), (Some(15), "GracefulExit"), (Some(9), "ForcedExit")]
    {
        let args: &[&str] = match signal {
            None => &["true"],
            // An init takes only the signals that it has a handler for.
            Some(_) => &[
                "sh",
                "-c",
                "trap 'exit 0' TERM; echo ready > /ready; while :; do sleep 0.05; done",
            ],
        };
        let id = s.create("types", args).await?;
        let pid = s.start(&id).await?;
        if let Some(signal) = signal {
            has_trapped(s, &id).await?;
            s.signal(&id, pid, signal).await?.ok()?;
        }
        s.wait(&id, pid).await?.ok()?;
        let body = notified(s, &id).await?;
        s.delete(&id).await?;
        ensure!(
            body["Type"] == kind,
            "after signal {signal:?} Type is {}, not {kind}",
            body["Type"]
        );
    }
    Ok(())
}

pub(super) async fn no_notification(s: &mut Session) -> Checked {
    s.ready().await?;
    let unwaited = s.create("unwaited", &["true"]).await?;
    s.start(&unwaited).await?;
    let unstarted = s.create("unstarted", &["true"]).await?;
    let silence = s.environment.silence;
    let one = s.notification(&unwaited, silence).await?;
    let other = s.notification(&unstarted, Duration::from_millis(50)).await?;
    s.delete(&unwaited).await?;
    s.delete(&unstarted).await?;
    ensure!(one.is_none(), "a container that nobody waited for: {one:?}");
    ensure!(other.is_none(), "a container that was never started: {other:?}");
    Ok(())
}

pub(super) async fn away(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("away", &["sleep", "0.5"]).await?;
    let pid = s.start(&id).await?;
    s.post_wait(&id, pid).await?;
    // Not before the agent has read the wait.
    s.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await?;
    s.target.close();
    s.hang_up();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    s.ready().await?;
    let body = notified(s, &id).await?;
    s.delete(&id).await?;
    ensure!(body["Type"] == "UnexpectedExit", "Type is {}", body["Type"]);
    Ok(())
}

pub(super) async fn outlives(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("outlives").await?;
    let wait = s.post_wait(&id, pid).await?;
    s.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await?;
    s.hang_up();
    s.ready().await?;
    s.signal(&id, pid, 9).await?.ok()?;
    let told = s.response_to(wait).await?.exit_code()?;
    s.delete(&id).await?;
    ensure!(told == 137, "the exit is told as {told}");
    Ok(())
}
