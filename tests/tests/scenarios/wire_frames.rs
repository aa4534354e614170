//! Frames by hand: what the agent has to take, and what it must survive.

use std::time::Duration;

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use linkspan_tests::Backend;
use linkspan_tests::raw::{Connection, frame, with_connection};
use serde_json::json;

/// Two tests of a conversation with the agent.
macro_rules! conversations {
    ($($name:ident),* $(,)?) => {
        mod loopback {
            $(#[test]
            fn $name() {
                super::with_connection(super::Backend::Loopback, super::$name);
            })*
        }
        mod qemu {
            $(#[test]
            fn $name() {
                super::with_connection(super::Backend::Qemu, super::$name);
            })*
        }
    };
}
pub(crate) use conversations;

conversations!(
    a_trailing_newline_is_taken_and_so_is_none,
    frames_may_be_cut_anywhere_and_glued_together,
    any_id_is_repeated,
    answers_come_whole_under_load,
    a_request_of_a_mebibyte_is_taken,
    a_size_below_the_header_ends_only_the_connection,
    a_size_beyond_all_bounds_ends_only_the_connection,
    a_frame_that_is_cut_off_ends_only_the_connection,
    noise_ends_only_the_connection,
    the_agent_dials_again_and_again,
    activity_ids_are_echoed_or_left_out,
    unknown_keys_are_passed_over,
    an_answer_is_never_larger_than_a_host_takes,
);

const STACKS: MessageType = MessageType::DUMP_STACKS;

async fn a_trailing_newline_is_taken_and_so_is_none(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for payload in [&b"{\"ContainerId\":\"\"}\n"[..], b"{\"ContainerId\":\"\"}", b" {} \n"] {
        connection.send(STACKS, 70, payload).await;
        connection.response_to(70).await.expect_success();
    }
}

async fn frames_may_be_cut_anywhere_and_glued_together(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let bytes = frame(STACKS, 80, b"{\"ContainerId\":\"\"}");
    for cut in 1..bytes.len() {
        connection.write(&bytes[..cut]).await;
        tokio::task::yield_now().await;
        connection.write(&bytes[cut..]).await;
        connection.response_to(80).await.expect_success();
    }
    let many: Vec<u8> = (0..50).flat_map(|id| frame(STACKS, 100 + id, b"{}")).collect();
    connection.write(&many).await;
    for id in 0..50 {
        connection.response_to(100 + id).await.expect_success();
    }
}

async fn any_id_is_repeated(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for id in [0, 1, u64::from(u32::MAX), 1 << 53, i64::MAX as u64, 1 << 63, u64::MAX] {
        connection.send(STACKS, id, b"{}").await;
        let response = connection.next_response().await;
        assert_eq!((response.id, response.message_type), (id, STACKS.response()));
        response.expect_success();
    }
}

async fn answers_come_whole_under_load(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for id in 0..500 {
        let payload = json!({"ContainerId": format!("missing-{id}"), "Query": "{}"}).to_string();
        connection.send(MessageType::GET_PROPERTIES, 1000 + id, payload.as_bytes()).await;
    }
    for id in 0..500 {
        let response = connection.response_to(1000 + id).await;
        response.expect_fault(HResult::SYSTEM_NOT_FOUND);
        let text = response.body["ErrorMessage"].as_str().unwrap().to_owned();
        assert!(text.contains(&format!("\"missing-{id}\"")), "{text}");
    }
}

async fn a_request_of_a_mebibyte_is_taken(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let payload = json!({"ContainerId": "", "Padding": "x".repeat(1 << 20)}).to_string();
    connection.send(STACKS, 5, payload.as_bytes()).await;
    connection.response_to(5).await.expect_success();
}

/// Sends a header with a size of the scenario's choice, and sees that the agent works on.
async fn survives_size(connection: &mut Connection<'_>, size: u32) {
    let pid = agent_of(connection).await;
    let mut bytes = frame(STACKS, 3, b"");
    bytes[4..8].copy_from_slice(&size.to_le_bytes());
    connection.write(&bytes).await;
    connection.closed_by_guest().await;
    connection.reconnect().await;
    assert_eq!(agent_of(connection).await, pid, "size {size:#x} has ended the agent");
}

/// Negotiates if need be; the agent's restarts, which tell one agent from the next.
async fn agent_of(connection: &mut Connection<'_>) -> u64 {
    connection.reconnect().await;
    let answer = connection.negotiate().await;
    let defined = &answer.body["Capabilities"]["GuestDefinedCapabilities"];
    defined
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            key.to_lowercase().contains("restarts").then(|| value.as_u64()).flatten()
        })
        .sum()
}

async fn a_size_below_the_header_ends_only_the_connection(connection: &mut Connection<'_>) {
    for size in [0, 1, 15] {
        survives_size(connection, size).await;
    }
}

async fn a_size_beyond_all_bounds_ends_only_the_connection(connection: &mut Connection<'_>) {
    for size in [0x7fff_ffff, 0x8000_0000, u32::MAX] {
        survives_size(connection, size).await;
    }
}

async fn a_frame_that_is_cut_off_ends_only_the_connection(connection: &mut Connection<'_>) {
    let bytes = frame(STACKS, 3, b"{\"ContainerId\":\"\"}");
    for cut in [1, 15, 16, 20] {
        let before = agent_of(connection).await;
        connection.write(&bytes[..cut]).await;
        assert_eq!(agent_of(connection).await, before, "a cut at {cut} has ended the agent");
    }
    // A header alone is a whole frame of nothing.
    connection.send(MessageType::GET_PROPERTIES, 9, b"").await;
    connection.response_to(9).await.expect_fault(HResult::INVALID_JSON);
}

async fn noise_ends_only_the_connection(connection: &mut Connection<'_>) {
    for byte in [0xff, 0xa5, b'{'] {
        let before = agent_of(connection).await;
        connection.write(&[byte; 4096]).await;
        connection.closed_by_guest().await;
        assert_eq!(agent_of(connection).await, before, "noise has ended the agent");
    }
}

async fn the_agent_dials_again_and_again(connection: &mut Connection<'_>) {
    for _ in 0..10 {
        let begun = std::time::Instant::now();
        connection.reconnect().await;
        assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
        connection.negotiate().await;
    }
}

async fn activity_ids_are_echoed_or_left_out(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = "6fb5e2a8-93d1-4c0a-b2f0-0d7f3a2c9b11";
    for (activity, echoed) in [(json!(id), Some(id)), (json!(""), None)] {
        for message in [STACKS, MessageType::GET_PROPERTIES] {
            let body = json!({"ActivityId": activity, "Query": ""});
            let answer = connection.call(message, UVM_ID, body).await;
            assert_eq!(answer.body.get("ActivityId").and_then(|id| id.as_str()), echoed);
        }
    }
}

async fn unknown_keys_are_passed_over(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let more = json!({"Future": {"Nested": [1, 2]}, "ocsc": null, "otsc": {"traceparent": "00"}});
    connection.call(STACKS, UVM_ID, more).await.expect_success();
    let settings = json!({"ContainerRootPath": "/run/gcs/c/nowhere/rootfs", "Future": 1});
    connection.modify("Remove", "CombinedLayers", settings).await.expect_success();
}

async fn an_answer_is_never_larger_than_a_host_takes(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    // The decoder of this connection refuses a larger one.
    let long = "n".repeat(200_000);
    let answer = connection.call(MessageType::GET_PROPERTIES, &long, json!({"Query": ""})).await;
    answer.expect_fault(HResult::SYSTEM_NOT_FOUND);
    let config = json!({"ContainerConfig": format!("not json {long}")});
    connection.call(MessageType::CREATE, "long", config).await.expect_fault(HResult::INVALID_JSON);
    connection.call(STACKS, UVM_ID, json!({})).await.expect_success();
}
