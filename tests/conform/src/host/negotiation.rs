//! The bridge's beginning.

use std::time::Duration;

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use serde_json::{Value, json};

use super::record::{Closed, Record, Request, Second};
use super::script::{Script, Step, capabilities};
use super::session::HostSession;
use crate::verdict::{Checked, Stop, ensure};

const NEGOTIATE: MessageType = MessageType::NEGOTIATE_PROTOCOL;

pub(super) async fn listens(s: &mut HostSession) -> Checked {
    let mut script = Script::new("a second connection to the bridge");
    script.dials_bridge_again = true;
    // What is to be judged is to last until then.
    script =
        script.once(MessageType::CREATE, [Step::Wait(Duration::from_millis(900)), Step::Answer]);
    let run = s.run(script).await?;
    match run.second_bridge {
        Some(Second::Open(len @ 1..)) => {
            Err(Stop::fail(format!("a second connection is served beside the first: {len} bytes")))
        }
        Some(_) => Ok(()),
        None => Err(Stop::Skip("the run was over before the second connection".into())),
    }
}

pub(super) async fn first(s: &mut HostSession) -> Checked {
    says_something(&s.plain().await?)
}

pub(super) async fn versions(s: &mut HostSession) -> Checked {
    s.plain_with(NEGOTIATE).await.map(drop)
}

fn says_something(run: &Record) -> Checked {
    ensure!(!run.requests.is_empty(), "the host says nothing. {}", run.words());
    Ok(())
}

pub(super) async fn waits(s: &mut HostSession) -> Checked {
    let late = [Step::Wait(Duration::from_millis(400)), Step::Answer];
    let run = s.run(Script::new("a slow negotiation").once(NEGOTIATE, late)).await?;
    says_something(&run)?;
    let answered = run.of(NEGOTIATE).next().and_then(|request| request.answered);
    let early = run.requests.iter().find(|request| {
        request.message_type != NEGOTIATE && answered.is_none_or(|at| request.came < at)
    });
    match early {
        Some(early) => {
            let text = format!("{} comes before the negotiation is answered", early.message_type);
            Err(Stop::fail(text))
        }
        None => Ok(()),
    }
}

pub(super) async fn version(s: &mut HostSession) -> Checked {
    for version in [5, 3] {
        let other = Step::With(json!({"Version": version}));
        s.terminates(Script::new("a Version other than 4").once(NEGOTIATE, [other])).await?;
    }
    Ok(())
}

pub(super) async fn refused(s: &mut HostSession) -> Checked {
    const WORDS: &str = "the scripted guest speaks version 9 alone";
    let refusal = Step::Fault(HResult::UNSUPPORTED_PROTOCOL_VERSION, WORDS);
    let run = s.terminates(Script::new("a refused negotiation").once(NEGOTIATE, [refusal])).await?;
    if let Some(program) = &run.program {
        ensure!(program.says(WORDS), "the program does not say why: {}", run.words());
    }
    Ok(())
}

/// Whether the host has gone on after the negotiation.
fn goes_on_with(run: &Record, what: &str) -> Checked {
    let next = run.requests.iter().find(|request| request.message_type != NEGOTIATE);
    ensure!(next.is_some(), "the host does not go on with {what}. {}", run.words());
    Ok(())
}

pub(super) async fn empty_capabilities(s: &mut HostSession) -> Checked {
    goes_on_with(&s.plain().await?, "a right guest")?;
    for empty in [json!({}), Value::Null] {
        let mut all = capabilities();
        all["GuestDefinedCapabilities"] = empty;
        let run = s.run(Script::new("no defined capabilities").capabilities(all)).await?;
        goes_on_with(&run, "no defined capabilities")?;
    }
    Ok(())
}

pub(super) async fn system(s: &mut HostSession) -> Checked {
    let mut all = capabilities();
    all["RuntimeOsType"] = json!("lINUX");
    s.goes_on(Script::new("RuntimeOsType lINUX").capabilities(all)).await?;
    let run = no_system(s).await?;
    let linux = run
        .of(MessageType::EXECUTE_PROCESS)
        .find(|request| request.body["Settings"].get("VsockStdioRelaySettings").is_some());
    ensure!(linux.is_none(), "without RuntimeOsType the host goes on as with a Linux guest");
    ensure!(
        !run.program.as_ref().is_some_and(|program| program.success)
            || run.of(MessageType::CREATE).next().is_none(),
        "without RuntimeOsType the host goes on as with a Linux guest"
    );
    Ok(())
}

/// Requests that came when the negotiation was answered.
fn after_negotiation(run: &Record) -> impl Iterator<Item = &Request> {
    let answered = run.of(NEGOTIATE).next().and_then(|request| request.answered);
    run.requests.iter().filter(move |request| {
        request.message_type != NEGOTIATE && answered.is_some_and(|at| request.came > at)
    })
}

async fn no_system(s: &mut HostSession) -> Checked<Record> {
    let mut all = capabilities();
    all.as_object_mut().map(|all| all.remove("RuntimeOsType"));
    s.run(Script::new("no RuntimeOsType").capabilities(all)).await
}

pub(super) async fn windows(s: &mut HostSession) -> Checked {
    let run = no_system(s).await?;
    let Some(next) = after_negotiation(&run).next() else {
        let why = match run.closed {
            Closed::ByHost => "it closes the bridge",
            _ => "it says nothing more",
        };
        return Err(Stop::Skip(format!("the host drives no Windows guest: {why}")));
    };
    let change = next.change();
    ensure!(
        next.message_type == MessageType::MODIFY_SETTINGS && change == ("Update", "HvSocket"),
        "the first request to a Windows guest is {} {change:?}",
        next.message_type
    );
    let settings = &next.body["Request"]["Settings"];
    let other = settings.as_object().and_then(|all| {
        all.keys().find(|key| !["LocalAddress", "ParentAddress"].contains(&key.as_str()))
    });
    ensure!(other.is_none(), "the settings of HvSocket have {other:?}");
    Ok(())
}

pub(super) async fn machine(s: &mut HostSession) -> Checked {
    goes_on_with(&s.plain().await?, "a right guest")?;
    for starts in [false, true] {
        let mut all = capabilities();
        all["SendHostCreateMessage"] = json!(true);
        if starts {
            all["SendHostStartMessage"] = json!(true);
        }
        let slow = || [Step::Wait(Duration::from_millis(100)), Step::Answer];
        let script = Script::new("SendHostCreateMessage").capabilities(all);
        let script = script.once(MessageType::CREATE, slow()).once(MessageType::START, slow());
        let run = s.run(script).await?;
        let mut wanted = vec![MessageType::CREATE];
        if starts {
            wanted.push(MessageType::START);
        }
        let mut after = run.of(NEGOTIATE).next().and_then(|request| request.answered);
        let mut requests = after_negotiation(&run);
        for kind in wanted {
            let text = format!("{kind} of the machine does not come");
            let request = requests.next().ok_or_else(|| Stop::fail(text.clone()))?;
            let right = request.message_type == kind && request.container() == UVM_ID;
            ensure!(right, "{text}, but {} of {:?}", request.message_type, request.container());
            ensure!(Some(request.came) > after, "{kind} comes before the last answer");
            after = request.answered;
        }
        if let Some(next) = run.requests.iter().find(|request| Some(request.came) > after) {
            let again = next.message_type == MessageType::START && next.container() == UVM_ID;
            ensure!(!again, "the machine is started, which the guest has not asked for");
        }
    }
    Ok(())
}

pub(super) async fn gated(s: &mut HostSession) -> Checked {
    let plain = s.plain().await?;
    let is_gated = |run: &Record| {
        let request = run.requests.iter().find(|request| match request.message_type {
            MessageType::DUMP_STACKS
            | MessageType::DELETE_CONTAINER_STATE
            | MessageType::MODIFY_SERVICE_SETTINGS => true,
            MessageType::MODIFY_SETTINGS => request.change().1 == "Network",
            _ => false,
        });
        request.map(|request| request.message_type)
    };
    if is_gated(&plain).is_none() {
        let text =
            "the host did not send DumpStacks, DeleteContainerState, networks or log forwarding";
        return Err(Stop::Skip(text.into()));
    }
    let mut all = capabilities();
    all["GuestDefinedCapabilities"] = json!({});
    let run = s.run(Script::new("no defined capabilities").capabilities(all)).await?;
    match is_gated(&run) {
        Some(kind) => Err(Stop::fail(format!("{kind} is sent to a guest that does not have it"))),
        None => Ok(()),
    }
}
