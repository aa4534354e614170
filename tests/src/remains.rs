//! What a machine has on this host, found from outside, and what is left of it later.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Everything on this host that belongs to one machine.
#[derive(Clone, Debug, Default)]
pub struct Remains {
    /// Each with its start time, so that a pid that is used again is not taken for it.
    processes: BTreeSet<(u32, u64)>,
    paths: BTreeSet<PathBuf>,
    /// Loop devices with what they show.
    loops: BTreeSet<(PathBuf, String)>,
}

impl Remains {
    /// Takes stock of the machine whose first process is `pid`: it and its descendants, the
    /// directory, cgroup and disks that its command line names.
    pub fn of(pid: u32) -> Self {
        let mut remains = Self::default();
        let mut todo = vec![pid];
        while let Some(pid) = todo.pop() {
            if let Some(started) = start_time(pid) {
                remains.processes.insert((pid, started));
                todo.extend(children(pid));
            }
        }
        let words = command_line(pid);
        for pair in words.windows(2) {
            if pair[0] == "-directory" {
                remains.add_directory(Path::new(&pair[1]));
            }
        }
        for word in &words {
            if let Some(group) = word.strip_prefix("-cgroup=/") {
                remains.paths.extend(cgroups(group));
            }
        }
        remains
    }

    /// Takes stock of each child of a process.
    pub fn children_of(pid: u32) -> Vec<Self> {
        children(pid).into_iter().map(Self::of).collect()
    }

    fn add_directory(&mut self, directory: &Path) {
        self.paths.insert(directory.to_owned());
        for link in fs::read_dir(directory.join("disks")).into_iter().flatten().flatten() {
            let Ok(device) = fs::read_link(link.path()) else { continue };
            let shown = Path::new("/sys/block")
                .join(device.file_name().unwrap_or_default())
                .join("loop/backing_file");
            if let Ok(file) = fs::read_to_string(&shown) {
                self.loops.insert((shown, file));
            }
        }
    }

    /// How many processes it had.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// How many disks it had that are loop devices of this host.
    pub fn loops(&self) -> usize {
        self.loops.len()
    }

    /// What of it is still there.
    pub fn left(&self) -> Vec<String> {
        let alive = self
            .processes
            .iter()
            .filter(|&&(pid, started)| start_time(pid) == Some(started) && !is_zombie(pid));
        let processes =
            alive.map(|(pid, _)| format!("process {pid} ({})", command_line(*pid).join(" ")));
        let paths = self.paths.iter().filter(|path| path.exists());
        let paths = paths.map(|path| format!("{}", path.display()));
        let loops = self
            .loops
            .iter()
            .filter(|(shown, file)| fs::read_to_string(shown).is_ok_and(|now| now == *file));
        let loops = loops.map(|(shown, file)| format!("{} on {}", shown.display(), file.trim()));
        processes.chain(paths).chain(loops).collect()
    }

    /// Waits until nothing of it is left.
    ///
    /// # Panics
    /// When something still is after `limit`.
    pub async fn gone_within(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still there after {limit:?}: {left:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The pid in a machine's description.
///
/// # Panics
/// When there is none.
pub fn pid_in(description: &str) -> u32 {
    let number = description.rsplit("pid ").next().unwrap_or_default();
    number.trim().parse().unwrap_or_else(|_| panic!("no pid in {description:?}"))
}

/// Where a cgroup is: at one place, or in each hierarchy of version 1.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
    let places = hierarchies.map(|hierarchy| hierarchy.path()).chain([root.to_owned()]);
    places.map(|place| place.join(name)).filter(|place| place.is_dir()).collect()
}

pub(crate) fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|&byte| byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn children(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children
}

/// Field 22 of the process's status line, in clock ticks since the boot.
fn start_time(pid: u32) -> Option<u64> {
    stat(pid)?.split_whitespace().nth(19)?.parse().ok()
}

fn is_zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.starts_with('Z'))
}

/// The status line from its third field on: the second may contain anything.
fn stat(pid: u32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    line.rsplit_once(") ").map(|(_, rest)| rest.to_owned())
}
