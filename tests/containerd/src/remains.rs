//! What may not be left: processes, mounts and sockets of a containerd that has a name of its own.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Where servers listen.
const SOCKETS: &str = "/run/linkspan/s";

/// Waits until nothing bears the name any more, but containerd itself if it still runs.
pub(crate) fn nothing_of(name: &str, limit: Duration) -> Result<()> {
    let began = Instant::now();
    loop {
        let left = list(name)?;
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > limit {
            bail!("left behind: {}", left.join(", "));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What bears the name: machines, servers and what shares directories have it on their command
/// lines.
pub(crate) fn list(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default();
        let ours = entry.file_name() == *std::process::id().to_string();
        if line.contains(name) && !program.ends_with("/containerd") && !ours {
            found.push(format!("process {} {program}", entry.file_name().display()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    found.extend(places.filter(|place| place.contains(name)).map(|place| format!("mount {place}")));
    for socket in fs::read_dir(SOCKETS).into_iter().flatten().flatten() {
        found.push(format!("socket {}", socket.path().display()));
    }
    Ok(found)
}
