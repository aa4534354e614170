//! The first exchange, and failures.

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use serde_json::{Value, json};

use crate::session::{Response, Session};
use crate::verdict::{Checked, ensure};

/// What a guest has to know, but for NegotiateProtocol.
pub(super) const KNOWN: [MessageType; 12] = [
    MessageType::CREATE,
    MessageType::START,
    MessageType::SHUTDOWN_GRACEFUL,
    MessageType::SHUTDOWN_FORCED,
    MessageType::EXECUTE_PROCESS,
    MessageType::WAIT_FOR_PROCESS,
    MessageType::SIGNAL_PROCESS,
    MessageType::RESIZE_CONSOLE,
    MessageType::GET_PROPERTIES,
    MessageType::MODIFY_SETTINGS,
    MessageType::DUMP_STACKS,
    MessageType::DELETE_CONTAINER_STATE,
];

pub(super) async fn nothing_before(s: &mut Session) -> Checked {
    s.fresh().await?;
    for kind in KNOWN {
        let answer = s.call(kind, "nowhere", json!({})).await?;
        ensure!(answer.is(HResult::NOT_IMPLEMENTED), "{kind} before negotiation: {}", answer.body);
    }
    Ok(())
}

async fn agreed(s: &mut Session, minimum: u64, maximum: u64) -> Checked<Response> {
    s.fresh().await?;
    let answer = s.negotiate(minimum, maximum).await?;
    answer.ok()?;
    ensure!(answer.body["Version"] == 4, "Version is {}", answer.body["Version"]);
    Ok(answer)
}

pub(super) async fn exact(s: &mut Session) -> Checked {
    agreed(s, 4, 4).await.map(drop)
}

pub(super) async fn wide(s: &mut Session) -> Checked {
    agreed(s, 1, 10).await.map(drop)
}

async fn disagreed(s: &mut Session, minimum: u64, maximum: u64) -> Checked {
    s.fresh().await?;
    s.negotiate(minimum, maximum).await?.fault(HResult::UNSUPPORTED_PROTOCOL_VERSION)
}

pub(super) async fn too_old(s: &mut Session) -> Checked {
    disagreed(s, 1, 3).await
}

pub(super) async fn too_new(s: &mut Session) -> Checked {
    disagreed(s, 5, 9).await
}

pub(super) async fn again(s: &mut Session) -> Checked {
    s.fresh().await?;
    s.negotiate(1, 3).await?.refused()?;
    s.negotiate(4, 4).await?.ok()?;
    s.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await?.ok()
}

async fn capabilities(s: &mut Session) -> Checked<Value> {
    s.fresh().await?;
    let answer = s.negotiate(4, 4).await?;
    answer.ok()?;
    Ok(answer.body["Capabilities"].clone())
}

pub(super) async fn system(s: &mut Session) -> Checked {
    let all = capabilities(s).await?;
    let system = all["RuntimeOsType"].as_str().unwrap_or_default();
    ensure!(system.eq_ignore_ascii_case("linux"), "RuntimeOsType is {}", all["RuntimeOsType"]);
    Ok(())
}

pub(super) async fn defined(s: &mut Session) -> Checked {
    let all = capabilities(s).await?;
    let defined = all.get("GuestDefinedCapabilities");
    let good = defined.is_some_and(|defined| defined.is_object() || defined.is_null());
    ensure!(good, "GuestDefinedCapabilities is {defined:?}");
    Ok(())
}

pub(super) async fn schemas(s: &mut Session) -> Checked {
    let all = capabilities(s).await?;
    let versions = &all["SupportedSchemaVersions"];
    let wanted = json!({"Major": 2, "Minor": 1});
    let good = versions.as_array().is_some_and(|versions| versions.contains(&wanted));
    ensure!(good, "SupportedSchemaVersions is {versions}");
    Ok(())
}

pub(super) async fn no_create(s: &mut Session) -> Checked {
    let all = capabilities(s).await?;
    for key in ["SendHostCreateMessage", "SendHostStartMessage"] {
        let value = all.get(key);
        ensure!(value.is_none_or(|value| value == false), "{key} is {value:?}");
    }
    Ok(())
}

pub(super) async fn once(s: &mut Session) -> Checked {
    s.ready().await?;
    s.negotiate(4, 4).await?.fault(HResult::NOT_IMPLEMENTED)
}

pub(super) async fn anew(s: &mut Session) -> Checked {
    s.ready().await?;
    s.fresh().await?;
    let answer = s.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await?;
    answer.fault(HResult::NOT_IMPLEMENTED)?;
    let answer = s.negotiate(4, 4).await?;
    answer.ok()?;
    ensure!(answer.body["Version"] == 4, "Version is {}", answer.body["Version"]);
    Ok(())
}

pub(super) async fn unknown(s: &mut Session) -> Checked {
    s.ready().await?;
    for number in [0x1010_0e01, 0x1010_0f01, 0x1020_0101, 0x1010_7701] {
        let kind = MessageType(number);
        let answer = s.call(kind, UVM_ID, json!({})).await?;
        ensure!(answer.is(HResult::NOT_IMPLEMENTED), "{number:#x}: {}", answer.body);
        ensure!(
            answer.message_type == kind.response(),
            "{number:#x} is answered with {:#010x}",
            answer.message_type.0
        );
    }
    Ok(())
}

pub(super) async fn no_json(s: &mut Session) -> Checked {
    s.ready().await?;
    let payloads: [&[u8]; 4] = [b"", b"{", b"not json", b"[1]"];
    for kind in KNOWN.into_iter().filter(|&kind| kind != MessageType::DUMP_STACKS) {
        for payload in payloads {
            let id = s.fresh_id();
            s.send(kind, id, payload).await?;
            let answer = s.response_to(id).await?;
            let text = String::from_utf8_lossy(payload);
            ensure!(answer.is(HResult::INVALID_JSON), "{kind} of {text:?}: {}", answer.body);
        }
    }
    let id = s.fresh_id();
    s.send(MessageType::DUMP_STACKS, id, b"not json").await?;
    s.response_to(id).await?;
    s.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await?.ok()
}

/// Fails each message that can be failed without a container. The observer looks at the rest.
pub(super) async fn records(s: &mut Session) -> Checked {
    s.ready().await?;
    let settings = json!({"Settings": {"ProcessParameters": "{}"}, "ProcessId": 1});
    let mut failed = 0;
    for kind in [
        MessageType::GET_PROPERTIES,
        MessageType::EXECUTE_PROCESS,
        MessageType::WAIT_FOR_PROCESS,
        MessageType::SIGNAL_PROCESS,
        MessageType::SHUTDOWN_FORCED,
        MessageType::DELETE_CONTAINER_STATE,
    ] {
        failed += u32::from(!s.call(kind, "nowhere", settings.clone()).await?.succeeded());
    }
    s.call(MessageType::CREATE, "nowhere", json!({"ContainerConfig": "x"})).await?;
    s.call(MessageType::UPDATE_CONTAINER, "nowhere", json!({})).await?;
    ensure!(failed > 0, "nothing that should fail does");
    Ok(())
}
