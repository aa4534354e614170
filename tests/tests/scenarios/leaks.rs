//! Two hundred quick containers leave nothing, in the guest and on the host. `cargo xtask soak`
//! makes thousands of them.

use std::process::Stdio;

use linkspan_tests::{Backend, from_environment, on_both_backends};
use serde_json::Value;
use tokio::process::Command;

on_both_backends!(alone: big_two_hundred_containers_leave_nothing);

async fn big_two_hundred_containers_leave_nothing(backend: Backend) {
    let name = match backend {
        Backend::Qemu => "qemu",
        Backend::Loopback => "loopback",
    };
    let cycles = from_environment("LINKSPAN_SOAK_CYCLES", 200);
    let temporary = tempfile::tempdir().unwrap();
    let begun = std::time::Instant::now();
    let host = Command::new(env!("CARGO_BIN_EXE_lone-host"))
        .args([name, "cycles", &cycles.to_string()])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&host.stdout);
    assert!(host.status.success(), "{text}{}", String::from_utf8_lossy(&host.stderr));
    println!("{cycles} containers in {:.1} s\n{text}", begun.elapsed().as_secs_f64());
    let state = |when: &str| -> Value {
        let line = text.lines().find_map(|line| line.strip_prefix(when)).expect("a report");
        serde_json::from_str(line).unwrap()
    };
    let (before, after) = (state("before "), state("after "));
    for what in [
        "mounts",
        "cgroups",
        "processes",
        "threads",
        "zombies",
        "descriptors",
        "directories",
        "host_descriptors",
    ] {
        assert_eq!(before[what], after[what], "{what}: {before} {after}");
    }
    let grown = |what: &str| after[what].as_i64().unwrap() - before[what].as_i64().unwrap();
    assert!(grown("resident_kib") < 2048, "the agent grows: {before} {after}");
    assert!(grown("host_resident_kib") < 16 << 10, "the host grows: {before} {after}");
    let kept = format!("linkspan-{}", rustix::process::geteuid().as_raw());
    let left = std::fs::read_dir(temporary.path()).unwrap().flatten();
    let left: Vec<_> = left.filter(|entry| entry.file_name() != *kept).collect();
    assert!(left.is_empty(), "temporary files are left: {left:?}");
}
