//! The streams of processes. Most of it is watched in every run, or in the one with a right guest.

use std::time::Duration;

use linkspan_protocol::{MessageType, port};

use super::record::{Record, Second};
use super::script::{Script, Step};
use super::session::HostSession;
use crate::verdict::{Checked, Stop, ensure};

const EXECUTE: MessageType = MessageType::EXECUTE_PROCESS;

fn skip<T>(why: &str) -> Checked<T> {
    Err(Stop::Skip(why.to_owned()))
}

/// The run with a right guest, in which streams were connected.
async fn streams(s: &mut HostSession) -> Checked<Record> {
    let plain = s.plain_with(EXECUTE).await?;
    match plain.stdio.dialled {
        0 => skip("the host did not ask for a stream"),
        _ => Ok(plain),
    }
}

pub(super) async fn listens_first(s: &mut HostSession) -> Checked {
    streams(s).await.map(drop)
}

pub(super) async fn ports(s: &mut HostSession) -> Checked {
    let plain = streams(s).await?;
    let ports = plain.of(EXECUTE).flat_map(|request| {
        let settings = &request.body["Settings"]["VsockStdioRelaySettings"];
        ["StdIn", "StdOut", "StdErr"].map(|key| settings[key].as_u64().unwrap_or_default())
    });
    let least = ports.filter(|&port| port != 0).min().unwrap_or_default();
    let first = port::FIRST_STDIO;
    ensure!(least == u64::from(first), "the first port is {least:#x}, not {first:#x}");
    Ok(())
}

pub(super) async fn relay_settings(s: &mut HostSession) -> Checked {
    s.plain_with(EXECUTE).await.map(drop)
}

pub(super) async fn one_connection(s: &mut HostSession) -> Checked {
    streams(s).await?;
    let mut script = Script::new("a second connection to each stdio port");
    script.dials_stdio_again = true;
    // What is to be judged is to last until then.
    let late = [Step::Wait(Duration::from_millis(800)), Step::Answer];
    script = script.always(MessageType::WAIT_FOR_PROCESS, late);
    let run = s.run(script).await?;
    if run.second_stdio.is_empty() {
        return skip("the run was over before a second connection");
    }
    for (port, second) in &run.second_stdio {
        ensure!(*second == Second::Refused, "port {port:#x} takes a second connection");
    }
    Ok(())
}

pub(super) async fn closes_outputs(s: &mut HostSession) -> Checked {
    match streams(s).await?.stdio.outputs {
        0 => skip("no output of a process has ended"),
        _ => Ok(()),
    }
}

pub(super) async fn keeps_outputs(s: &mut HostSession) -> Checked {
    closes_outputs(s).await
}

pub(super) async fn half_closes(s: &mut HostSession) -> Checked {
    match streams(s).await?.stdio.inputs {
        0 => skip("the host did not end an input"),
        _ if !s.tells_half_closed() => skip("over these sockets a closed stdin looks half-closed"),
        _ => Ok(()),
    }
}
