//! Create, Start, Shutdown, DeleteContainerState and notifications, by hand.

use std::time::Duration;

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use linkspan_tests::raw::{Connection, document, with_connection};
use linkspan_tests::{Backend, unique};
use serde_json::{Value, json};

use super::wire_frames::conversations;

conversations!(
    schema_versions_from_2_1_on_are_taken,
    a_container_config_that_is_no_json_is_refused,
    a_live_id_is_taken_and_its_container_unharmed,
    an_id_is_free_after_a_failed_creation,
    an_unknown_kind_of_container_is_refused,
    documents_without_what_they_need_are_refused,
    start_succeeds_always,
    deleting_what_is_not_there_is_not_found,
    deletion_frees_the_id_and_removes_the_directories,
    a_running_container_cannot_be_deleted_and_works_on,
    shutdowns_are_signals_and_tell_the_kind_of_exit,
    a_plain_exit_is_unexpected_and_told_once,
    without_a_wait_nothing_is_told,
    a_notification_that_comes_due_while_away_is_told_later,
    a_wait_outlives_its_connection,
    names_in_a_read_only_root_are_read_only,
    no_init_runs_before_it_is_asked_for,
    nothing_outlives_an_init_without_pids_of_its_own,
    constraints_are_one_container_s,
);

/// How long what must not come is waited for.
const SILENCE: Duration = Duration::from_millis(700);

async fn schema_versions_from_2_1_on_are_taken(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for (major, minor, taken) in
        [(2, 0, false), (1, 9, false), (2, 1, true), (2, 5, true), (3, 0, true)]
    {
        let id = &unique("schema");
        connection.combine(id).await;
        let mut document = document(id, &["true"]);
        document["SchemaVersion"] = json!({"Major": major, "Minor": minor});
        let answer = connection.create_from(id, document).await;
        if taken {
            answer.expect_success();
            connection.delete(id).await.expect_success();
        } else {
            answer.expect_fault(HResult::INVALID_JSON);
        }
    }
}

async fn a_container_config_that_is_no_json_is_refused(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for config in [json!("not json"), json!(""), json!("[]"), Value::Null] {
        let body = json!({"ContainerConfig": config});
        let answer = connection.call(MessageType::CREATE, "config", body).await;
        answer.expect_fault(HResult::INVALID_JSON);
    }
}

async fn a_live_id_is_taken_and_its_container_unharmed(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("live");
    connection.create(id, &["sleep", "1000"]).await;
    let pid = connection.start(id).await;
    let again = connection.create_from(id, document(id, &["true"])).await;
    again.expect_fault(HResult::SYSTEM_ALREADY_EXISTS);
    let echo = json!({"OciProcess": linkspan_tests::raw::process(&["echo", "works on"])});
    assert_eq!(connection.run(id, echo).await.stdout, "works on\n");
    end(connection, id, pid).await;
}

/// Kills an init, consumes its exit and its notification, and deletes the container.
async fn end(connection: &mut Connection<'_>, id: &str, pid: u64) {
    connection.signal(id, pid, 9).await;
    connection.wait(id, pid).await.expect_success();
    notification_of(connection, id).await;
    connection.delete(id).await.expect_success();
}

/// The notification for one container; those of scenarios that failed are passed over.
async fn notification_of(connection: &mut Connection<'_>, id: &str) -> Value {
    loop {
        let notification = connection.next_notification().await;
        if notification["ContainerId"] == id {
            return notification;
        }
    }
}

async fn an_id_is_free_after_a_failed_creation(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("again");
    connection.combine(id).await;
    let mut old = document(id, &["true"]);
    old["SchemaVersion"] = json!({"Major": 1, "Minor": 0});
    let mut kind = document(id, &["true"]);
    kind["OciSpecification"]["annotations"] = json!({"io.kubernetes.cri.container-type": "foo"});
    let mut hostname = document(id, &["true"]);
    hostname["OciSpecification"]["hostname"] = json!("no/host");
    let missing = document(id, &["no-such-program"]);
    for broken in [old, kind, hostname, missing] {
        let answer = connection.create_from(id, broken).await;
        assert_ne!(answer.result(), 0, "{}", answer.body);
    }
    connection.create_from(id, document(id, &["true"])).await.expect_success();
    connection.delete(id).await.expect_success();
}

async fn an_unknown_kind_of_container_is_refused(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("kind");
    let mut document = document(id, &["true"]);
    document["OciSpecification"]["annotations"] =
        json!({"io.kubernetes.cri.container-type": "foo"});
    connection.create_from(id, document).await.expect_fault(HResult::FAIL);
}

async fn documents_without_what_they_need_are_refused(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for pointer in ["", "/process", "/root", "/linux"] {
        let id = &unique("without");
        let mut document = document(id, &["true"]);
        let place = document.pointer_mut(&format!("/OciSpecification{pointer}"));
        *place.expect("is there") = Value::Null;
        let answer = connection.create_from(id, document).await;
        assert_ne!(answer.result(), 0, "without {pointer}: {}", answer.body);
    }
    for (field, path) in [("OciBundlePath", ""), ("OciBundlePath", "/"), ("ScratchDirPath", "../x")]
    {
        let id = &unique("path");
        let mut document = document(id, &["true"]);
        document[field] = json!(path);
        let answer = connection.create_from(id, document).await;
        assert_ne!(answer.result(), 0, "{field} {path:?}: {}", answer.body);
    }
    connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
}

async fn start_succeeds_always(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("start");
    connection.call(MessageType::START, id, json!({})).await.expect_success();
    connection.create(id, &["sleep", "1000"]).await;
    connection.call(MessageType::START, id, json!({})).await.expect_success();
    let pid = connection.start(id).await;
    connection.call(MessageType::START, id, json!({})).await.expect_success();
    end(connection, id, pid).await;
}

async fn deleting_what_is_not_there_is_not_found(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for id in ["nowhere", UVM_ID] {
        let answer = connection.call(MessageType::DELETE_CONTAINER_STATE, id, json!({})).await;
        answer.expect_fault(HResult::SYSTEM_NOT_FOUND);
    }
}

async fn deletion_frees_the_id_and_removes_the_directories(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("deleted");
    for _ in 0..2 {
        connection.create(id, &["true"]).await;
        connection.delete(id).await.expect_success();
        for message in [MessageType::GET_PROPERTIES, MessageType::SHUTDOWN_FORCED] {
            let answer = connection.call(message, id, json!({"Query": ""})).await;
            answer.expect_fault(HResult::SYSTEM_NOT_FOUND);
        }
        for directory in [format!("/run/gcs/c/{id}"), format!("/run/gcs/scratch/{id}")] {
            let test = connection.external(&["/bin/busybox", "test", "-e", &directory]).await;
            assert_eq!(test.code, 1, "{directory} is still there");
        }
    }
}

async fn a_running_container_cannot_be_deleted_and_works_on(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("running");
    connection.create(id, &["sleep", "1000"]).await;
    let pid = connection.start(id).await;
    let answer = connection.call(MessageType::DELETE_CONTAINER_STATE, id, json!({})).await;
    answer.expect_fault(HResult::INVALID_STATE);
    let echo = json!({"OciProcess": linkspan_tests::raw::process(&["cat", "/etc/passwd"])});
    let finished = connection.run(id, echo).await;
    assert!(finished.stdout.starts_with("root:"), "{finished:?}");
    end(connection, id, pid).await;
}

async fn shutdowns_are_signals_and_tell_the_kind_of_exit(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let unknown = connection.call(MessageType::SHUTDOWN_GRACEFUL, "nowhere", json!({})).await;
    unknown.expect_fault(HResult::SYSTEM_NOT_FOUND);
    let trap = "trap 'sleep 0.5; exit 0' TERM; while :; do sleep 0.05; done";
    for (message, code, kind) in [
        (MessageType::SHUTDOWN_GRACEFUL, 0, "GracefulExit"),
        (MessageType::SHUTDOWN_FORCED, 137, "ForcedExit"),
    ] {
        let id = &unique("shutdown");
        connection.create(id, &["sh", "-c", trap]).await;
        let pid = connection.start(id).await;
        let wait = connection.post_wait(id, pid).await;
        ready(connection, id).await;
        connection.call(message, id, json!({})).await.expect_success();
        let answer = connection.response_to(wait).await;
        assert_eq!(answer.body.get("ExitCode").unwrap_or(&json!(0)), &json!(code));
        assert_eq!(notification_of(connection, id).await["Type"], kind);
        connection.call(message, id, json!({})).await.expect_fault(HResult::SYSTEM_ALREADY_STOPPED);
        connection.delete(id).await.expect_success();
    }
}

/// Waits until an init that is a shell has set its trap: it then has a child that sleeps.
async fn ready(connection: &mut Connection<'_>, id: &str) {
    let ps = json!({"OciProcess": linkspan_tests::raw::process(&["ps"])});
    while !connection.run(id, ps.clone()).await.stdout.contains("sleep 0.05") {}
}

async fn a_plain_exit_is_unexpected_and_told_once(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("plain");
    let activity = "6fb5e2a8-93d1-4c0a-b2f0-0d7f3a2c9b11";
    connection.combine(id).await;
    let config = document(id, &["true"]).to_string();
    let body = json!({"ContainerConfig": config, "ActivityId": activity});
    connection.call(MessageType::CREATE, id, body).await.expect_success();
    let pid = connection.start(id).await;
    let waits = [connection.post_wait(id, pid).await, connection.post_wait(id, pid).await];
    for wait in waits {
        connection.response_to(wait).await.expect_success();
    }
    let notification = notification_of(connection, id).await;
    let expected = json!({
        "ContainerId": id, "ActivityId": activity, "Type": "UnexpectedExit",
        "Operation": "None", "Result": 0,
    });
    assert_eq!(notification, expected);
    connection.wait(id, pid).await.expect_success();
    assert!(connection.stays_silent_on(u64::MAX, SILENCE).await);
    assert!(connection.notifications.is_empty(), "{:?}", connection.notifications);
    connection.delete(id).await.expect_success();
}

async fn without_a_wait_nothing_is_told(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (unwaited, unstarted) = (&unique("unwaited"), &unique("unstarted"));
    connection.create(unwaited, &["true"]).await;
    connection.create(unstarted, &["true"]).await;
    connection.start(unwaited).await;
    assert!(connection.stays_silent_on(u64::MAX, SILENCE).await);
    let told = |id: &str| connection.notifications.iter().any(|told| told["ContainerId"] == id);
    assert!(!told(unwaited) && !told(unstarted), "{:?}", connection.notifications);
    connection.delete(unwaited).await.expect_success();
    connection.delete(unstarted).await.expect_success();
}

async fn a_notification_that_comes_due_while_away_is_told_later(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("away");
    connection.create(id, &["sleep", "0.3"]).await;
    let pid = connection.start(id).await;
    connection.post_wait(id, pid).await;
    // Not before the agent has read the wait.
    connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
    connection.reconnect().await;
    connection.negotiate().await;
    assert_eq!(notification_of(connection, id).await["Type"], "UnexpectedExit");
    connection.delete(id).await.expect_success();
}

async fn a_wait_outlives_its_connection(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("outlives");
    connection.create(id, &["sleep", "1000"]).await;
    let pid = connection.start(id).await;
    let wait = connection.post_wait(id, pid).await;
    connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
    connection.reconnect().await;
    connection.negotiate().await;
    connection.signal(id, pid, 9).await.expect_success();
    let answer = connection.response_to(wait).await;
    answer.expect_success();
    assert_eq!(answer.body["ExitCode"], 137);
    notification_of(connection, id).await;
    connection.delete(id).await.expect_success();
}

async fn names_in_a_read_only_root_are_read_only(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for (read_only, options) in [(true, "ro"), (false, "rw")] {
        let id = &unique("names");
        let mut document = document(id, &["sleep", "1000"]);
        document["OciSpecification"]["root"]["readonly"] = json!(read_only);
        let pid = connection.start_from(id, document).await;
        for name in ["hostname", "hosts", "resolv.conf"] {
            let script = format!("grep ' /etc/{name} ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1");
            assert_eq!(connection.shell(id, &script).await, options, "{name}");
        }
        connection.end(id, pid).await;
    }
}

async fn no_init_runs_before_it_is_asked_for(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("patient");
    connection.create(id, &["sh", "-c", "echo begun > /begun; sleep 1000"]).await;
    connection.call(MessageType::START, id, json!({})).await.expect_success();
    let begun = format!("/bin/busybox cat /run/gcs/c/{id}/rootfs/begun");
    let look = async |connection: &mut Connection<'_>| {
        connection.external(&["/bin/busybox", "sh", "-c", &begun]).await.stdout
    };
    tokio::time::sleep(SILENCE).await;
    assert_eq!(look(connection).await, "");
    let pid = connection.start(id).await;
    assert_eq!(connection.shell(id, "until cat /begun 2>/dev/null; do :; done").await, "begun");
    end(connection, id, pid).await;
}

async fn nothing_outlives_an_init_without_pids_of_its_own(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("orphans");
    let mut document = document(id, &["sh", "-c", "(sleep 4711 & sleep 4711 &); sleep 4711"]);
    let namespaces = &mut document["OciSpecification"]["linux"]["namespaces"];
    namespaces.as_array_mut().expect("a list").retain(|space| space["type"] != "pid");
    let pid = connection.start_from(id, document).await;
    let count = "/bin/busybox grep -lax 'sleep.4711.' /proc/[0-9]*/cmdline 2>/dev/null | /bin/busybox wc -l";
    let begun = format!("until [ $({count}) = 3 ]; do :; done");
    assert_eq!(connection.external(&["/bin/busybox", "sh", "-c", &begun]).await.code, 0);
    connection.signal(id, pid, 9).await.expect_success();
    connection.wait(id, pid).await.expect_success();
    let ended = format!("until [ $({count}) = 0 ]; do :; done");
    assert_eq!(connection.external(&["/bin/busybox", "sh", "-c", &ended]).await.code, 0);
    connection.delete(id).await.expect_success();
}

/// Hosts give them in version 1's terms, whatever the guest has.
async fn constraints_are_one_container_s(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (one, other) = (&unique("bound"), &unique("free"));
    let pid = connection.start_from(one, document(one, &["sleep", "1000"])).await;
    let other_pid = connection.start_from(other, document(other, &["sleep", "1000"])).await;
    let linux = json!({
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
    });
    let request = json!({"Request": {
        "ResourceType": "ContainerConstraints", "RequestType": "Update", "Settings": {"Linux": linux},
    }});
    connection.call(MessageType::MODIFY_SETTINGS, one, request).await.expect_success();
    let limits = async |connection: &mut Connection<'_>, pid: u64| {
        let script = format!(
            "alias awk='/bin/busybox awk' cat='/bin/busybox cat'; g=/proc/{pid}/cgroup
            of() {{ awk -F: -v c=$1 '$2 ~ \"(^|,)\" c \"(,|$)\" {{ print $3 }}' $g; }}
            cd /sys/fs/cgroup
            if [ -e cgroup.controllers ]; then
                cd .$(awk -F: '$1 == 0 {{ print $3 }}' $g) && cat memory.max cpu.max cpu.weight
            else
                cat memory$(of memory)/memory.limit_in_bytes
                cd cpu$(of cpu) && cat cpu.cfs_quota_us cpu.cfs_period_us cpu.shares
            fi"
        );
        let said = connection.external(&["/bin/busybox", "sh", "-c", &script]).await.stdout;
        said.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let bound = limits(connection, pid).await;
    // Version 2 has weights, of which 100 stands for 1024 shares.
    let weight = if bound.last().is_some_and(|last| last == "512") { "512" } else { "59" };
    assert_eq!(bound, ["67108864", "50000", "100000", weight]);
    let free = limits(connection, other_pid).await;
    assert!(free.len() == 4 && free[0] != bound[0] && free[1] != bound[1], "{free:?}");
    connection.end(one, pid).await;
    connection.end(other, other_pid).await;
}
