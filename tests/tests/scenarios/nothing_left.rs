//! However a machine ends, nothing of it stays on the host.

use std::path::Path;
use std::process::Stdio as HostStdio;
use std::time::Duration;

use linkspan_host::{Layers, ProcessSpec, Stdio};
use linkspan_tests::{
    Backend, Remains, Vm, block_on, layer_image, machine, on_both_backends, pid_in, unique,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

on_both_backends!(alone:
    nothing_is_left_after_termination,
    nothing_is_left_after_a_drop,
    nothing_is_left_after_a_failed_start,
    nothing_is_left_when_its_host_is_killed,
);

/// How long the kernel may take to clean up behind processes.
const SOON: Duration = Duration::from_secs(5);

/// A machine with a running container on disks, and what it has on this host.
async fn busy(backend: Backend) -> (Vm, Remains) {
    let vm = Vm::own("busy", backend).await;
    let process = ProcessSpec::new(["sleep", "100000"]);
    let container = vm.container(unique("busy"), Layers::of(layer_image())).process(process);
    let container = container.create().await.unwrap();
    container.start(Stdio::NULL).await.unwrap();
    let remains = Remains::of(pid_in(&vm.vmm().describe()));
    match backend {
        Backend::Qemu => assert!(remains.processes() >= 1),
        Backend::Loopback => {
            assert!(remains.processes() > 3, "{remains:?}");
            assert_eq!(remains.loops(), 2, "{remains:?}");
        }
    }
    (vm, remains)
}

async fn nothing_is_left_after_termination(backend: Backend) {
    let (vm, remains) = busy(backend).await;
    vm.terminate().await;
    let left = remains.left();
    assert!(left.is_empty(), "termination returned with: {left:#?}");
    vm.terminate().await;
}

async fn nothing_is_left_after_a_drop(backend: Backend) {
    let (vm, remains) = busy(backend).await;
    drop(vm);
    remains.gone_within(SOON).await;
}

async fn nothing_is_left_after_a_failed_start(backend: Backend) {
    let (before, name) = (Ours::now(), format!("hasty-{backend:?}"));
    // An argument that both backends' processes show, and that means nothing yet.
    let builder = machine("hasty", backend).agent_arg(format!("-core-dump-location=/{name}"));
    let builder = builder.boot_timeout(Duration::from_nanos(1));
    builder.start().await.expect_err("nobody boots in no time");
    before.nothing_new(&name);
}

/// What machines of this very process have.
struct Ours(Vec<u32>);

impl Ours {
    fn now() -> Self {
        let list = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let children = list.flat_map(|task| {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        });
        Self(children.collect())
    }

    fn nothing_new(&self, name: &str) {
        // Scenarios beside this one start machines, too; theirs have other names.
        for pid in Self::now().0.into_iter().filter(|pid| !self.0.contains(pid)) {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            assert!(!line.contains(name), "process {pid} is left: {line}");
        }
    }
}

async fn nothing_is_left_when_its_host_is_killed(backend: Backend) {
    let name = match backend {
        Backend::Qemu => "qemu",
        Backend::Loopback => "loopback",
    };
    let temporary = tempfile::tempdir().unwrap();
    let mut host = Command::new(env!("CARGO_BIN_EXE_lone-host"))
        .args([name, "hold"])
        .env("TMPDIR", temporary.path())
        .stdin(HostStdio::null())
        .stdout(HostStdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("it holds a machine");
    let remains = Remains::of(pid_in(&line));
    assert!(remains.processes() >= 1 && remains.left().len() >= remains.processes());
    host.kill().await.unwrap();
    remains.gone_within(SOON).await;
    assert!(left_in(temporary.path()).is_empty(), "{:?}", left_in(temporary.path()));
}

/// What is in a directory for temporary files; what is known of KVM stays there on purpose.
fn left_in(directory: &Path) -> Vec<String> {
    let kept = format!("linkspan-{}", rustix::process::geteuid().as_raw());
    let names = std::fs::read_dir(directory).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| *name != kept).collect()
}

#[test]
fn nothing_is_left_when_the_loopback_agents_keeper_is_killed() {
    block_on(async {
        let (vm, remains) = busy(Backend::Loopback).await;
        let keeper = pid_in(&vm.vmm().describe()).cast_signed();
        let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
        rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
        let exit = timeout(Duration::from_secs(5), vm.exited()).await;
        let exit = exit.expect("its end is noticed");
        vm.terminate().await;
        remains.gone_within(SOON).await;
        assert!(!exit.clean, "{exit:?}");
    });
}

#[test]
fn a_guest_that_powers_off_ends_the_machine() {
    block_on(async {
        let (vm, remains) = busy(Backend::Qemu).await;
        // Its answer may not come any more.
        let off = vm.command("/bin/busybox").args(["poweroff", "-f"]).status();
        let _ = timeout(Duration::from_secs(20), off).await;
        let exit = timeout(Duration::from_secs(20), vm.exited()).await;
        let exit = exit.expect("the machine has ended");
        assert!(exit.clean, "{exit:?}");
        remains.gone_within(SOON).await;
    });
}
