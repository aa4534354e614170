//! GetProperties, ModifySettings, DumpStacks and the log.

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use serde_json::{Value, json};

use crate::session::Session;
use crate::statement::Profile;
use crate::verdict::{Checked, Stop, ensure};

pub(super) async fn root_properties(s: &mut Session) -> Checked {
    s.ready().await?;
    let query = json!({"Query": r#"{"PropertyTypes":["ProcessList"]}"#});
    s.call(MessageType::GET_PROPERTIES, UVM_ID, query).await?.fault(HResult::FAIL)
}

pub(super) async fn process_list(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("list").await?;
    let list = s.properties(&id, r#"{"PropertyTypes":["ProcessList"]}"#).await?;
    s.clean_up(&id, pid).await;
    let entries = list["ProcessList"].as_array().cloned().unwrap_or_default();
    ensure!(entries.iter().any(|entry| entry["ProcessId"] == pid), "{pid} is not in {list}");
    Ok(())
}

pub(super) async fn statistics(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("statistics").await?;
    let all = s.properties(&id, r#"{"PropertyTypes":["Statistics"]}"#).await?;
    s.clean_up(&id, pid).await;
    let metrics = &all["LCOWMetrics"];
    ensure!(metrics["cpu"]["usage"]["total"].as_u64() > Some(0), "no cpu.usage.total: {all}");
    ensure!(metrics["memory"]["usage"]["usage"].as_u64() > Some(0), "no memory.usage.usage: {all}");
    ensure!(metrics.get("network").is_none(), "there is network: {all}");
    let blkio = metrics.get("blkio");
    ensure!(blkio.is_none_or(|blkio| *blkio == json!({})), "there is blkio: {all}");
    Ok(())
}

pub(super) async fn empty_query(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("empty", &["true"]).await?;
    for query in ["", "{}", r#"{"PropertyTypes":[]}"#, r#"{"PropertyTypes":["Network","NoSuch"]}"#]
    {
        let answer = s.call(MessageType::GET_PROPERTIES, &id, json!({"Query": query})).await?;
        answer.ok()?;
        let properties = &answer.body["Properties"];
        ensure!(properties == "{}", "the query {query:?} is answered {properties}");
    }
    s.delete(&id).await.map(drop)
}

pub(super) async fn broken_query(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("broken", &["true"]).await?;
    let answer = s.call(MessageType::GET_PROPERTIES, &id, json!({"Query": "{"})).await?;
    s.delete(&id).await?;
    answer.fault(HResult::INVALID_JSON)
}

pub(super) async fn properties_string(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("string").await?;
    let both = s.properties(&id, r#"{"PropertyTypes":["ProcessList","Statistics"]}"#).await?;
    s.clean_up(&id, pid).await;
    ensure!(both.is_object(), "it holds {both}");
    Ok(())
}

async fn change(
    s: &mut Session,
    target: &str,
    request: Value,
) -> Checked<crate::session::Response> {
    s.call(MessageType::MODIFY_SETTINGS, target, json!({"Request": request})).await
}

pub(super) async fn unknown_type(s: &mut Session) -> Checked {
    s.ready().await?;
    for request in [json!({"ResourceType": "NoSuch", "Settings": {}}), json!({"Settings": {}})] {
        change(s, UVM_ID, request).await?.fault(HResult::FAIL)?;
    }
    Ok(())
}

pub(super) async fn no_settings(s: &mut Session) -> Checked {
    s.ready().await?;
    for kind in [
        "MappedVirtualDisk",
        "SCSIDevice",
        "MappedDirectory",
        "VPMemDevice",
        "CombinedLayers",
        "Network",
        "VPCIDevice",
        "SecurityPolicy",
        "SecurityPolicyFragment",
    ] {
        let answer = change(s, UVM_ID, json!({"RequestType": "Add", "ResourceType": kind})).await?;
        ensure!(answer.is(HResult::INVALID_JSON), "{kind}: {}", answer.body);
    }
    Ok(())
}

pub(super) async fn no_request_type(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, layer) = (s.name("default"), s.environment.layer.clone());
    let path = format!("/run/gcs/c/{id}/rootfs");
    let settings = json!({
        "ContainerRootPath": path, "Layers": [{"Path": layer}],
        "ScratchPath": format!("/run/gcs/scratch/{id}"),
    });
    change(s, UVM_ID, json!({"ResourceType": "CombinedLayers", "Settings": settings}))
        .await?
        .ok()?;
    let made = crate::wire::document(&id, &["true"]);
    let answer = s.create_from(&id, made).await?;
    s.delete(&id).await?;
    ensure!(answer.succeeded(), "no root was added: {}", answer.body);
    Ok(())
}

pub(super) async fn wrong_request_type(s: &mut Session) -> Checked {
    s.ready().await?;
    for (kind, change, settings) in [
        ("SCSIDevice", "Add", json!({"Controller": 0, "Lun": 60})),
        ("VPCIDevice", "Remove", json!({"VMBusGUID": "00000000-1111-2222-3333-444444444444"})),
        ("PodCgroupMemoryLimit", "Add", json!({})),
    ] {
        let answer = s.modify(change, kind, settings).await?;
        ensure!(answer.is(HResult::FAIL), "{change} of {kind}: {}", answer.body);
    }
    Ok(())
}

pub(super) async fn absent_device(s: &mut Session) -> Checked {
    s.ready().await?;
    let answer = s.modify("Remove", "SCSIDevice", json!({"Controller": 0, "Lun": 61})).await?;
    answer.ok()?;
    if s.profile == Profile::Hardened {
        // The reference agent ends at a controller that is not there.
        for (kind, change) in [("SCSIDevice", "Remove"), ("MappedVirtualDisk", "Add")] {
            let settings = json!({"Controller": 7, "Lun": 1, "MountPath": "/run/mounts/conform7"});
            let answer = s.modify(change, kind, settings).await?;
            ensure!(!answer.succeeded(), "{change} of {kind} at controller 7: {}", answer.body);
        }
    }
    Ok(())
}

pub(super) async fn absent_paths(s: &mut Session) -> Checked {
    s.ready().await?;
    let root = json!({"ContainerRootPath": "/run/gcs/c/nowhere/rootfs"});
    s.modify("Remove", "CombinedLayers", root).await?.ok()?;
    let directory =
        json!({"MountPath": "/run/gcs/c/nowhere/mounts/m0", "Port": 564, "ShareName": "0"});
    s.modify("Remove", "MappedDirectory", directory).await?.ok()
}

pub(super) async fn layers(s: &mut Session) -> Checked {
    s.ready().await?;
    let second = "/run/layers/conform-second";
    let (first, disk) = (s.environment.layer.clone(), s.environment.second_layer);
    let disk = disk.ok_or_else(|| Stop::Skip("there is no second layer".into()))?;
    s.map_layer(disk, second).await?;
    let id = s.name("layers");
    let root = format!("/run/gcs/c/{id}/rootfs");
    let settings =
        json!({"ContainerRootPath": root, "Layers": [{"Path": second}, {"Path": first}]});
    s.modify("Add", "CombinedLayers", settings).await?.ok()?;
    let written = s.shell(&format!("echo x > {root}/written")).await?;
    s.modify("Remove", "CombinedLayers", json!({"ContainerRootPath": root})).await?.ok()?;
    ensure!(written.code != 0, "a root without scratch can be written to");
    let scratch = format!("/run/gcs/scratch/{id}");
    let settings = json!({
        "ContainerRootPath": root, "Layers": [{"Path": second}, {"Path": first}], "ScratchPath": scratch,
    });
    s.modify("Add", "CombinedLayers", settings).await?.ok()?;
    let written =
        s.shell(&format!("echo x > {root}/written && [ -f {scratch}/upper/written ]")).await?;
    s.modify("Remove", "CombinedLayers", json!({"ContainerRootPath": root})).await?.ok()?;
    let unmap = json!({"MountPath": second, "Controller": disk.controller, "Lun": disk.lun, "ReadOnly": true});
    s.modify("Remove", "MappedVirtualDisk", unmap).await?.ok()?;
    ensure!(written.code == 0, "what was written is not in the upper directory of the scratch");
    Ok(())
}

pub(super) async fn absent_adapter(s: &mut Session) -> Checked {
    s.ready().await?;
    let settings = json!({
        "NamespaceID": "99999999-2222-3333-4444-555555555555",
        "ID": "99999999-aaaa-3333-4444-555555555555",
    });
    s.modify("Remove", "Network", settings).await?.ok()
}

pub(super) async fn adapter_twice(s: &mut Session) -> Checked {
    s.ready().await?;
    let nic = s.environment.nic.clone();
    let nic = nic.ok_or_else(|| Stop::Skip("there is no network adapter".into()))?;
    let settings = |id: String| {
        json!({
            "NamespaceID": "77777777-2222-3333-4444-555555555555", "ID": id, "MacAddress": nic.mac,
            "IPConfigs": [{"IPAddress": "10.11.12.13", "PrefixLength": 24}],
        })
    };
    s.modify("Add", "Network", settings(nic.id.clone())).await?.ok()?;
    let again = s.modify("Add", "Network", settings(nic.id.to_uppercase())).await?;
    s.modify("Remove", "Network", settings(nic.id.clone())).await?.ok()?;
    again.refused()
}

pub(super) async fn format(s: &mut Session) -> Checked {
    s.ready().await?;
    let disk =
        s.environment.blank_disk.ok_or_else(|| Stop::Skip("there is no blank disk".into()))?;
    let path = "/run/mounts/conform-blank";
    let settings = json!({
        "MountPath": path, "Controller": disk.controller, "Lun": disk.lun,
        "EnsureFilesystem": true, "Filesystem": "ext4",
    });
    let answer = s.modify("Add", "MappedVirtualDisk", settings.clone()).await?;
    ensure!(answer.succeeded(), "a blank disk: {}", answer.body);
    let written = s.shell(&format!("echo kept > {path}/marker")).await?;
    ensure!(written.code == 0, "the new file system cannot be written to");
    s.modify("Remove", "MappedVirtualDisk", settings.clone()).await?.ok()?;
    s.modify("Add", "MappedVirtualDisk", settings.clone()).await?.ok()?;
    let read = s.shell(&format!("read line < {path}/marker; echo $line")).await?;
    s.modify("Remove", "MappedVirtualDisk", settings).await?.ok()?;
    ensure!(read.stdout == "kept\n", "a formatted disk was formatted again: {:?}", read.stdout);
    Ok(())
}

pub(super) async fn constraints(s: &mut Session) -> Checked {
    s.ready().await?;
    let (id, pid) = s.sleeper("limits").await?;
    let limit = 96 << 20;
    let request = json!({
        "RequestType": "Update", "ResourceType": "ContainerConstraints",
        "Settings": {"Windows": {}, "Linux": {"memory": {"limit": limit}}},
    });
    let answer = change(s, &id, request.clone()).await?;
    let all = s.properties(&id, r#"{"PropertyTypes":["Statistics"]}"#).await?;
    let root = change(s, UVM_ID, request).await?;
    s.clean_up(&id, pid).await;
    answer.ok()?;
    let told = &all["LCOWMetrics"]["memory"]["usage"]["limit"];
    ensure!(*told == json!(limit), "the limit is {told}, not {limit}");
    root.fault(HResult::SYSTEM_NOT_FOUND)
}

pub(super) async fn container_target(s: &mut Session) -> Checked {
    s.ready().await?;
    let id = s.create("target", &["true"]).await?;
    let request = json!({
        "RequestType": "Remove", "ResourceType": "SCSIDevice", "Settings": {"Controller": 0, "Lun": 61},
    });
    let answer = change(s, &id, request.clone()).await?;
    s.delete(&id).await?;
    answer.fault(HResult::FAIL)?;
    change(s, "nowhere", request).await?.fault(HResult::SYSTEM_NOT_FOUND)
}

pub(super) async fn policy(s: &mut Session) -> Checked {
    s.ready().await?;
    // An empty one: whether an agent has an engine for others is not the protocol's business.
    let settings = json!({"EnforcerType": "open_door"});
    s.modify("Add", "SecurityPolicy", settings.clone()).await?.ok()?;
    s.modify("Add", "SecurityPolicy", settings).await?.refused()
}

pub(super) async fn fragment(s: &mut Session) -> Checked {
    s.ready().await?;
    let settings = json!({"Fragment": "AAAA", "MediaType": "application/no-such-thing"});
    s.modify("Add", "SecurityPolicyFragment", settings).await?.refused()
}

pub(super) async fn stacks(s: &mut Session) -> Checked {
    s.ready().await?;
    let answer = s.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await?;
    answer.ok()?;
    let text = answer.body["GuestStacks"].as_str().unwrap_or_default();
    ensure!(!text.is_empty(), "GuestStacks is {}", answer.body["GuestStacks"]);
    Ok(())
}

pub(super) async fn logs(s: &mut Session) -> Checked {
    let lines = s.environment.log.lines();
    ensure!(!lines.is_empty(), "the log stream has said nothing");
    for line in lines {
        let entry: Option<Value> = serde_json::from_str(&line).ok();
        let entry = entry.ok_or_else(|| Stop::fail(format!("a line is no JSON: {line:?}")))?;
        for key in ["time", "level", "msg"] {
            ensure!(entry[key].is_string(), "a line has no {key}: {line:?}");
        }
    }
    Ok(())
}
