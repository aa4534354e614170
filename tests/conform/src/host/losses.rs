//! Lost connections, silence, and the other ports.

use std::time::Duration;

use linkspan_protocol::port::ENTROPY_LEN;
use linkspan_protocol::{MessageType, UVM_ID};
use serde_json::json;

use super::record::{Closed, Record};
use super::script::{Script, Step, capabilities};
use super::session::HostSession;
use crate::verdict::{Checked, Stop, ensure};

const WAIT: MessageType = MessageType::WAIT_FOR_PROCESS;
const NEGOTIATE: MessageType = MessageType::NEGOTIATE_PROTOCOL;

/// How long a host may take to give a lost guest up. One that gives it time to come back takes a
/// while.
const GIVE_UP: Duration = Duration::from_secs(30);

/// How long a request may be unanswered.
const SILENCE: Duration = Duration::from_secs(300);

/// How much longer the harness looks on.
const SLACK: Duration = Duration::from_secs(15);

/// A run in which the connection is lost while a wait is pending, and made again. Nothing is lost
/// with it but what the guest has not answered yet.
async fn resumed(s: &mut HostSession) -> Checked<Record> {
    s.plain_with(WAIT).await?;
    let mut all = capabilities();
    all["SendHostCreateMessage"] = json!(true);
    let long = Step::Wait(Duration::from_millis(150));
    let script = Script::new("a lost connection")
        .once(NEGOTIATE, [Step::Answer])
        .when(WAIT, [Step::Hold, long, Step::Redial])
        .once(NEGOTIATE, [Step::With(json!({"Capabilities": all}))]);
    let run = s.run(script).await?;
    let said = run.requests.iter().any(|request| request.connection > 0);
    match run.redialled {
        // One that ends with its bridge may be dialled for a moment.
        Some(true) if said || run.closed != Closed::ByHost => Ok(run),
        Some(_) => {
            Err(Stop::Skip("the host takes no second connection: it does not migrate".into()))
        }
        None => Err(Stop::Skip("the host was gone before the connection was lost".into())),
    }
}

pub(super) async fn no_second_create(s: &mut HostSession) -> Checked {
    let run = resumed(s).await?;
    let again = run.requests.iter().find(|request| {
        request.connection > 0
            && request.container() == UVM_ID
            && [MessageType::CREATE, MessageType::START].contains(&request.message_type)
    });
    match again {
        Some(again) => {
            Err(Stop::fail(format!("{} of the machine is sent again", again.message_type)))
        }
        None => Ok(()),
    }
}

pub(super) async fn resumes(s: &mut HostSession) -> Checked {
    let run = resumed(s).await?;
    let first = run.requests.iter().find(|request| request.connection > 0);
    let Some(first) = first else {
        return Err(Stop::fail(format!("nothing comes on the new connection. {}", run.words())));
    };
    let kind = first.message_type;
    ensure!(kind == NEGOTIATE, "the first request on the new connection is {kind}");
    let plain = s.plain().await?;
    super::session::does_all(&run, &plain)
}

pub(super) async fn destination(_s: &mut HostSession) -> Checked {
    let text = "the harness cannot tell a host that it is a migration's destination";
    Err(Stop::Skip(text.into()))
}

pub(super) async fn lost(s: &mut HostSession) -> Checked {
    if !s.is_spawned() {
        return Err(Stop::Skip("only of a program that is started here can it be told".into()));
    }
    s.plain_with(WAIT).await?;
    let cut = Step::bytes(|bytes| bytes[..bytes.len() / 2].to_vec());
    let pause = Step::Wait(Duration::from_millis(100));
    let mut ways = vec![vec![Step::Hold, pause.clone(), Step::Leave]];
    if s.is_hardened() {
        ways.push(vec![Step::Hold, pause, cut, Step::Leave]);
    }
    s.takes(GIVE_UP + SLACK)?;
    let scripts = ways.into_iter().map(|way| {
        let mut script = Script::new("the end of the connection").when(WAIT, way);
        script.patience = Some(GIVE_UP);
        script
    });
    let hardened = s.is_hardened();
    s.run_each(scripts.collect(), |run| {
        let Some(program) = &run.program else { return Ok(()) };
        if run.deviated.is_none() {
            return Err(Stop::Skip("the host was gone before the connection ended".into()));
        }
        ensure!(program.status.is_some(), "the program waits on, {GIVE_UP:?} after the end");
        ensure!(!program.success, "the program ends in success, though its bridge was lost");
        ensure!(!hardened || !program.crashed, "the program crashes: {}", run.words());
        Ok(())
    })
    .await
}

pub(super) async fn long_silence(s: &mut HostSession) -> Checked {
    s.plain_with(MessageType::CREATE).await?;
    s.takes(SILENCE + 2 * SLACK)?;
    let late = || [Step::Wait(SILENCE + SLACK / 2), Step::Answer];
    let request = Script::new("a request without an answer").once(MessageType::CREATE, late());
    let wait = Script::new("a wait without an answer").once(WAIT, late());
    // A host that does not wait is told by what it has done with a right guest.
    let scripts = if s.plain().await?.has(WAIT) { vec![request, wait] } else { vec![request] };
    s.run_each(scripts, |run| {
        let at = |kind| run.of(kind).next().map(|request| request.at);
        // Whoever comes to wait only after the silence has not given the request up.
        match (at(MessageType::CREATE), at(WAIT)) {
            (Some(create), Some(wait)) if wait.saturating_sub(create) < SILENCE => kept(run),
            _ => given_up(run),
        }
    })
    .await
}

/// The host has closed the bridge when the time for an answer was over, not before and not later.
fn given_up(run: &Record) -> Checked {
    let asked = run.of(MessageType::CREATE).next().map(|request| request.at).unwrap_or_default();
    ensure!(run.closed == Closed::ByHost, "the host keeps the bridge. {}", run.words());
    let took = run.closed_at.unwrap_or_default().saturating_sub(asked);
    ensure!(
        took + Duration::from_secs(2) > SILENCE && took < SILENCE + SLACK / 2,
        "the host closes the bridge after {took:?}"
    );
    Ok(())
}

fn kept(run: &Record) -> Checked {
    let waited = run.of(WAIT).all(|wait| wait.answered.is_some());
    ensure!(waited, "a wait that lasts ends the bridge: {}", run.words());
    let failed = run.program.as_ref().is_some_and(|program| !program.success);
    ensure!(!failed, "the host fails after a wait that lasts: {}", run.words());
    Ok(())
}

pub(super) async fn entropy(s: &mut HostSession) -> Checked {
    let Some((len, ended)) = s.plain().await?.entropy else {
        return Err(Stop::Skip("the host does not listen on port 1".into()));
    };
    ensure!(len == ENTROPY_LEN, "port 1 gives {len} bytes");
    ensure!(ended, "port 1 is not closed after its bytes");
    Ok(())
}

pub(super) async fn log(s: &mut HostSession) -> Checked {
    let plain = s.plain().await?;
    if !plain.has_log {
        return Err(Stop::Skip("the host does not listen on port 109".into()));
    }
    let mut script = Script::new("a log of all kinds");
    script.log = "{\"time\":\"2026-01-02T03:04:05.678Z\",\"level\":\"info\",\"msg\":\"m\",\"n\":1e3,\
                  \"deep\":{\"a\":[null,true]}}\n{\"level\":\"fatal\"}\nno JSON {at all\n\
                  {\"level\":\"info\",\"msg\":\"after it\"}\n";
    let run = s.run(script).await?;
    super::session::does_all(&run, &plain)?;
    match run.violations.iter().find(|(id, _)| *id == 49) {
        Some((_, text)) => Err(Stop::fail(text)),
        None => Ok(()),
    }
}
