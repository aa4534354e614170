//! Exits, signals, shutdowns.

use std::time::Duration;

use linkspan_protocol::{HResult, MessageType};

use super::script::{Script, Step};
use super::session::HostSession;
use crate::verdict::{Checked, Stop, ensure};

const WAIT: MessageType = MessageType::WAIT_FOR_PROCESS;
const SIGNAL: MessageType = MessageType::SIGNAL_PROCESS;
const SHUTDOWNS: [MessageType; 2] = [MessageType::SHUTDOWN_GRACEFUL, MessageType::SHUTDOWN_FORCED];

/// Longer than a host waits for a shutdown to be answered.
const SLOW: Duration = Duration::from_secs(33);

pub(super) async fn notification_types(s: &mut HostSession) -> Checked {
    let plain = s.plain_with(MessageType::CREATE).await?;
    if !plain.has(WAIT) {
        return Err(Stop::Skip("the host did not wait for an init".into()));
    }
    let types: &[&'static str] = match s.is_hardened() {
        true => &["GracefulExit", "ForcedExit", "Unknown", "Reboot", "None", "Paused", "Whatever"],
        false => &["GracefulExit", "Unknown"],
    };
    for kind in types {
        let mut script = Script::new("a notification of any Type");
        script.notification = kind;
        let run = s.run(script).await?;
        super::session::does_all(&run, &plain)?;
    }
    Ok(())
}

pub(super) async fn notified_first(s: &mut HostSession) -> Checked {
    let plain = s.plain_with(WAIT).await?;
    let tells = plain.program.as_ref().is_some_and(|program| !program.exits().is_empty());
    if !tells {
        let text =
            "the host does not print the exit codes that it is told (conform: exit PID CODE)";
        return Err(Stop::Skip(text.into()));
    }
    let mut script = Script::new("a notification before the init's exit code");
    script.notifies_first = true;
    let run = s.run(script).await?;
    super::session::does_all(&run, &plain)?;
    let exits = run.program.as_ref().map(|program| program.exits()).unwrap_or_default();
    for (pid, code) in exits {
        let told = run.told.iter().find(|(of, _)| *of == pid).map(|(_, code)| *code);
        ensure!(told == Some(code), "the host takes {code} for the code of {pid}; it was {told:?}");
    }
    Ok(())
}

pub(super) async fn gone_when_waited(s: &mut HostSession) -> Checked {
    s.plain_with(WAIT).await?;
    let gone = Step::Fault(HResult::ELEMENT_NOT_FOUND, "there is no such process any more");
    let script = Script::new("a wait for a process that is gone").always(WAIT, [gone]);
    s.goes_on(script).await.map(drop)
}

pub(super) async fn gone_when_signalled(s: &mut HostSession) -> Checked {
    s.plain_with(SIGNAL).await?;
    let gone = Step::Fault(HResult::ELEMENT_NOT_FOUND, "there is no such process any more");
    let script = Script::new("a signal for a process that is gone").always(SIGNAL, [gone]);
    s.goes_on(script).await.map(drop)
}

/// The shutdown that the host sends.
async fn shutdown(s: &mut HostSession) -> Checked<MessageType> {
    let plain = s.plain().await?;
    let found = SHUTDOWNS.into_iter().find(|&kind| plain.has(kind));
    found.ok_or_else(|| Stop::Skip("the host did not shut a container down".into()))
}

pub(super) async fn shutdown_of_nothing(s: &mut HostSession) -> Checked {
    let kind = shutdown(s).await?;
    let unknown = Step::Fault(HResult::SYSTEM_NOT_FOUND, "there is no such container");
    s.goes_on(Script::new("a shutdown of nothing").always(kind, [unknown])).await.map(drop)
}

pub(super) async fn slow_shutdown(s: &mut HostSession) -> Checked {
    let kind = shutdown(s).await?;
    s.takes(SLOW + Duration::from_secs(15))?;
    // All else waits as well, so that the bridge is still wanted when the late answer comes.
    let late = [Step::Hold, Step::Wait(SLOW), Step::Answer, Step::Release];
    let run = s.run(Script::new("a shutdown that is answered late").once(kind, late)).await?;
    let plain = s.plain().await?;
    super::session::does_all(&run, &plain)?;
    let asked = run.of(kind).next().ok_or_else(|| Stop::Skip("no shutdown came".into()))?;
    let next = run
        .requests
        .iter()
        .find(|request| request.came > asked.came && request.message_type != WAIT);
    let limit = asked.at + SLOW;
    let waited = next.is_some_and(|next| next.at >= limit);
    ensure!(!waited, "the host waits for the answer to {kind} for longer than 30 s");
    Ok(())
}
