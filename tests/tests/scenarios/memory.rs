//! Memory: a container that has too little, and an agent that must not suffer from it.

use std::time::Duration;

use linkspan_host::UtilityVm;
use linkspan_host::protocol::message::{ContainerId, ModifySettings};
use linkspan_host::protocol::resource::{ModifyType, Resource};
use linkspan_tests::{Backend, GuestState, Vm, block_on, machine, on_both_backends};
use serde_json::json;
use tokio::time::timeout;

on_both_backends!(a_container_without_memory_is_told_of_and_lives_on);

const LONG: Duration = Duration::from_secs(60);

/// `tail` keeps what it is to print.
const EAT: &str = "head -c 80000000 /dev/zero | tail -c 60000000 > /dev/null";

async fn a_container_without_memory_is_told_of_and_lives_on(vm: Vm) {
    let container = vm.sandbox("hungry").await;
    let other = vm.sandbox("modest").await;
    container.update(json!({"memory": {"limit": 24 << 20, "swap": 24 << 20}})).await.unwrap();
    let mut kills = container.oom_kills();
    assert_eq!(*kills.borrow(), 0);
    container.sh(EAT).await;
    let told = timeout(LONG, kills.wait_for(|&kills| kills > 0)).await;
    let count = *told.expect("told of the kill").unwrap();

    // One that is killed itself learns why.
    let eat = ["-c", "60000000", "/dev/zero"];
    let output = container.command("tail").args(eat).output().await.unwrap();
    assert_eq!(output.status.signal(), Some(9), "{}", output.status);
    assert!(output.status.oom_kills() > count, "{:?}", output.status);
    timeout(LONG, kills.wait_for(|&kills| kills > count)).await.expect("told again").unwrap();

    assert_eq!(container.text("echo lives").await, "lives");
    let killed = other.command("sh").args(["-c", "kill -9 $$"]).status().await.unwrap();
    assert_eq!((killed.signal(), killed.oom_kills()), (Some(9), 0));
    assert_eq!(*other.oom_kills().borrow(), 0);
    other.remove().await;
    container.remove().await;
}

async fn text(vm: &UtilityVm, script: &str) -> String {
    let output = vm.command("/bin/busybox").args(["sh", "-c", script]).output().await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What `/proc/PID/cgroup` says on either version, and where the limit of all containers is.
async fn the_machine_is_shared_out(vm: &Vm, limit: &str, memory_line: &str) {
    let sandbox = vm.sandbox("shared").await;
    let agents = GuestState::agents(vm).await;
    let total: u64 = text(vm, "/bin/busybox awk '/MemTotal/ {print $2}' /proc/meminfo")
        .await
        .parse::<u64>()
        .unwrap()
        * 1024;
    let pods: u64 = text(vm, &format!("/bin/busybox cat {limit}")).await.parse().unwrap();
    assert_eq!(pods, (total - (75 << 20)) / 4096 * 4096);
    // A host tells when the machine's memory has changed; what somebody else has changed goes.
    text(vm, &format!("echo 100000000 > {limit}")).await;
    let changed = ModifySettings::new(ModifyType::Update, Resource::PodCgroupMemoryLimit);
    vm.request(&ContainerId::uvm(), &changed).await.unwrap();
    assert_eq!(text(vm, &format!("/bin/busybox cat {limit}")).await, pods.to_string());
    // The first is pid 1; all others stem from the agent.
    for pid in &agents[1..] {
        let name = text(vm, &format!("/bin/busybox cat /proc/{pid}/comm")).await;
        if name != "linkspan-agent" && name != "linkspan-zygote" {
            continue;
        }
        let cgroup = text(vm, &format!("/bin/busybox cat /proc/{pid}/cgroup")).await;
        assert!(cgroup.contains(&format!("{memory_line}/gcs")), "{name}: {cgroup}");
        let score = text(vm, &format!("/bin/busybox cat /proc/{pid}/oom_score_adj")).await;
        assert_eq!(score, "-1000", "{name}");
    }
    let own = text(vm, "/bin/busybox cat /proc/self/cgroup /proc/self/oom_score_adj").await;
    assert!(own.contains(&format!("{memory_line}/external")), "{own}");
    assert!(own.ends_with("\n0"), "{own}");
    assert_eq!(sandbox.text("cat /proc/self/oom_score_adj").await, "0");
    sandbox.remove().await;
}

#[test]
fn a_machine_s_memory_is_shared_out_on_version_2() {
    block_on(async {
        let vm = Vm::own("shares", Backend::Qemu).await;
        the_machine_is_shared_out(&vm, "/sys/fs/cgroup/pods/memory.max", "0::").await;
        let kept = text(&vm, "/bin/busybox cat /sys/fs/cgroup/gcs/memory.min").await;
        assert_eq!(kept, (16 << 20).to_string());
        vm.terminate().await;
    });
}

#[test]
fn a_machine_with_version_1_does_all_the_same() {
    block_on(async {
        let builder = machine("v1", Backend::Qemu).kernel_arg("hcsshim.cgroup=v1");
        let vm = Vm::of(builder.start().await.unwrap(), Backend::Qemu);
        let limit = "/sys/fs/cgroup/memory/pods/memory.limit_in_bytes";
        the_machine_is_shared_out(&vm, limit, ":memory:").await;
        let sandbox = vm.sandbox("counted").await;
        let statistics = sandbox.statistics().await.unwrap();
        assert!(statistics.cpu.unwrap().usage.unwrap().total > 0);
        assert!(statistics.memory.unwrap().usage.unwrap().usage > 0);
        assert!(statistics.pids.unwrap().current >= 1);
        sandbox.remove().await;
        a_container_without_memory_is_told_of_and_lives_on(vm.clone()).await;
        vm.terminate().await;
    });
}
