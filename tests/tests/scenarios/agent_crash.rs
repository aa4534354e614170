//! The agent is killed: it comes back, says so, and the machine is of use again.

use std::time::Duration;

use linkspan_host::{Error, Stdio};
use linkspan_tests::{Backend, GuestState, Vm, on_both_backends};
use tokio::time::timeout;

on_both_backends!(alone: a_killed_agent_is_replaced_and_pending_calls_are_told);

async fn a_killed_agent_is_replaced_and_pending_calls_are_told(backend: Backend) {
    let vm = Vm::own("crash", backend).await;
    for round in 1..=2 {
        let sandbox = vm.sandbox("before").await;
        let exec = sandbox.command("sleep").arg("1000").stdio(Stdio::NULL).spawn().await.unwrap();
        // In order of age: the supervisor, the agent, what the agent has started.
        let agents = GuestState::agents(&vm).await;
        let agent = agent_among(&vm, &agents).await;
        let kill = ["kill", "-9", &agent.to_string()].map(str::to_owned);
        // The answer to this one may be lost with the agent.
        let _ =
            timeout(Duration::from_secs(20), vm.command("/bin/busybox").args(kill).status()).await;

        let told = timeout(Duration::from_secs(20), exec.handle().wait()).await;
        let error =
            told.expect("a pending wait is told of the crash").expect_err("it has no answer");
        let text = error.to_string();
        println!("{text}");
        assert!(text.contains("started again"), "{text}");
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        timeout(Duration::from_secs(10), sandbox.exited()).await.expect("told").unwrap();

        let after = vm.sandbox("after").await;
        assert_eq!(after.text("echo works again").await, "works again");
        let agents = GuestState::agents(&vm).await;
        assert!(!agents.contains(&agent), "round {round}: {agent} is still among {agents:?}");
        after.remove().await;
    }
    let zombies = GuestState::of(&vm, &GuestState::cgroup(&vm, backend)).await.zombies;
    assert_eq!(zombies, 0);
    vm.terminate().await;
}

/// The one whose parent is the supervisor, which is the first process.
pub(crate) async fn agent_among(vm: &Vm, agents: &[u32]) -> u32 {
    for &pid in agents {
        let path = format!("/proc/{pid}/stat");
        let stat = vm.command("/bin/busybox").args(["cat", &path]).output().await.unwrap();
        let stat = String::from_utf8_lossy(&stat.stdout).into_owned();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        if parent == Some("1") && pid != 1 {
            return pid;
        }
    }
    panic!("no child of the supervisor among {agents:?}");
}
