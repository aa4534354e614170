//! What is run with our runtime alone.

use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::Arguments;
use crate::cri::Cri;
use crate::cri::message as cri;
use crate::ctr::Ctr;
use crate::daemon::Daemon;
use crate::remains::Remains;
use crate::survival;

/// Where a check is made.
pub(crate) struct Place<'a> {
    pub(crate) ctr: &'a Ctr,
    pub(crate) daemon: &'a Daemon,
    pub(crate) remains: &'a Remains,
    pub(crate) arguments: &'a Arguments,
}

/// Something that has to hold.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Place<'_>) -> Result<()>,
}

pub(crate) const CHECKS: &[Check] = &[
    Check { name: "each container has a kernel of its own", run: kernel },
    Check { name: "a checkpoint is said not to be supported", run: checkpoint },
    Check { name: "a pod's containers share localhost, memory and a machine", run: pod },
    Check { name: "a killed server leaves nothing, and containerd notices", run: survival::server },
    Check { name: "a killed machine ends its container", run: survival::machine },
    Check { name: "a crashed kernel ends its container", run: survival::kernel },
    Check { name: "a killed containerd finds its containers again", run: survival::containerd },
    Check { name: "many containers run at the same time", run: parallel },
];

fn kernel(place: &Place<'_>) -> Result<()> {
    let outcome = place.ctr.container(&["--rm"], "one", &["uname", "-r"])?;
    let here = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let there = outcome.succeeded()?;
    ensure!(there.trim() != here.trim(), "both run on {here}");
    Ok(())
}

fn checkpoint(place: &Place<'_>) -> Result<()> {
    place.ctr.detached(&[], "stays", &["sleep", "1000"])?;
    let refused = place.ctr.run(&["container", "checkpoint", "--task", "stays", "localhost/x:1"]);
    let said = refused?.failed()?;
    place.ctr.end("stays", "SIGKILL")?;
    ensure!(said.contains("not supported") || said.contains("not implemented"), "{said}");
    Ok(())
}

fn parallel(place: &Place<'_>) -> Result<()> {
    let (ctr, count) = (place.ctr, place.arguments.parallel);
    thread::scope(|scope| {
        let runs: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    let id = format!("many-{number}");
                    let script = format!("hostname > /tmp/x; echo {number}; exit {number}");
                    let outcome = ctr.container(&["--rm"], &id, &["sh", "-c", &script])?;
                    ensure!(outcome.stdout == format!("{number}\n"), "{id}: {outcome}");
                    ensure!(outcome.code == i32::try_from(number).ok(), "{id}: {outcome}");
                    Ok(())
                })
            })
            .collect();
        for run in runs {
            run.join().map_err(|_| anyhow!("a run broke"))??;
        }
        Ok(())
    })
}

/// The kubelet's number for a namespace of the node.
const NODE: i32 = 2;

/// The kubelet's number for a container that has ended.
const EXITED: i32 = 2;

fn pod(place: &Place<'_>) -> Result<()> {
    let client = Cri::connect(&place.daemon.directory().join("sock"))?;
    let namespaces = cri::NamespaceOption { network: NODE, ..Default::default() };
    let logs = place.daemon.directory().join("logs");
    std::fs::create_dir_all(&logs)?;
    let named = |name: &str| cri::Named { name: name.into(), ..Default::default() };
    let pod = cri::PodConfig {
        metadata: Some(cri::Named { uid: "u".into(), namespace: "n".into(), ..named("pod") }),
        log_directory: logs.display().to_string(),
        linux: Some(cri::LinuxSandbox {
            security: Some(cri::SandboxSecurity { namespaces: Some(namespaces.clone()) }),
        }),
        ..Default::default()
    };
    let config = Some(pod.clone());
    let run = cri::RunPod { config, runtime_handler: "linkspan".into() };
    let made: cri::Id = client.call("RunPodSandbox", run)?;
    let outcome = in_pod(&client, &made, &pod, &namespaces, named);
    let _: cri::Nothing = client.call("StopPodSandbox", made.clone())?;
    let _: cri::Nothing = client.call("RemovePodSandbox", made)?;
    outcome
}

fn in_pod(
    client: &Cri,
    made: &cri::Id,
    pod: &cri::PodConfig,
    namespaces: &cri::NamespaceOption,
    named: impl Fn(&str) -> cri::Named,
) -> Result<()> {
    let start = |name: &str, script: &str, limit: i64| -> Result<cri::Id> {
        let config = cri::ContainerConfig {
            metadata: Some(named(name)),
            image: Some(cri::Image { image: crate::image::NAME.into() }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainer {
                resources: Some(cri::Resources { memory_limit_in_bytes: limit }),
                security: Some(cri::ContainerSecurity { namespaces: Some(namespaces.clone()) }),
            }),
        };
        let (pod, config, pod_config) = (made.id.clone(), Some(config), Some(pod.clone()));
        let create = cri::CreateContainer { pod, config, pod_config };
        let container: cri::Id = client.call("CreateContainer", create)?;
        let _: cri::Nothing = client.call("StartContainer", container.clone())?;
        Ok(container)
    };
    let exec = |container: &cri::Id, script: &str| -> Result<String> {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = cri::Exec { container: container.id.clone(), command, timeout: 300 };
        let answer: cri::Executed = client.call("ExecSync", request)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&answer.stdout), text(&answer.stderr));
        ensure!(answer.exit_code == 0, "{script}: {stdout}{stderr}");
        Ok(stdout)
    };
    let script = "mkdir /www; echo hello > /www/index.html; httpd -f -p 8080 -h /www";
    let (web, other) = (start("web", script, 0)?, start("other", "sleep 1000", 64 << 20)?);
    let fetch =
        "for i in $(seq 100); do wget -qO- http://127.0.0.1:8080/ && exit; sleep 0.1; done; exit 1";
    ensure!(exec(&other, fetch)?.ends_with("hello\n"), "localhost is not shared");
    exec(&web, "echo shared > /dev/shm/word")?;
    ensure!(exec(&other, "cat /dev/shm/word")? == "shared\n", "/dev/shm is not shared");
    let boot = |container| exec(container, "cat /proc/sys/kernel/random/boot_id");
    ensure!(boot(&web)? == boot(&other)?, "they are in two machines");
    ensure!(
        exec(&web, "readlink /proc/self/ns/ipc")? == exec(&other, "readlink /proc/self/ns/ipc")?
    );
    let stats: cri::StatsAnswer = client.call("ContainerStats", other.clone())?;
    let usage = stats.stats.and_then(|stats| Some(stats.memory?.value?.value));
    ensure!(usage.is_some_and(|bytes| bytes > 0), "no figures: {usage:?}");

    let limit = || exec(&other, "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max");
    ensure!(limit()? == "67108864\n", "the limit of its creation does not hold");
    let linux = Some(cri::Resources { memory_limit_in_bytes: 96 << 20 });
    let update = cri::Update { container: other.id.clone(), linux };
    let _: cri::Nothing = client.call("UpdateContainerResources", update)?;
    ensure!(limit()? == "100663296\n", "a changed limit does not hold");

    // One that takes more memory than it may is killed; the other does not notice.
    let killed = start("hungry", "exec tail /dev/zero", 32 << 20)?;
    let mut last = cri::Status::default();
    for _ in 0..600 {
        let answer: cri::StatusAnswer = client.call("ContainerStatus", killed.clone())?;
        last = answer.status.context("no status")?;
        if last.state == EXITED {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(100));
    }
    ensure!((last.state, last.exit_code) == (EXITED, 137), "{last:?}");
    ensure!(last.reason == "OOMKilled", "{last:?}");
    ensure!(exec(&other, fetch)?.ends_with("hello\n"), "a neighbour was hurt");
    Ok(())
}
