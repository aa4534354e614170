//! What may not be left: processes, mounts and sockets of a containerd that has a name of its own.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Where servers listen.
const SOCKETS: &str = "/run/linkspan/s";

/// What is looked for.
pub(crate) struct Remains {
    name: String,
    /// Those of others, whose names do not tell whose they are.
    before: HashSet<PathBuf>,
}

impl Remains {
    /// Of what has that name. No server of it may run yet.
    pub(crate) fn of(name: String) -> Self {
        Self { name, before: sockets().collect() }
    }

    /// Waits until nothing bears the name any more, but containerd itself if it still runs.
    pub(crate) fn none(&self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            let left = self.list()?;
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
    /// lines. Sockets bear none: all that were not there before.
    fn list(&self) -> Result<Vec<String>> {
        let name = &self.name;
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
        let places = places.filter(|place| place.contains(name));
        found.extend(places.map(|place| format!("mount {place}")));
        let sockets = sockets().filter(|socket| !self.before.contains(socket));
        found.extend(sockets.map(|socket| format!("socket {}", socket.display())));
        Ok(found)
    }
}

fn sockets() -> impl Iterator<Item = PathBuf> {
    fs::read_dir(SOCKETS).into_iter().flatten().flatten().map(|entry| entry.path())
}
