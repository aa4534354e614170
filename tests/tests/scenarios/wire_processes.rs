//! ExecuteProcess, WaitForProcess, SignalProcess and ResizeConsole, by hand.

use std::time::{Duration, Instant};

use linkspan_protocol::{HResult, MessageType, UVM_ID};
use linkspan_tests::raw::{Connection, pipes, process, read_all, with_connection};
use linkspan_tests::{Backend, unique};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::wire_frames::conversations;

conversations!(
    a_process_of_an_unknown_container_is_not_found,
    a_command_line_counts_only_without_arguments,
    a_process_of_the_machine_has_exactly_its_environment,
    ports_are_dialled_in_order_before_the_answer,
    a_port_that_is_not_wanted_is_not_dialled,
    a_refused_dial_fails_the_request_and_can_be_repeated,
    an_exit_is_told_when_the_host_has_closed_its_ends,
    waits_without_limit_stay_and_others_end_in_time,
    a_reported_process_is_forgotten_but_an_init_is_not,
    what_is_unknown_is_told_apart,
    a_kill_is_what_no_signal_means,
    a_signal_reaches_that_process_alone,
    the_machine_itself_takes_no_signals,
    a_window_of_a_process_without_terminal_cannot_change,
);

async fn a_process_of_an_unknown_container_is_not_found(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let body = pipes(None, None, None, json!({"OciProcess": process(&["true"])}));
    let answer = connection.call(MessageType::EXECUTE_PROCESS, "nowhere", body).await;
    answer.expect_fault(HResult::SYSTEM_NOT_FOUND);
}

async fn a_command_line_counts_only_without_arguments(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let line = "/bin/busybox echo 'two words'  \"and more\" back\\ slash";
    let run = connection.run(UVM_ID, json!({"CommandLine": line})).await;
    assert_eq!(run.stdout, "two words and more back slash\n");
    let args = ["/bin/busybox", "echo", "arguments"];
    let run = connection.run(UVM_ID, json!({"CommandLine": line, "CommandArgs": args})).await;
    assert_eq!(run.stdout, "arguments\n");
    for broken in ["", "'open"] {
        let body = pipes(None, None, None, json!({"CommandLine": broken}));
        let answer = connection.call(MessageType::EXECUTE_PROCESS, UVM_ID, body).await;
        assert_ne!(answer.result(), 0, "{broken:?}");
    }
}

async fn a_process_of_the_machine_has_exactly_its_environment(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for (program, expected) in [("env", "ONE=1 2\n"), ("pwd", "/run\n")] {
        let more = json!({
            "CommandArgs": ["/bin/busybox", program],
            "Environment": {"ONE": "1 2"}, "WorkingDirectory": "/run",
        });
        assert_eq!(connection.run(UVM_ID, more).await.stdout, expected);
    }
}

async fn ports_are_dialled_in_order_before_the_answer(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("ports");
    connection.create(id, &["sleep", "1000"]).await;
    let init = connection.start(id).await;
    let (ports, [stdin, stdout, stderr]) = connection.host().listen();
    let cat = process(&["sh", "-c", "cat; echo error >&2"]);
    let body = pipes(Some(ports[0]), Some(ports[1]), Some(ports[2]), json!({"OciProcess": cat}));
    let answer = connection.call(MessageType::EXECUTE_PROCESS, id, body).await;
    answer.expect_success();
    // All have been made: nothing has to be waited for.
    let soon = Duration::from_millis(500);
    let (mut stdin, _) = timeout(soon, stdin.accept()).await.unwrap().unwrap();
    let (mut stdout, _) = timeout(soon, stdout.accept()).await.unwrap().unwrap();
    let (mut stderr, _) = timeout(soon, stderr.accept()).await.unwrap().unwrap();
    stdin.write_all(b"through and through").await.unwrap();
    stdin.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut stdout).await, "through and through");
    assert_eq!(read_all(&mut stderr).await, "error\n");
    drop((stdout, stderr));
    let pid = answer.body["ProcessId"].as_u64().unwrap();
    connection.wait(id, pid).await.expect_success();
    end(connection, id, init).await;
}

async fn end(connection: &mut Connection<'_>, id: &str, pid: u64) {
    connection.signal(id, pid, 9).await;
    connection.wait(id, pid).await.expect_success();
    connection.next_notification().await;
    connection.delete(id).await.expect_success();
}

async fn a_port_that_is_not_wanted_is_not_dialled(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let ([port], [listener]) = connection.host().listen();
    let mut body = pipes(None, None, None, json!({"CommandArgs": ["/bin/busybox", "true"]}));
    body["Settings"]["VsockStdioRelaySettings"] =
        json!({"StdIn": port, "StdOut": port, "StdErr": port});
    let answer = connection.call(MessageType::EXECUTE_PROCESS, UVM_ID, body).await;
    answer.expect_success();
    let pid = answer.body["ProcessId"].as_u64().unwrap();
    connection.wait(UVM_ID, pid).await.expect_success();
    assert!(timeout(Duration::from_millis(300), listener.accept()).await.is_err());
}

async fn a_refused_dial_fails_the_request_and_can_be_repeated(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("refused");
    connection.create(id, &["echo", "at last"]).await;
    let ([good, closed], [listener, nobody]) = connection.host().listen();
    drop(nobody);
    let body = pipes(None, Some(good), Some(closed), json!({}));
    let begun = Instant::now();
    let answer = connection.call(MessageType::EXECUTE_PROCESS, id, body).await;
    assert_ne!(answer.result(), 0);
    assert!(begun.elapsed() < Duration::from_secs(25), "it took {:?}", begun.elapsed());
    // What had been connected is closed again.
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(read_all(&mut stream).await, "");
    let run = connection.run(id, json!({})).await;
    assert_eq!((run.stdout.as_str(), run.code), ("at last\n", 0));
    connection.next_notification().await;
    connection.delete(id).await.expect_success();
}

async fn an_exit_is_told_when_the_host_has_closed_its_ends(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("ends");
    connection.create(id, &["echo", "said"]).await;
    let ([port], [listener]) = connection.host().listen();
    let body = pipes(None, Some(port), None, json!({}));
    let answer = connection.call(MessageType::EXECUTE_PROCESS, id, body).await;
    let pid = answer.body["ProcessId"].as_u64().unwrap();
    let (mut stdout, _) = listener.accept().await.unwrap();
    let wait = connection.post_wait(id, pid).await;
    assert_eq!(read_all(&mut stdout).await, "said\n");
    assert!(connection.stays_silent_on(wait, Duration::from_millis(500)).await);
    drop(stdout);
    connection.response_to(wait).await.expect_success();
    connection.next_notification().await;
    connection.delete(id).await.expect_success();
    // A process of the machine itself is told at once.
    let ([port], [listener]) = connection.host().listen();
    let echo = json!({"CommandArgs": ["/bin/busybox", "echo", "said"]});
    let body = pipes(None, Some(port), None, echo);
    let answer = connection.call(MessageType::EXECUTE_PROCESS, UVM_ID, body).await;
    let pid = answer.body["ProcessId"].as_u64().unwrap();
    connection.wait(UVM_ID, pid).await.expect_success();
    let (mut stdout, _) = listener.accept().await.unwrap();
    assert_eq!(read_all(&mut stdout).await, "said\n");
}

async fn waits_without_limit_stay_and_others_end_in_time(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("limits");
    connection.create(id, &["sleep", "1000"]).await;
    let pid = connection.start(id).await;
    let endless = connection.post_wait(id, pid).await;
    for (limit, least) in [(json!(0), 0), (json!(100), 90), (json!(null), 0)] {
        let begun = Instant::now();
        let body = json!({"ProcessId": pid, "TimeoutInMs": limit});
        let answer = connection.call(MessageType::WAIT_FOR_PROCESS, id, body).await;
        answer.expect_fault(HResult::TIMEOUT);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(least) && took < Duration::from_secs(3), "{took:?}");
    }
    // A pending wait is in nobody's way.
    connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
    assert!(connection.stays_silent_on(endless, Duration::from_millis(300)).await);
    connection.signal(id, pid, 9).await.expect_success();
    assert_eq!(connection.response_to(endless).await.body["ExitCode"], 137);
    connection.next_notification().await;
    connection.delete(id).await.expect_success();
}

async fn a_reported_process_is_forgotten_but_an_init_is_not(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("reported");
    connection.create(id, &["sleep", "1000"]).await;
    let init = connection.start(id).await;
    let pid = connection.exec(id, &["sh", "-c", "exit 3"]).await;
    assert_ne!(pid, init);
    assert_eq!(connection.wait(id, pid).await.body["ExitCode"], 3);
    connection.wait(id, pid).await.expect_fault(HResult::ELEMENT_NOT_FOUND);
    connection.signal(id, pid, 15).await.expect_fault(HResult::ELEMENT_NOT_FOUND);
    connection.signal(id, init, 9).await.expect_success();
    for _ in 0..3 {
        assert_eq!(connection.wait(id, init).await.body["ExitCode"], 137);
    }
    connection.signal(id, init, 9).await.expect_fault(HResult::ELEMENT_NOT_FOUND);
    connection.next_notification().await;
    connection.delete(id).await.expect_success();
    connection.wait(id, init).await.expect_fault(HResult::SYSTEM_NOT_FOUND);
}

async fn what_is_unknown_is_told_apart(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    connection.wait("nowhere", 1).await.expect_fault(HResult::SYSTEM_NOT_FOUND);
    connection.wait(UVM_ID, 4_000_000).await.expect_fault(HResult::ELEMENT_NOT_FOUND);
    connection.signal("nowhere", 1, 9).await.expect_fault(HResult::SYSTEM_NOT_FOUND);
}

async fn a_kill_is_what_no_signal_means(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("kill");
    connection.create(id, &["sleep", "1000"]).await;
    let init = connection.start(id).await;
    for options in [
        json!({}),
        json!({"Options": null}),
        json!({"Options": {}}),
        json!({"Options": {"Signal": 0}}),
    ] {
        let pid = connection.exec(id, &["sh", "-c", "trap '' TERM; sleep 1000"]).await;
        let mut body = options.clone();
        body["ProcessId"] = json!(pid);
        connection.call(MessageType::SIGNAL_PROCESS, id, body).await.expect_success();
        assert_eq!(connection.wait(id, pid).await.body["ExitCode"], 137, "{options}");
    }
    end(connection, id, init).await;
}

async fn a_signal_reaches_that_process_alone(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("alone");
    connection.create(id, &["sleep", "1000"]).await;
    let init = connection.start(id).await;
    let (one, two) = (
        connection.exec(id, &["sleep", "1000"]).await,
        connection.exec(id, &["sleep", "1000"]).await,
    );
    connection.signal(id, one, 15).await.expect_success();
    assert_eq!(connection.wait(id, one).await.body["ExitCode"], 143);
    let body = json!({"ProcessId": two, "TimeoutInMs": 100});
    let answer = connection.call(MessageType::WAIT_FOR_PROCESS, id, body).await;
    answer.expect_fault(HResult::TIMEOUT);
    connection.signal(id, two, 9).await.expect_success();
    connection.wait(id, two).await.expect_success();
    end(connection, id, init).await;
}

async fn the_machine_itself_takes_no_signals(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    connection.signal(UVM_ID, 1, 9).await.expect_fault(HResult::SYSTEM_NOT_FOUND);
    let body = json!({"ProcessId": 1, "Height": 10, "Width": 10});
    let answer = connection.call(MessageType::RESIZE_CONSOLE, UVM_ID, body).await;
    answer.expect_fault(HResult::SYSTEM_NOT_FOUND);
}

async fn a_window_of_a_process_without_terminal_cannot_change(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("window");
    connection.create(id, &["sleep", "1000"]).await;
    let init = connection.start(id).await;
    let resize = |pid: u64| json!({"ProcessId": pid, "Height": 10, "Width": 10});
    let answer = connection.call(MessageType::RESIZE_CONSOLE, id, resize(init)).await;
    answer.expect_fault(HResult::FAIL);
    let answer = connection.call(MessageType::RESIZE_CONSOLE, id, resize(4_000_000)).await;
    answer.expect_fault(HResult::ELEMENT_NOT_FOUND);
    end(connection, id, init).await;
}
