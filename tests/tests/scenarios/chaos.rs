//! Hosts that go away and come back at any byte, again and again.
//!
//! `cargo xtask soak` makes of the few cuts here as many as one likes.

use std::time::Duration;

use hyperv_socket::{Listener, Stream};
use linkspan_host::Stdio;
use linkspan_protocol::MessageType;
use linkspan_tests::raw::{RawHost, pipes};
use linkspan_tests::{
    Backend, Dice, Flaky, Vm, block_on, from_environment, machine, on_both_backends, unique,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::watch;
use tokio::time::timeout;

on_both_backends!(alone:
    nothing_is_lost_or_doubled_with_our_host,
    nothing_is_lost_with_any_host,
);

/// How often connections are cut.
fn cuts() -> u64 {
    from_environment("LINKSPAN_CHAOS_CUTS", 30)
}

const CONTAINERS: u64 = 8;
const LONG: Duration = Duration::from_secs(60);

/// Counts until it is told to end; then its exit code says who it was.
fn counter(code: u64) -> String {
    format!(
        "trap 'exit {code}' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1 & wait $!; done"
    )
}

async fn nothing_is_lost_or_doubled_with_our_host(backend: Backend) {
    let mut flaky = None;
    let wrapped = machine("chaos", backend).start_wrapped(|vmm| {
        let wrapper = flaky.insert(Flaky::new(vmm)).clone();
        std::sync::Arc::new(wrapper)
    });
    let vm = Vm::of(wrapped.await.expect("the utility VM comes up"), backend);
    let flaky = flaky.expect("was made");
    let mut containers = Vec::new();
    for number in 0..CONTAINERS {
        let init = ["sh".to_owned(), "-c".to_owned(), counter(40 + number)];
        let container = vm.with_init("counts", init).create().await.expect("create");
        let only_stdout = Stdio { stdin: false, stdout: true, stderr: false };
        let mut init = container.start_resumable(only_stdout).await.expect("start");
        let stdout = init.stdout.take().unwrap();
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            let mut next = 0_u64;
            while let Some(line) = lines.next_line().await.expect("read the output") {
                assert_eq!(line, next.to_string(), "container {number}");
                next += 1;
            }
            next
        });
        containers.push((container, init, reader));
    }
    let mut dice = Dice(7);
    for cut in 0..cuts() {
        tokio::time::sleep(Duration::from_millis(dice.below(60))).await;
        flaky.cut();
        // Asked for while the connection is going, and answered once, with its own code.
        let (container, ..) = &containers[dice.below(CONTAINERS) as usize];
        let code = cut % 100;
        let script = format!("exit {code}");
        let exec = container.command("sh").args(["-c", &script]).stdio(Stdio::NULL).spawn();
        let exec = timeout(LONG, exec).await.expect("an answer").expect("a process");
        if dice.below(2) == 0 {
            flaky.cut();
        }
        let status = timeout(LONG, exec.wait()).await.expect("an exit").unwrap();
        assert_eq!(u64::from(status.code()), code, "cut {cut}");
    }
    assert!(flaky.broken() > cuts(), "{} connections were broken", flaky.broken());
    for (number, (container, init, reader)) in containers.into_iter().enumerate() {
        flaky.cut();
        assert!(timeout(LONG, init.handle().signal(15)).await.expect("an answer").unwrap());
        let status = timeout(LONG, init.handle().wait()).await.expect("an exit").unwrap();
        assert_eq!(status.code() as usize, 40 + number);
        let lines = timeout(LONG, reader).await.expect("the end of the output").unwrap();
        assert!(lines > 5, "container {number} has counted to {lines}");
        timeout(LONG, container.exited()).await.expect("the notification").unwrap();
        timeout(LONG, container.delete()).await.expect("an answer").unwrap();
    }
    println!("{} connections were broken", flaky.broken());
    vm.terminate().await;
}

/// Reads what comes on a port, over any number of connections, until the exit has been told. The
/// result has every line.
async fn read_over_cuts(
    listener: Listener,
    mut cut: watch::Receiver<u64>,
    mut told: watch::Receiver<bool>,
) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let (stream, _) = tokio::select! {
            biased;
            accepted = listener.accept() => accepted.expect("the guest dials"),
            _ = told.wait_for(|&told| told) => return numbers,
        };
        let mut text = String::new();
        let complete = read_until_cut(stream, &mut cut, &mut text).await;
        // The first line of a replay and the last before a cut may be parts of one.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        numbers.extend(whole.lines().filter_map(|line| line.parse::<u64>().ok()));
        if complete {
            return numbers;
        }
    }
}

async fn read_until_cut(
    mut stream: Stream,
    cut: &mut watch::Receiver<u64>,
    text: &mut String,
) -> bool {
    let mut buffer = [0; 512];
    cut.mark_unchanged();
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(0) => return true,
                Ok(len) => text.push_str(&String::from_utf8_lossy(&buffer[..len])),
                Err(_) => return false,
            },
            _ = cut.changed() => return false,
        }
    }
}

async fn nothing_is_lost_with_any_host(backend: Backend) {
    let (mut host, []) = RawHost::boot(machine("chaos-v4", backend), []).await;
    host.map_base().await;
    let cut = watch::Sender::new(0_u64);
    let mut connection = host.connect().await;
    connection.negotiate().await;
    let mut containers = Vec::new();
    for number in 0..CONTAINERS {
        let id = unique("any");
        connection.create(&id, &["sh", "-c", &counter(40 + number)]).await;
        let ([port], [listener]) = connection.host().listen();
        let (told, exit) = watch::channel(false);
        let reader = tokio::spawn(read_over_cuts(listener, cut.subscribe(), exit));
        let body = pipes(None, Some(port), None, json!({}));
        let answer = connection.call(MessageType::EXECUTE_PROCESS, &id, body).await;
        answer.expect_success();
        let pid = answer.body["ProcessId"].as_u64().unwrap();
        let wait = connection.post_wait(&id, pid).await;
        containers.push((id, pid, wait, told, reader));
    }
    let mut dice = Dice(11);
    for _ in 0..cuts() {
        tokio::time::sleep(Duration::from_millis(50 + dice.below(100))).await;
        cut.send_modify(|count| *count += 1);
        if dice.below(2) == 0 {
            connection.reconnect().await;
            connection.negotiate().await;
        }
    }
    for (number, (id, pid, wait, told, reader)) in containers.into_iter().enumerate() {
        connection.signal(&id, pid, 15).await.expect_success();
        // Asked for on the first connection, answered on the last.
        let answer = connection.response_to(wait).await;
        assert_eq!(answer.body["ExitCode"], 40 + number);
        told.send_replace(true);
        let mut numbers = timeout(LONG, reader).await.expect("the end of the output").unwrap();
        numbers.sort_unstable();
        numbers.dedup();
        let last = *numbers.last().expect("it has counted");
        // A replay that begins within a number reads as another, smaller one: it is there anyway.
        let expected: Vec<u64> = (0..=last).collect();
        assert_eq!(numbers, expected, "container {number}");
        connection.next_notification().await;
        connection.delete(&id).await.expect_success();
    }
}

/// The reference's hosts read the port of an init again where they left it; this one never comes.
#[test]
fn a_host_that_never_takes_an_output_again_does_not_hold_the_exit_for_ever() {
    block_on(async {
        let (mut host, []) = RawHost::boot(machine("gone", Backend::Loopback), []).await;
        host.map_base().await;
        let mut connection = host.connect().await;
        connection.negotiate().await;
        let id = unique("gone");
        connection.create(&id, &["sh", "-c", "trap 'exit 9' TERM; while :; do echo x; done"]).await;
        let ([port], [listener]) = connection.host().listen();
        let body = pipes(None, Some(port), None, json!({}));
        let answer = connection.call(MessageType::EXECUTE_PROCESS, &id, body).await;
        let pid = answer.body["ProcessId"].as_u64().unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 1000]).await.unwrap();
        drop((stream, listener));
        let wait = connection.post_wait(&id, pid).await;
        assert!(connection.stays_silent_on(wait, Duration::from_millis(500)).await);
        // Blocked on its output, it does not even see the first; a shutdown gives the output up.
        connection.signal(&id, pid, 9).await.expect_success();
        assert!(connection.stays_silent_on(wait, Duration::from_millis(500)).await);
        let begun = std::time::Instant::now();
        let answer = timeout(LONG, connection.response_to(wait)).await.expect("an exit");
        assert_eq!(answer.body["ExitCode"], 137);
        println!("told after {:.1?}", begun.elapsed());
        connection.next_notification().await;
        connection.delete(&id).await.expect_success();
    });
}
