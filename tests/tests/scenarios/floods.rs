//! Hosts that ask for too much, or do not listen: what they cost is bounded. Memory is looked at
//! from outside, so these are about the agent on this kernel.

use std::fs;
use std::time::Duration;

use linkspan_protocol::frame::GUEST_LIMIT;
use linkspan_protocol::{HResult, MessageType, UVM_ID};
use linkspan_tests::raw::{Connection, RawHost};
use linkspan_tests::{Backend, block_on, machine, pid_in, unique};
use serde_json::json;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60);

async fn alone(name: &str, scenario: impl AsyncFnOnce(&mut Connection<'_>, u32)) {
    let (mut host, []) = RawHost::boot(machine(name, Backend::Loopback), []).await;
    host.map_base().await;
    let outside = pid_in(&host.vmm().describe());
    let mut connection = host.connect().await;
    connection.negotiate().await;
    let agent = named(outside, "linkspan-agent").expect("the agent runs");
    scenario(&mut connection, agent).await;
    assert_eq!(named(outside, "linkspan-agent"), Some(agent), "it is still the same agent");
}

/// A process of that name among the descendants.
fn named(pid: u32, name: &str) -> Option<u32> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if comm.trim() == name {
        return Some(pid);
    }
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().find_map(|child| named(child.parse().ok()?, name))
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_host_that_does_not_read_is_not_answered_without_end() {
    block_on(alone("deaf", async |connection, agent| {
        let before = resident_kib(agent);
        // Each answer has tens of kilobytes. At some point no more is taken.
        let mut sent = 0;
        while sent < 20_000
            && timeout(
                Duration::from_secs(2),
                connection.post(MessageType::DUMP_STACKS, UVM_ID, json!({"Pad": "x".repeat(200)})),
            )
            .await
            .is_ok()
        {
            sent += 1;
        }
        let grown = resident_kib(agent).saturating_sub(before);
        println!("{sent} requests unread cost {grown} KiB");
        assert!(grown < 16 << 10, "{sent} requests cost {grown} KiB");
        // What was cut off cannot be gone on with.
        connection.reconnect().await;
        connection.negotiate().await;
        connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
    }));
}

#[test]
fn more_requests_than_can_be_worked_on_are_refused_and_harm_none() {
    block_on(alone("many", async |connection, agent| {
        let id = &unique("many");
        connection.create(id, &["sleep", "1000"]).await;
        let pid = connection.start(id).await;
        let before = resident_kib(agent);
        let mut waits = Vec::new();
        for _ in 0..2500 {
            waits.push(connection.post_wait(id, pid).await);
        }
        let refused = timeout(LONG, connection.next_response()).await.expect("one is refused");
        refused.expect_fault(HResult::FAIL);
        let grown = resident_kib(agent).saturating_sub(before);
        println!("{} waits cost {grown} KiB", waits.len());
        assert!(grown < 16 << 10, "they cost {grown} KiB");
        // Even now others are not held up for longer than it takes to say so.
        let answer = connection.call(MessageType::GET_PROPERTIES, "nowhere", json!({})).await;
        assert_ne!(answer.result(), 0);
        connection.reconnect().await;
        connection.negotiate().await;
        // The waits of the connection before still count: one ends them all.
        let status = std::process::Command::new("kill").args(["-9", &outer(agent, pid)]).status();
        assert!(status.unwrap().success());
        let mut told = 0;
        while told < 2048 {
            let answer = connection.next_response().await;
            if answer.body["ExitCode"] == 137 {
                told += 1;
            }
        }
        connection.call(MessageType::DUMP_STACKS, UVM_ID, json!({})).await.expect_success();
        connection.delete(id).await.expect_success();
    }));
}

/// A pid of the agent's namespace, seen from here.
fn outer(agent: u32, pid: u64) -> String {
    let mut rest = vec![agent];
    while let Some(parent) = rest.pop() {
        let status = fs::read_to_string(format!("/proc/{parent}/status")).unwrap_or_default();
        let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        if inner.split_whitespace().nth(1) == Some(&pid.to_string()) {
            return parent.to_string();
        }
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        rest.extend(children.unwrap_or_default().split_whitespace().flat_map(str::parse::<u32>));
    }
    panic!("no process {pid} below {agent}");
}

#[test]
fn huge_frames_leave_no_memory_behind() {
    block_on(alone("huge", async |connection, agent| {
        let before = resident_kib(agent);
        for _ in 0..5 {
            // Small on the wire, large when it is taken apart.
            let list = "1,".repeat((GUEST_LIMIT - 1024) / 2);
            let payload =
                format!("{{\"ContainerId\":\"x\",\"ActivityId\":\"\",\"Odd\":[{list}1]}}");
            connection.send(MessageType::GET_PROPERTIES, 5, payload.as_bytes()).await;
            let answer = timeout(LONG, connection.response_to(5)).await.expect("an answer");
            assert_ne!(answer.result(), 0);
        }
        let grown = resident_kib(agent).saturating_sub(before);
        println!("5 frames of {GUEST_LIMIT} bytes leave {grown} KiB");
        assert!(grown < 12 << 10, "they leave {grown} KiB");
    }));
}
