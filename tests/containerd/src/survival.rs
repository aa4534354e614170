//! What happens when something is killed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::ours::Place;

/// A container's server, or the machine below it.
enum Victim {
    Server,
    Machine,
}

/// Kills a server: containerd notices, and nothing is left of the machine.
pub(crate) fn server(place: &Place<'_>) -> Result<()> {
    place.ctr.detached(&[], "stays", &["sleep", "1000"])?;
    kill(place, "stays", &Victim::Server)?;
    let began = Instant::now();
    // containerd removes the task itself; how soon, nobody says.
    while !place.ctr.state("stays")?.is_empty() {
        ensure!(began.elapsed() < Duration::from_secs(60), "containerd still shows the task");
        std::thread::sleep(Duration::from_millis(100));
    }
    let refused = place.ctr.exec(&["--exec-id", "a"], "stays", &["true"])?.failed()?;
    ensure!(refused.contains("not found"), "{refused}");
    place.ctr.run(&["container", "delete", "stays"])?.succeeded()?;
    place.remains.none(crate::PATIENCE)?;
    // The id can be used again.
    let again = place.ctr.container(&["--rm"], "stays", &["echo", "again"])?;
    ensure!(again.stdout == "again\n", "{again}");
    Ok(())
}

/// Kills a machine: its container has ended, with a status that says that nobody knows how.
pub(crate) fn machine(place: &Place<'_>) -> Result<()> {
    place.ctr.detached(&[], "stays", &["sleep", "1000"])?;
    kill(place, "stays", &Victim::Machine)?;
    place.ctr.reaches("stays", "STOPPED")?;
    let status = place.ctr.delete("stays")?;
    ensure!(status == 255, "{status}");
    Ok(())
}

/// Kills containerd: containers run on, and the next one finds them.
pub(crate) fn containerd(place: &Place<'_>) -> Result<()> {
    let script = "while :; do sleep 0.1; done";
    place.ctr.detached(&[], "stays", &["sh", "-c", script])?;
    place.daemon.crash()?;
    ensure!(place.ctr.state("stays")? == "RUNNING", "it was lost with containerd");
    let outcome = place.ctr.exec(&["--exec-id", "a"], "stays", &["echo", "still here"])?;
    ensure!(outcome.stdout == "still here\n", "{outcome}");
    let status = place.ctr.end("stays", "SIGKILL")?;
    ensure!(status == 137, "{status}");
    Ok(())
}

/// Crashes the guest's kernel, from a container that may.
pub(crate) fn kernel(place: &Place<'_>) -> Result<()> {
    place.ctr.detached(&["--privileged"], "stays", &["sleep", "1000"])?;
    let crash = "mount -o remount,rw /proc; echo c > /proc/sysrq-trigger";
    let _ = place.ctr.exec(&["--exec-id", "a"], "stays", &["sh", "-c", crash])?;
    place.ctr.reaches("stays", "STOPPED")?;
    let status = place.ctr.delete("stays")?;
    ensure!(status == 255, "{status}");
    Ok(())
}

fn kill(place: &Place<'_>, id: &str, victim: &Victim) -> Result<()> {
    let whose = format!(" -namespace {} -id {id} ", place.ctr.namespace());
    let server =
        find(|line, _| line.contains("containerd-shim-linkspan-v1") && line.contains(&whose))?;
    let pid = match victim {
        Victim::Server => server,
        Victim::Machine => find(|line, parent| line.contains("qemu-system") && parent == server)?,
    };
    let pid = Pid::from_raw(pid).context("no pid")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

/// The process of which its command line and its parent tell that it is the one.
fn find(is: impl Fn(&str, i32) -> bool) -> Result<i32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let parent = parent.and_then(|parent| parent.trim().parse().ok()).unwrap_or_default();
        if is(&line, parent) {
            return Ok(entry.file_name().to_string_lossy().parse()?);
        }
    }
    bail!("there is no such process")
}
