//! Create, Start and DeleteContainerState.

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use serde_json::{Value, json};

use crate::session::Session;
use crate::statement::Profile;
use crate::verdict::{Checked, ensure};
use crate::wire::document;

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
const SKIP_NETWORK: &str = "io.microsoft.cri.skip-pod-networking";

pub(super) async fn schemas(s: &mut Session) -> Checked {
    s.ready().await?;
    for (major, minor, taken) in [(2, 0, false), (2, 1, true), (2, 5, true), (3, 0, true)] {
        let id = s.name("schema");
        s.combine(&id).await?;
        let mut document = document(&id, &["true"]);
        document["SchemaVersion"] = json!({"Major": major, "Minor": minor});
        let answer = s.create_from(&id, document).await?;
        if taken {
            ensure!(answer.succeeded(), "schema version {major}.{minor}: {}", answer.body);
            s.delete(&id).await?.ok()?;
        } else {
            answer.fault(HResult::INVALID_JSON)?;
            let path = format!("/run/gcs/c/{id}/rootfs");
            s.modify("Remove", "CombinedLayers", json!({"ContainerRootPath": path})).await?;
        }
    }
    Ok(())
}

pub(super) async fn config(s: &mut Session) -> Checked {
    s.ready().await?;
    for config in ["not json", "", "{\"SchemaVersion\":"] {
        let answer =
            s.call(MessageType::CREATE, "config", json!({"ContainerConfig": config})).await?;
        ensure!(answer.is(HResult::INVALID_JSON), "{config:?}: {}", answer.body);
    }
    Ok(())
}

pub(super) async fn create(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.name("plain");
    s.combine(&id).await?;
    let answer = s.create_from(&id, document(&id, &["true"])).await?;
    answer.ok()?;
    let version = answer.body.get("SelectedProtocolVersion");
    ensure!(version.is_none_or(|version| version == 0), "SelectedProtocolVersion is {version:?}");
    s.delete(&id).await.map(drop)
}

pub(super) async fn twice(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("twice").await?;
    let again = s.create_from(&id, document(&id, &["true"])).await?;
    again.fault(HResult::SYSTEM_ALREADY_EXISTS)?;
    let other = s.exec(&id, &["true"]).await?;
    ensure!(s.wait(&id, other).await?.exit_code()? == 0, "the first container does not work on");
    s.clean_up(&id, pid).await;
    Ok(())
}

/// Documents that have to be refused, and with what.
fn broken(id: &str) -> [(Value, Option<HResult>); 4] {
    let mut schema = document(id, &["true"]);
    schema["SchemaVersion"] = json!({"Major": 2, "Minor": 0});
    let mut kind = document(id, &["true"]);
    kind["OciSpecification"]["annotations"] = json!({KIND: "foo"});
    let mut pod = document(id, &["true"]);
    pod["OciSpecification"]["hostname"] = json!("");
    pod["OciSpecification"]["annotations"] = json!({KIND: "container", SANDBOX: "no-such-pod"});
    let mut namespace = document(id, &["true"]);
    namespace["OciSpecification"]["annotations"] = json!({KIND: "sandbox", SANDBOX: id});
    namespace["OciSpecification"]["windows"] =
        json!({"network": {"networkNamespace": "11111111-2222-3333-4444-555555555555"}});
    [
        (schema, Some(HResult::INVALID_JSON)),
        (kind, Some(HResult::FAIL)),
        (pod, None),
        (namespace, Some(HResult::ELEMENT_NOT_FOUND)),
    ]
}

pub(super) async fn id_is_free(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.name("free");
    for (document, _) in broken(&id) {
        s.create_from(&id, document).await?.refused()?;
    }
    s.call(MessageType::CREATE, &id, json!({"ContainerConfig": "x"})).await?.refused()?;
    if s.profile == Profile::Hardened {
        // The reference agent ends at each of these.
        for part in ["", "/process", "/root", "/linux"] {
            let mut document = document(&id, &["true"]);
            if let Some(place) = document.pointer_mut(&format!("/OciSpecification{part}")) {
                *place = Value::Null;
            }
            let answer = s.create_from(&id, document).await?;
            if !answer.succeeded() {
                continue;
            }
            ensure!(
                part == "/linux",
                "a container without OciSpecification{part}: {}",
                answer.body
            );
            s.delete(&id).await?.ok()?;
        }
    }
    s.combine(&id).await?;
    s.create_from(&id, document(&id, &["true"])).await?.ok()?;
    s.delete(&id).await.map(drop)
}

pub(super) async fn namespace(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.name("namespace");
    let [.., (document, code)] = broken(&id);
    let answer = s.create_from(&id, document).await?;
    answer.fault(code.unwrap_or_default())?;
    let id = sandbox(s).await?;
    s.delete(&id).await.map(drop)
}

/// A sandbox without network.
async fn sandbox(s: &mut Session) -> Checked<String> {
    let id = s.name("sandbox");
    s.combine(&id).await?;
    let mut document = document(&id, &["sleep", "1000"]);
    document["OciSpecification"]["annotations"] =
        json!({KIND: "sandbox", SANDBOX: id, SKIP_NETWORK: "true"});
    document["OciSpecification"]["windows"] =
        json!({"network": {"networkNamespace": format!("{id}-network")}});
    let answer = s.create_from(&id, document).await?;
    ensure!(answer.succeeded(), "a sandbox whose networking is skipped: {}", answer.body);
    Ok(id)
}

pub(super) async fn workload_hostname(s: &mut Session) -> Checked {
    s.ready().await?;
    let pod = sandbox(s).await?;
    let id = s.name("workload");
    let mut document = document(&id, &["true"]);
    document["OciSpecification"]["hostname"] = json!("named");
    document["OciSpecification"]["annotations"] = json!({KIND: "container", SANDBOX: pod});
    let answer = s.create_from(&id, document).await?;
    s.delete(&pod).await?;
    answer.fault(HResult::FAIL)
}

pub(super) async fn unknown_pod(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.name("podless");
    let [_, _, (document, _), _] = broken(&id);
    s.create_from(&id, document).await?.refused()
}

pub(super) async fn kind(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.name("kind");
    let [_, (document, _), ..] = broken(&id);
    s.create_from(&id, document).await?.fault(HResult::FAIL)
}

pub(super) async fn start(s: &mut Session) -> Checked {
    s.ready().await?;
    s.call(MessageType::START, "nowhere", json!({})).await?.ok()?;
    if s.environment.layer.is_none() {
        return Ok(());
    }
    let id = s.create("start", &["sleep", "1000"]).await?;
    s.call(MessageType::START, &id, json!({})).await?.ok()?;
    let pid = s.start(&id).await?;
    s.call(MessageType::START, &id, json!({})).await?.ok()?;
    s.clean_up(&id, pid).await;
    Ok(())
}

pub(super) async fn delete_unknown(s: &mut Session) -> Checked {
    s.ready().await?;
    for id in ["nowhere", UVM_ID] {
        let answer = s.call(MessageType::DELETE_CONTAINER_STATE, id, json!({})).await?;
        answer.fault(HResult::SYSTEM_NOT_FOUND)?;
    }
    Ok(())
}

pub(super) async fn delete(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.name("deleted");
    for _ in 0..2 {
        s.combine(&id).await?;
        s.create_from(&id, document(&id, &["true"])).await?.ok()?;
        s.delete(&id).await?.ok()?;
        for kind in [MessageType::GET_PROPERTIES, MessageType::SHUTDOWN_FORCED] {
            let answer = s.call(kind, &id, json!({"Query": "{}"})).await?;
            answer.fault(HResult::SYSTEM_NOT_FOUND)?;
        }
    }
    Ok(())
}

pub(super) async fn directories(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("directories", &["true"]).await?;
    let paths = [format!("/run/gcs/c/{id}"), format!("/run/gcs/scratch/{id}")];
    for path in &paths {
        let there = s.shell(&format!("[ -d {path} ]")).await?;
        ensure!(there.code == 0, "{path} is not there while the container is");
    }
    s.delete(&id).await?.ok()?;
    for path in &paths {
        let there = s.shell(&format!("[ -e {path} ]")).await?;
        ensure!(there.code == 1, "{path} is still there after the deletion");
    }
    Ok(())
}
