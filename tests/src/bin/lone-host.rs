//! A host process of its own, for scenarios about whole processes:
//!
//! - `lone-host BACKEND hold`: runs a container and says so; for whoever kills it.
//! - `lone-host BACKEND cycles N`: makes and deletes N containers, eight at a time, and prints
//!   what there was in the guest and in this process before and after.

use std::sync::Arc;
use std::time::Duration;

use linkspan_host::{Backend, Layers, ProcessSpec, Stdio, UtilityVm};
use linkspan_tests::{GuestState, layer_image, machine};
use serde_json::json;
use tokio::sync::Semaphore;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let backend = match words.first() {
        Some(&"qemu") => Backend::Qemu,
        _ => Backend::Loopback,
    };
    let uvm = machine("lone", backend).start().await?;
    match words[1..] {
        ["hold"] => hold(&uvm).await,
        ["cycles", count] => cycles(uvm, backend, count.parse()?).await,
        _ => anyhow::bail!("usage: lone-host qemu|loopback hold | cycles N"),
    }
}

async fn hold(uvm: &UtilityVm) -> anyhow::Result<()> {
    let container = uvm
        .container("held", Layers::of(layer_image()))
        .process(ProcessSpec::new(["sleep", "100000"]))
        .create()
        .await?;
    let _init = container.start(Stdio::NULL).await?;
    let _exec = container.command("cat").spawn().await?;
    println!("holding {}", uvm.vmm().describe());
    std::future::pending().await
}

async fn cycles(uvm: UtilityVm, backend: Backend, count: usize) -> anyhow::Result<()> {
    let cgroup = GuestState::cgroup(&uvm, backend);
    // The first ones make what is made once.
    batch(&uvm, "warm", 16).await?;
    let before = (settled(&uvm, &cgroup).await, Own::now()?);
    batch(&uvm, "cycle", count).await?;
    let after = (settled(&uvm, &cgroup).await, Own::now()?);
    uvm.terminate().await;
    for (when, (guest, own)) in [("before", before), ("after", after)] {
        println!(
            "{when} {}",
            json!({
                "mounts": guest.mounts, "cgroups": guest.cgroups, "processes": guest.processes,
                "zombies": guest.zombies, "threads": guest.threads, "descriptors": guest.descriptors,
                "directories": guest.directories, "resident_kib": guest.resident_kib,
                "host_descriptors": own.descriptors, "host_resident_kib": own.resident_kib,
            })
        );
    }
    Ok(())
}

/// What there is once nothing is on its way any more: threads that have nothing to do end after a
/// while, and streams close behind the exit that they belong to.
async fn settled(uvm: &UtilityVm, cgroup: &str) -> GuestState {
    let mut state = GuestState::of(uvm, cgroup).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = GuestState::of(uvm, cgroup).await;
        if (now.threads, now.descriptors) == (state.threads, state.descriptors) {
            return now;
        }
        state = now;
    }
    state
}

async fn batch(uvm: &UtilityVm, name: &str, count: usize) -> anyhow::Result<()> {
    let room = Arc::new(Semaphore::new(8));
    let mut running = tokio::task::JoinSet::new();
    for number in 0..count {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let (uvm, id) = (uvm.clone(), format!("{name}-{number}"));
        running.spawn(async move {
            let _permit = permit;
            one(&uvm, &id).await.map_err(|error| anyhow::anyhow!("{id}: {error}"))
        });
        while let Some(done) = running.try_join_next() {
            done??;
        }
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

async fn one(uvm: &UtilityVm, id: &str) -> anyhow::Result<()> {
    let script = "cat; echo $0";
    let init = ProcessSpec::new(["sh", "-c", script, id]);
    let container = uvm.container(id, Layers::of(layer_image())).process(init).create().await?;
    let init = container.start(Stdio::PIPED).await?;
    let output = container.command("echo").arg("joined").output().await?;
    anyhow::ensure!(output.stdout == b"joined\n", "{output:?}");
    // The end of its input is the init's.
    let output = init.wait_with_output().await?;
    anyhow::ensure!(output.status.success(), "{}", output.status);
    anyhow::ensure!(output.stdout == format!("{id}\n").as_bytes(), "{:?}", output.stdout);
    container.delete().await?;
    Ok(())
}

/// What this process has.
struct Own {
    descriptors: usize,
    resident_kib: u64,
}

impl Own {
    fn now() -> anyhow::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = line.and_then(|line| line.split_whitespace().next()).unwrap_or_default();
        let descriptors = std::fs::read_dir("/proc/self/fd")?.count();
        Ok(Self { descriptors, resident_kib: resident.parse()? })
    }
}
