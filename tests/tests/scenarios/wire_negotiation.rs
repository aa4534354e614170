//! The first exchange, and requests that no agent knows.

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use linkspan_tests::Backend;
use linkspan_tests::raw::{Connection, hresult, with_connection};
use serde_json::{Value, json};

use super::wire_frames::conversations;

conversations!(
    nothing_works_before_negotiation,
    nothing_is_sent_before_it_is_asked_for,
    ranges_that_contain_version_4_are_agreed_on,
    a_failed_negotiation_can_be_repeated,
    a_second_negotiation_is_refused,
    a_new_connection_starts_anew,
    capabilities_are_those_of_a_linux_guest,
    unknown_messages_are_refused_by_their_own_type,
    payloads_that_are_no_json_are_refused_and_harmless,
    a_failure_has_one_record_and_no_keys_of_its_message,
);

const KNOWN: [MessageType; 12] = [
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

async fn nothing_works_before_negotiation(connection: &mut Connection<'_>) {
    for message in KNOWN {
        let answer = connection.call(message, "any", json!({})).await;
        answer.expect_fault(HResult::NOT_IMPLEMENTED);
    }
    connection.negotiate().await;
}

async fn nothing_is_sent_before_it_is_asked_for(connection: &mut Connection<'_>) {
    let silent = connection.stays_silent_on(0, std::time::Duration::from_millis(300)).await;
    assert!(silent, "the agent answers what nobody asked");
}

async fn ranges_that_contain_version_4_are_agreed_on(connection: &mut Connection<'_>) {
    for (minimum, maximum) in [(4, 4), (1, 10), (0, 4), (4, u32::MAX)] {
        connection.reconnect().await;
        let answer = connection.negotiate_for(minimum, maximum).await;
        answer.expect_success();
        assert_eq!(answer.body["Version"], 4, "{minimum} to {maximum}");
    }
}

async fn a_failed_negotiation_can_be_repeated(connection: &mut Connection<'_>) {
    for (minimum, maximum) in [(1, 3), (5, 9), (0, 0)] {
        let answer = connection.negotiate_for(minimum, maximum).await;
        answer.expect_fault(HResult::UNSUPPORTED_PROTOCOL_VERSION);
        let stacks = connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await;
        stacks.expect_fault(HResult::NOT_IMPLEMENTED);
    }
    connection.negotiate().await;
    connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
}

async fn a_second_negotiation_is_refused(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    connection.negotiate_for(4, 4).await.expect_fault(HResult::NOT_IMPLEMENTED);
    connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
}

async fn a_new_connection_starts_anew(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    connection.reconnect().await;
    let stacks = connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await;
    stacks.expect_fault(HResult::NOT_IMPLEMENTED);
    connection.negotiate().await;
}

async fn capabilities_are_those_of_a_linux_guest(connection: &mut Connection<'_>) {
    let answer = connection.negotiate().await;
    let capabilities = &answer.body["Capabilities"];
    let system = capabilities["RuntimeOsType"].as_str().unwrap_or_default();
    assert!(system.eq_ignore_ascii_case("linux"), "{capabilities}");
    assert!(capabilities["GuestDefinedCapabilities"].is_object(), "{capabilities}");
    let versions = capabilities["SupportedSchemaVersions"].as_array().expect("versions");
    assert!(versions.contains(&json!({"Major": 2, "Minor": 1})), "{capabilities}");
    for flag in ["SendHostCreateMessage", "SendHostStartMessage"] {
        let value = capabilities.get(flag).unwrap_or(&Value::Bool(false));
        assert_eq!(value, &json!(false), "{flag}");
    }
}

async fn unknown_messages_are_refused_by_their_own_type(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for number in [0x1010_0e01, 0x1010_0f01, 0x1020_0101, 0x1010_7701] {
        // `call` sees to the type of the answer.
        let answer = connection.call(MessageType(number), UVM_ID, json!({})).await;
        answer.expect_fault(HResult::NOT_IMPLEMENTED);
    }
}

async fn payloads_that_are_no_json_are_refused_and_harmless(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let payloads: [&[u8]; 6] =
        [b"", b"{", b"not json", b"[1]", b"\"text\"", b"{\"ContainerId\":\"\xff\"}"];
    for message in KNOWN.into_iter().filter(|&message| message != MessageType::DUMP_STACKS) {
        for payload in payloads {
            connection.send(message, 900, payload).await;
            let answer = connection.response_to(900).await;
            assert_eq!(answer.message_type, message.response());
            answer.expect_fault(HResult::INVALID_JSON);
        }
    }
    connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
}

async fn a_failure_has_one_record_and_no_keys_of_its_message(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    // The connection itself checks the records of every failure; here each message fails once.
    for message in [
        MessageType::GET_PROPERTIES,
        MessageType::EXECUTE_PROCESS,
        MessageType::WAIT_FOR_PROCESS,
        MessageType::DELETE_CONTAINER_STATE,
    ] {
        let parameters = json!({"ProcessParameters": "{}"});
        let answer = connection.call(message, "nowhere", json!({"Settings": parameters})).await;
        answer.expect_fault(HResult::SYSTEM_NOT_FOUND);
        let record = &answer.body["ErrorRecords"][0];
        assert_eq!(record["Message"], answer.body["ErrorMessage"]);
        assert_eq!(record["Result"], hresult(HResult::SYSTEM_NOT_FOUND));
    }
}
