//! ExecuteProcess, but for its streams.

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use serde_json::json;

use crate::session::Session;
use crate::statement::Profile;
use crate::verdict::{Checked, ensure};
use crate::wire::{pipes, process};

pub(super) async fn unknown(s: &mut Session) -> Checked {
    s.ready().await?;
    for more in [json!({}), json!({"OciProcess": process(&["true"])})] {
        let body = pipes(None, None, None, more);
        let answer = s.call(MessageType::EXECUTE_PROCESS, "nowhere", body).await?;
        answer.fault(HResult::SYSTEM_NOT_FOUND)?;
    }
    Ok(())
}

pub(super) async fn init(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("init", &["echo", "the init"]).await?;
    let run = s.run(&id, json!({})).await?;
    s.delete(&id).await?;
    ensure!((run.stdout.as_str(), run.code) == ("the init\n", 0), "{run:?}");
    Ok(())
}

pub(super) async fn namespaces(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("inside").await?;
    let links = |process| format!("for n in mnt uts; do readlink /proc/{process}/ns/$n; done");
    let own = s.output(&id, &["sh", "-c", &links("self")]).await?;
    let init = s.output(&id, &["sh", "-c", &links("1")]).await?;
    let named = s.output(&id, &["hostname"]).await?;
    s.clean_up(&id, pid).await;
    ensure!(!own.stdout.is_empty() && own.stdout == init.stdout, "{own:?} is not {init:?}");
    ensure!(named.stdout.trim_end() == id, "the host name there is {:?}", named.stdout);
    Ok(())
}

pub(super) async fn root(s: &mut Session) -> Checked {
    s.ready().await?;
    let run = s.shell("echo from the root; exit 3").await?;
    ensure!((run.stdout.as_str(), run.code) == ("from the root\n", 3), "{run:?}");
    Ok(())
}

pub(super) async fn command_line(s: &mut Session) -> Checked {
    s.ready().await?;
    let words: Vec<String> = s
        .environment
        .shell
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    let line = format!("{} 'echo two words'\";  echo \\\"and more\\\"\"", words.join(" "));
    let run = s.run(UVM_ID, json!({"CommandLine": line, "WorkingDirectory": "/"})).await?;
    ensure!(run.stdout == "two words\nand more\n", "{line:?} printed {:?}", run.stdout);
    let args = s.script("echo arguments");
    let both = json!({"CommandLine": line, "CommandArgs": args, "WorkingDirectory": "/"});
    let run = s.run(UVM_ID, both).await?;
    ensure!(run.stdout == "arguments\n", "with CommandArgs it printed {:?}", run.stdout);
    if s.profile == Profile::Hardened {
        // The reference agent ends at an empty one.
        for broken in ["", "'open"] {
            let body = pipes(None, None, None, json!({"CommandLine": broken}));
            s.call(MessageType::EXECUTE_PROCESS, UVM_ID, body).await?.refused()?;
        }
    }
    Ok(())
}

pub(super) async fn environment(s: &mut Session) -> Checked {
    s.ready().await?;
    // Without the separating zero, as shells read it.
    let args = s.script("IFS= read -r all < /proc/$$/environ; echo \"$all\"");
    let more = json!({
        "CommandArgs": args, "WorkingDirectory": "/", "Environment": {"ONE": "1 2"},
    });
    let run = s.run(UVM_ID, more).await?;
    ensure!(run.stdout == "ONE=1 2\n", "its environment is {:?}", run.stdout);
    Ok(())
}

pub(super) async fn pids(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("pids").await?;
    let mut pids = vec![init];
    for _ in 0..3 {
        pids.push(s.exec(&id, &["sleep", "1000"]).await?);
    }
    let listed = s.properties(&id, r#"{"PropertyTypes":["ProcessList"]}"#).await?;
    let mut gone = Vec::new();
    if !s.environment.shell.is_empty() {
        for pid in &pids {
            let there = s.shell(&format!("[ -d /proc/{pid} ]")).await?;
            if there.code != 0 {
                gone.push(*pid);
            }
        }
    }
    s.clean_up(&id, init).await;
    let mut unique = pids.clone();
    unique.sort_unstable();
    unique.dedup();
    ensure!(unique.len() == pids.len(), "pids are not unique: {pids:?}");
    ensure!(gone.is_empty(), "pids that the machine's root does not have: {gone:?}");
    let list = listed["ProcessList"].as_array().cloned().unwrap_or_default();
    for pid in pids {
        let there = list.iter().any(|entry| entry["ProcessId"] == pid);
        ensure!(there, "{pid} is not in the list of processes: {listed}");
    }
    Ok(())
}

pub(super) async fn parallel(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, init) = s.sleeper("parallel").await?;
    let mut calls = Vec::new();
    for _ in 0..4 {
        let body = pipes(None, None, None, json!({"OciProcess": process(&["true"])}));
        calls.push(s.post(MessageType::EXECUTE_PROCESS, &id, body).await?);
    }
    let mut pids = Vec::new();
    for call in calls {
        pids.push(s.response_to(call).await?.pid()?);
    }
    for pid in pids {
        let code = s.wait(&id, pid).await?.exit_code()?;
        ensure!(code == 0, "the exit code is {code}");
    }
    s.clean_up(&id, init).await;
    Ok(())
}
