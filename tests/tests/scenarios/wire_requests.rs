//! GetProperties, ModifySettings and DumpStacks, by hand.

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use linkspan_tests::raw::{Connection, with_connection};
use linkspan_tests::{Backend, unique};
use serde_json::{Value, json};

use super::wire_frames::conversations;

conversations!(
    the_machine_itself_has_no_properties,
    properties_of_a_running_container,
    a_query_for_nothing_is_answered_with_nothing,
    a_resource_that_is_unknown_or_without_settings_is_refused,
    a_wrong_kind_of_change_is_refused,
    taking_away_what_is_not_there_succeeds,
    a_container_takes_no_resources_of_the_machine,
    paths_that_lead_astray_are_refused,
    stacks_are_text_within_the_limit,
);

async fn the_machine_itself_has_no_properties(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let query = json!({"Query": json!({"PropertyTypes": ["ProcessList"]}).to_string()});
    let answer = connection.call(MessageType::GET_PROPERTIES, UVM_ID, query).await;
    answer.expect_fault(HResult::FAIL);
}

async fn properties(connection: &mut Connection<'_>, id: &str, query: &str) -> Value {
    let answer = connection.call(MessageType::GET_PROPERTIES, id, json!({"Query": query})).await;
    answer.expect_success();
    let text = answer.body["Properties"].as_str().expect("a string that is JSON");
    serde_json::from_str(text).expect("a string that is JSON")
}

async fn properties_of_a_running_container(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("properties");
    connection.create(id, &["sleep", "1000"]).await;
    let pid = connection.start(id).await;
    let list = properties(connection, id, r#"{"PropertyTypes":["ProcessList"]}"#).await;
    let pids: Vec<_> = list["ProcessList"].as_array().unwrap().iter().collect();
    assert!(pids.iter().any(|entry| entry["ProcessId"] == pid), "{list}");
    let statistics = properties(connection, id, r#"{"PropertyTypes":["Statistics"]}"#).await;
    let metrics = &statistics["LCOWMetrics"];
    assert!(metrics["cpu"]["usage"]["total"].as_u64() > Some(0), "{statistics}");
    assert!(metrics["memory"]["usage"]["usage"].as_u64() > Some(0), "{statistics}");
    assert!(metrics.get("network").is_none(), "{statistics}");
    assert!(metrics.get("blkio").is_none_or(|blkio| *blkio == json!({})), "{statistics}");
    let broken = json!({"Query": "{"});
    let answer = connection.call(MessageType::GET_PROPERTIES, id, broken).await;
    answer.expect_fault(HResult::INVALID_JSON);
    connection.signal(id, pid, 9).await.expect_success();
    connection.wait(id, pid).await.expect_success();
    connection.next_notification().await;
    connection.delete(id).await.expect_success();
}

async fn a_query_for_nothing_is_answered_with_nothing(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("nothing");
    connection.create(id, &["true"]).await;
    for query in ["", "{}", r#"{"PropertyTypes":[]}"#, r#"{"PropertyTypes":["Network","NoSuch"]}"#]
    {
        assert_eq!(properties(connection, id, query).await, json!({}), "{query:?}");
    }
    let answer = connection.call(MessageType::GET_PROPERTIES, id, json!({})).await;
    assert_eq!(answer.body["Properties"], "{}");
    connection.delete(id).await.expect_success();
}

async fn a_resource_that_is_unknown_or_without_settings_is_refused(
    connection: &mut Connection<'_>,
) {
    connection.negotiate().await;
    for target in [UVM_ID, "nowhere"] {
        for (request, code) in [
            (json!({"ResourceType": "NoSuch", "Settings": {}}), HResult::FAIL),
            (json!({"Settings": {}}), HResult::FAIL),
            (json!({"ResourceType": "MappedVirtualDisk"}), HResult::INVALID_JSON),
            (json!({"ResourceType": "CombinedLayers", "Settings": "text"}), HResult::INVALID_JSON),
            (
                json!({"ResourceType": "CombinedLayers", "Settings": {"Layers": 7}}),
                HResult::INVALID_JSON,
            ),
        ] {
            let body = json!({"Request": request});
            let answer = connection.call(MessageType::MODIFY_SETTINGS, target, body).await;
            answer.expect_fault(code);
        }
    }
    for body in [json!({}), json!({"Request": "text"}), json!({"Request": 1})] {
        let answer = connection.call(MessageType::MODIFY_SETTINGS, UVM_ID, body).await;
        answer.expect_fault(HResult::INVALID_JSON);
    }
}

async fn a_wrong_kind_of_change_is_refused(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for (change, resource, settings) in [
        ("Add", "SCSIDevice", json!({"Controller": 0, "Lun": 9})),
        ("Remove", "VPCIDevice", json!({"VMBusGUID": "x"})),
        ("Add", "PodCgroupMemoryLimit", json!({})),
        ("Update", "MappedVirtualDisk", json!({"Lun": 0})),
        ("Bogus", "CombinedLayers", json!({})),
    ] {
        let answer = connection.modify(change, resource, settings).await;
        assert_ne!(answer.result(), 0, "{change} {resource}");
        answer.expect_fault(HResult::FAIL);
    }
}

async fn taking_away_what_is_not_there_succeeds(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for (resource, settings) in [
        ("SCSIDevice", json!({"Controller": 0, "Lun": 40})),
        ("CombinedLayers", json!({"ContainerRootPath": "/run/gcs/c/nowhere/rootfs"})),
        ("MappedDirectory", json!({"MountPath": "/run/gcs/c/nowhere/mounts/m0", "Port": 564})),
    ] {
        let answer = connection.modify("Remove", resource, settings).await;
        assert_eq!(answer.result(), 0, "{resource}: {}", answer.body);
    }
}

async fn a_container_takes_no_resources_of_the_machine(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("target");
    connection.create(id, &["true"]).await;
    let request = json!({"RequestType": "Remove", "ResourceType": "SCSIDevice", "Settings": {}});
    let body = json!({"Request": request});
    let answer = connection.call(MessageType::MODIFY_SETTINGS, id, body.clone()).await;
    answer.expect_fault(HResult::FAIL);
    let answer = connection.call(MessageType::MODIFY_SETTINGS, "nowhere", body).await;
    answer.expect_fault(HResult::SYSTEM_NOT_FOUND);
    connection.delete(id).await.expect_success();
}

async fn paths_that_lead_astray_are_refused(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for path in ["relative", "/run/../etc", "/", "/proc/self", "/a\u{0}b"] {
        let settings = json!({"ContainerRootPath": path, "Layers": [{"Path": "/run/layers/base"}], "ScratchPath": "/run/gcs/scratch/astray"});
        let answer = connection.modify("Add", "CombinedLayers", settings).await;
        assert_ne!(answer.result(), 0, "{path:?}");
    }
    let settings = json!({"Controller": 7, "Lun": 0, "MountPath": "/run/mounts/seven"});
    let answer = connection.modify("Add", "MappedVirtualDisk", settings).await;
    assert_ne!(answer.result(), 0, "there is no controller 7");
    connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
}

async fn stacks_are_text_within_the_limit(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for target in [UVM_ID, "nowhere"] {
        let answer = connection.call(MessageType::DUMP_STACKS, target, json!({})).await;
        answer.expect_success();
        let text = answer.body["GuestStacks"].as_str().unwrap();
        assert!(!text.is_empty() && text.len() < 65_520);
    }
}
