//! Dialling, frames, and what holds for all of them.

use std::time::{Duration, Instant};

use linkspan_protocol::{MessageType, UVM_ID};
use serde_json::json;

use crate::observer::Echo;
use crate::session::{ACTIVITY, Session};
use crate::statement::Profile;
use crate::verdict::{Checked, Stop, ensure};
use crate::wire::frame;

const STACKS: MessageType = MessageType::DUMP_STACKS;
const PROPERTIES: MessageType = MessageType::GET_PROPERTIES;

pub(super) async fn dials(s: &mut Session) -> Checked {
    s.fresh().await
}

pub(super) async fn keeps_dialling(s: &mut Session) -> Checked {
    s.fresh().await?;
    s.target.close();
    s.hang_up();
    // Long enough for an agent that doubles its pauses to have reached the longest.
    tokio::time::sleep(Duration::from_secs(2)).await;
    s.target.open().await?;
    let begun = Instant::now();
    s.fresh().await?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_millis(2500), "it took {took:?} to dial again");
    Ok(())
}

pub(super) async fn is_silent_at_first(s: &mut Session) -> Checked {
    s.fresh().await?;
    let silence = s.environment.silence;
    ensure!(!s.says_something(silence).await?, "something comes before anything was asked");
    Ok(())
}

pub(super) async fn header(s: &mut Session) -> Checked {
    s.fresh().await?;
    s.negotiate(4, 4).await.map(drop)
}

pub(super) async fn size(s: &mut Session) -> Checked {
    s.ready().await?;
    s.call(STACKS, UVM_ID, json!({})).await?;
    // With a failure, and with text that takes more bytes than characters.
    s.call(PROPERTIES, "nowhere-\u{e9}\u{4e16}", json!({})).await.map(drop)
}

pub(super) async fn object(s: &mut Session) -> Checked {
    s.ready().await?;
    s.call(STACKS, UVM_ID, json!({})).await?;
    s.call(PROPERTIES, "nowhere-\u{e9}\u{4e16}-\"\u{1}", json!({})).await.map(drop)
}

pub(super) async fn newline(s: &mut Session) -> Checked {
    s.ready().await?;
    for payload in [&b"{\"ContainerId\":\"nowhere\"}\n"[..], b"{\"ContainerId\":\"nowhere\"}"] {
        let id = s.fresh_id();
        s.send(PROPERTIES, id, payload).await?;
        let answer = s.response_to(id).await?;
        answer.fault(linkspan_protocol::HResult::SYSTEM_NOT_FOUND)?;
    }
    Ok(())
}

pub(super) async fn cuts(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.fresh_id();
    let bytes = frame(STACKS, id, b"{\"ContainerId\":\"\"}");
    for cut in 1..bytes.len() {
        s.expect(id, STACKS, Echo::Exactly(String::new()));
        s.write(&bytes[..cut]).await?;
        tokio::task::yield_now().await;
        s.write(&bytes[cut..]).await?;
        s.response_to(id).await?;
    }
    let ids: Vec<u64> = (0..30).map(|_| s.fresh_id()).collect();
    let mut many = Vec::new();
    for &id in &ids {
        s.expect(id, STACKS, Echo::Exactly(String::new()));
        many.extend(frame(STACKS, id, b"{}"));
    }
    s.write(&many).await?;
    for id in ids {
        s.response_to(id).await?;
    }
    Ok(())
}

pub(super) async fn response_type(s: &mut Session) -> Checked {
    s.ready().await?;
    for kind in super::negotiation::KNOWN {
        s.call(kind, "nowhere", json!({})).await?;
    }
    Ok(())
}

pub(super) async fn ids(s: &mut Session) -> Checked {
    s.ready().await?;
    for id in [0, u64::from(u32::MAX), 1 << 53, (1 << 53) + 1, i64::MAX as u64, 1 << 63, u64::MAX] {
        s.send(STACKS, id, b"{}").await?;
        s.response_to(id).await?;
    }
    Ok(())
}

pub(super) async fn whole(s: &mut Session) -> Checked {
    s.ready().await?;
    s.call(PROPERTIES, "nowhere", json!({})).await?;
    s.call(STACKS, UVM_ID, json!({})).await?;
    if s.observer.has_violations() {
        return Ok(());
    }
    let outcome = flood(s).await;
    // Whatever is wrong with a frame that was right when it was alone is so for its company.
    for (_, text) in s.observer.take() {
        s.observer.violation(11, text);
    }
    outcome
}

async fn flood(s: &mut Session) -> Checked {
    let mut ids = Vec::new();
    for number in 0..200 {
        let target = format!("nowhere-{number}");
        let kind = if number % 8 == 0 { STACKS } else { PROPERTIES };
        ids.push((number, kind, s.post(kind, &target, json!({"Query": "{}"})).await?));
    }
    for (number, kind, id) in ids {
        let answer = s.response_to(id).await?;
        if kind == PROPERTIES {
            answer.fault(linkspan_protocol::HResult::SYSTEM_NOT_FOUND)?;
        } else {
            ensure!(answer.succeeded(), "DumpStacks {number}: {}", answer.body);
        }
    }
    Ok(())
}

pub(super) async fn response_limit(s: &mut Session) -> Checked {
    s.ready().await?;
    s.call(STACKS, UVM_ID, json!({})).await?;
    // What an agent quotes of a request makes its answer large.
    let long = "n".repeat(60_000);
    s.call(PROPERTIES, &long, json!({"Query": "{}"})).await?;
    let config = json!({"ContainerConfig": format!("not json {long}")});
    s.call(MessageType::CREATE, "long", config).await?;
    if s.profile == Profile::Hardened {
        let longer = "n".repeat(200_000);
        s.call(PROPERTIES, &longer, json!({"Query": "{}"})).await?;
    }
    Ok(())
}

pub(super) async fn large_request(s: &mut Session) -> Checked {
    s.ready().await?;
    let padding = "x".repeat(1 << 20);
    s.call(STACKS, UVM_ID, json!({"Padding": padding})).await?.ok()
}

pub(super) async fn bad_sizes(s: &mut Session) -> Checked {
    let sizes: &[u32] = match s.profile {
        Profile::V4Lcow => &[0, 15],
        Profile::Hardened => &[0, 1, 15, 0x7fff_ffff, u32::MAX],
    };
    for &size in sizes {
        s.ready().await?;
        let before = restarts(s).await?;
        let mut bytes = frame(STACKS, 3, b"");
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        s.write(&bytes).await?;
        s.closed_by_agent().await?;
        let after = restarts(s).await.map_err(|stop| match stop {
            Stop::Fail(why) => Stop::fail(format!("after a size of {size:#x}: {why}")),
            other => other,
        })?;
        ensure!(before == after, "a size of {size:#x} has ended the agent; it was started again");
    }
    Ok(())
}

/// How often an agent says that it has been started again, on a fresh connection. Agents that
/// count it tell in a capability.
async fn restarts(s: &mut Session) -> Checked<u64> {
    s.fresh().await?;
    let answer = s.negotiate(4, 4).await?;
    answer.ok()?;
    let defined = answer.body["Capabilities"]["GuestDefinedCapabilities"].as_object();
    let count = |(key, value): (&String, &serde_json::Value)| {
        key.ends_with("Restarts").then(|| value.as_u64()).flatten()
    };
    Ok(defined.into_iter().flatten().filter_map(count).sum())
}

pub(super) async fn reconnects(s: &mut Session) -> Checked {
    for _ in 0..5 {
        s.fresh().await?;
        s.negotiate(4, 4).await?.ok()?;
        s.hang_up();
    }
    Ok(())
}

pub(super) async fn activity(s: &mut Session) -> Checked {
    s.ready().await?;
    for activity in [ACTIVITY, "", "not a GUID", "00000000-0000-0000-0000-000000000000"] {
        for kind in [STACKS, PROPERTIES] {
            s.call(kind, "nowhere", json!({"ActivityId": activity})).await?;
        }
    }
    Ok(())
}

pub(super) async fn unknown_keys(s: &mut Session) -> Checked {
    s.ready().await?;
    let more = json!({
        "Future": {"Nested": [1, {"More": null}]},
        "otsc": {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    });
    s.call(STACKS, UVM_ID, more).await?.ok()?;
    let path = "/run/gcs/c/nowhere/rootfs";
    let settings = json!({"ContainerRootPath": path, "Future": 1, "Layers": [{"Future": 2}]});
    s.modify("Remove", "CombinedLayers", settings).await?.ok()
}

pub(super) async fn success_has_no_errors(s: &mut Session) -> Checked {
    s.ready().await?;
    s.call(STACKS, UVM_ID, json!({})).await?.ok()?;
    s.call(MessageType::START, "nowhere", json!({})).await.map(drop)
}
