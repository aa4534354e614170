//! What the kernel counts for a container.
//!
//! Hosts expect the figures of cgroup v1 metrics on both versions. `path` is a cgroup's path
//! from the root of the hierarchy, as in `linux.cgroupsPath`.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use linkspan_protocol::message::{
    BlkioMetrics, ContainerMetrics, CpuMetrics, CpuThrottling, CpuUsage, HugetlbMetrics,
    MemoryEntry, MemoryMetrics, MemoryOomControl, PidsMetrics,
};
use rustix::fs::{Mode, OFlags};

use crate::Result;
use crate::error::Context;

const ROOT: &str = "/sys/fs/cgroup";

/// Whether this machine has version 2 alone.
pub(crate) fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// A cgroup's directory in the hierarchy that has `controller`.
pub(crate) fn directory(controller: &str, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    match is_unified() {
        true => Path::new(ROOT).join(relative),
        false => Path::new(ROOT).join(controller).join(relative),
    }
}

/// Makes a cgroup that containers' are made in: two of them would race for it.
pub(crate) fn make(path: &Path) {
    for root in roots() {
        // What is missing will be made, or be missed, with the container.
        let _ = fs::create_dir_all(root.join(relative(path)));
    }
}

/// The processes in it and below.
pub(crate) fn processes(path: &Path) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    let mut rest = vec![directory("pids", path)];
    while let Some(directory) = rest.pop() {
        let list = match fs::read_to_string(directory.join("cgroup.procs")) {
            // It ended between two looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.context(|| format!("list processes of {}", directory.display()))?,
        };
        pids.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        rest.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    Ok(pids)
}

/// Ends all processes in it.
pub(crate) fn kill(path: &Path) {
    if is_unified() && fs::write(directory("", path).join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // Without a single switch: a fork can get away from one pass, not from many. One that the
    // kernel holds on to must not hold on to us.
    for _ in 0..1000 {
        let pids = processes(path).unwrap_or_default();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let Ok(number) = i32::try_from(pid) else { continue };
            let pid = nix::unistd::Pid::from_raw(number);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::yield_now();
    }
}

/// The figures of a container's cgroup.
pub(crate) fn metrics(path: &Path) -> Result<ContainerMetrics> {
    let exists = directory("memory", path);
    fs::metadata(&exists).context(|| format!("look at cgroup {}", exists.display()))?;
    let mut metrics = if is_unified() { unified(path) } else { legacy(path) };
    metrics.blkio = Some(BlkioMetrics {});
    metrics.rdma = Some(BlkioMetrics {});
    Ok(metrics)
}

/// A cgroup's directory, opened once for all of its files. What is not there counts as nothing.
struct Group(Option<OwnedFd>);

impl Group {
    fn open(directory: &Path) -> Self {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        Self(rustix::fs::open(directory, flags, Mode::empty()).ok())
    }

    fn text(&self, name: &str) -> String {
        let Some(directory) = &self.0 else { return String::new() };
        let Ok(file) =
            rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        else {
            return String::new();
        };
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        // Nearly all of them come whole at once, which spares the read that finds the end.
        loop {
            let len = rustix::io::read(&file, &mut bytes).unwrap_or(0);
            text.push_str(&String::from_utf8_lossy(&bytes[..len]));
            if len < bytes.len() {
                return text;
            }
        }
    }

    /// One file with a number, or `max`.
    fn number(&self, name: &str) -> u64 {
        match self.text(name).trim() {
            "max" => u64::MAX,
            text => text.parse().unwrap_or(0),
        }
    }

    fn table(&self, name: &str) -> Table {
        Table(self.text(name))
    }
}

/// A file of `key value` lines.
struct Table(String);

impl Table {
    fn get(&self, key: &str) -> u64 {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    }
}

/// The sizes of this machine's huge pages, as cgroups write them: `2MB`.
fn huge_page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let sizes = entries.filter_map(|entry| {
            let name = entry.file_name();
            let kib: u64 =
                name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(match kib {
                kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
                kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
                kib => format!("{kib}KB"),
            })
        });
        sizes.collect()
    })
}

fn unified(path: &Path) -> ContainerMetrics {
    let group = Group::open(&directory("", path));
    let file = |name: &str| group.number(name);
    let (cpu, memory) = (group.table("cpu.stat"), group.table("memory.stat"));
    let events = group.table("memory.events");
    let entry = |prefix: &str| MemoryEntry {
        limit: file(&format!("{prefix}.max")),
        usage: file(&format!("{prefix}.current")),
        max: file(&format!("{prefix}.peak")),
        failcnt: 0,
    };
    let (usage, swap) = (entry("memory"), entry("memory.swap"));
    let hugetlb = huge_page_sizes().iter().map(|pagesize| HugetlbMetrics {
        usage: file(&format!("hugetlb.{pagesize}.current")),
        max: file(&format!("hugetlb.{pagesize}.max")),
        failcnt: 0,
        pagesize: pagesize.clone(),
    });
    ContainerMetrics {
        hugetlb: hugetlb.collect(),
        pids: Some(PidsMetrics { current: file("pids.current"), limit: file("pids.max") }),
        cpu: Some(CpuMetrics {
            usage: Some(CpuUsage {
                total: cpu.get("usage_usec") * 1000,
                kernel: cpu.get("system_usec") * 1000,
                user: cpu.get("user_usec") * 1000,
                per_cpu: Vec::new(),
            }),
            throttling: Some(CpuThrottling {
                periods: cpu.get("nr_periods"),
                throttled_periods: cpu.get("nr_throttled"),
                throttled_time: cpu.get("throttled_usec") * 1000,
            }),
        }),
        memory: Some(MemoryMetrics {
            cache: memory.get("file"),
            rss: memory.get("anon"),
            mapped_file: memory.get("file_mapped"),
            dirty: memory.get("file_dirty"),
            writeback: memory.get("file_writeback"),
            pg_fault: memory.get("pgfault"),
            pg_maj_fault: memory.get("pgmajfault"),
            inactive_anon: memory.get("inactive_anon"),
            active_anon: memory.get("active_anon"),
            inactive_file: memory.get("inactive_file"),
            active_file: memory.get("active_file"),
            unevictable: memory.get("unevictable"),
            hierarchical_memory_limit: usage.limit,
            hierarchical_swap_limit: swap.limit,
            usage: Some(usage),
            swap: Some(swap),
            kernel: Some(MemoryEntry { usage: memory.get("kernel_stack"), ..Default::default() }),
            kernel_tcp: Some(MemoryEntry { usage: memory.get("sock"), ..Default::default() }),
            ..MemoryMetrics::default()
        }),
        memory_oom_control: Some(MemoryOomControl {
            oom_kill: events.get("oom_kill"),
            ..MemoryOomControl::default()
        }),
        ..ContainerMetrics::default()
    }
}

fn legacy(path: &Path) -> ContainerMetrics {
    let [memory, cpu, account, pids, huge] = ["memory", "cpu", "cpuacct", "pids", "hugetlb"]
        .map(|controller| Group::open(&directory(controller, path)));
    let (stat, throttled) = (memory.table("memory.stat"), cpu.table("cpu.stat"));
    let control = memory.table("memory.oom_control");
    let entry = |prefix: &str| MemoryEntry {
        limit: memory.number(&format!("{prefix}.limit_in_bytes")),
        usage: memory.number(&format!("{prefix}.usage_in_bytes")),
        max: memory.number(&format!("{prefix}.max_usage_in_bytes")),
        failcnt: memory.number(&format!("{prefix}.failcnt")),
    };
    let per_cpu = account.text("cpuacct.usage_percpu");
    let hugetlb = huge_page_sizes().iter().map(|pagesize| HugetlbMetrics {
        usage: huge.number(&format!("hugetlb.{pagesize}.usage_in_bytes")),
        max: huge.number(&format!("hugetlb.{pagesize}.max_usage_in_bytes")),
        failcnt: huge.number(&format!("hugetlb.{pagesize}.failcnt")),
        pagesize: pagesize.clone(),
    });
    ContainerMetrics {
        hugetlb: hugetlb.collect(),
        pids: Some(PidsMetrics {
            current: pids.number("pids.current"),
            limit: pids.number("pids.max"),
        }),
        cpu: Some(CpuMetrics {
            usage: Some(CpuUsage {
                total: account.number("cpuacct.usage"),
                kernel: account.number("cpuacct.usage_sys"),
                user: account.number("cpuacct.usage_user"),
                per_cpu: per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
            }),
            throttling: Some(CpuThrottling {
                periods: throttled.get("nr_periods"),
                throttled_periods: throttled.get("nr_throttled"),
                throttled_time: throttled.get("throttled_time"),
            }),
        }),
        memory: Some(MemoryMetrics {
            cache: stat.get("cache"),
            rss: stat.get("rss"),
            rss_huge: stat.get("rss_huge"),
            mapped_file: stat.get("mapped_file"),
            dirty: stat.get("dirty"),
            writeback: stat.get("writeback"),
            pg_pg_in: stat.get("pgpgin"),
            pg_pg_out: stat.get("pgpgout"),
            pg_fault: stat.get("pgfault"),
            pg_maj_fault: stat.get("pgmajfault"),
            inactive_anon: stat.get("inactive_anon"),
            active_anon: stat.get("active_anon"),
            inactive_file: stat.get("inactive_file"),
            active_file: stat.get("active_file"),
            unevictable: stat.get("unevictable"),
            hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
            hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
            usage: Some(entry("memory")),
            swap: Some(entry("memory.memsw")),
            kernel: Some(entry("memory.kmem")),
            kernel_tcp: Some(entry("memory.kmem.tcp")),
            ..MemoryMetrics::default()
        }),
        memory_oom_control: Some(MemoryOomControl {
            oom_kill_disable: control.get("oom_kill_disable"),
            under_oom: control.get("under_oom"),
            oom_kill: control.get("oom_kill"),
        }),
        ..ContainerMetrics::default()
    }
}

/// How many of its processes the kernel has killed for want of memory.
pub(crate) fn oom_kills(path: &Path) -> u64 {
    let file = if is_unified() { "memory.events" } else { "memory.oom_control" };
    Group::open(&directory("memory", path)).table(file).get("oom_kill")
}

/// The file that changes when a cgroup runs out of memory. Version 2 only.
pub(crate) fn memory_events(path: &Path) -> PathBuf {
    directory("memory", path).join("memory.events")
}

/// Has an eventfd told of when a cgroup runs out of memory. Version 1 only.
pub(crate) fn notify_oom(path: &Path, eventfd: i32) -> io::Result<()> {
    let directory = directory("memory", path);
    let control = fs::File::open(directory.join("memory.oom_control"))?;
    let line = format!("{eventfd} {}", control.as_raw_fd());
    fs::write(directory.join("cgroup.event_control"), line)
}

/// Moves the calling process into a cgroup, in every hierarchy that has it.
pub(crate) fn enter(path: &Path) -> io::Result<()> {
    for root in roots() {
        let file = root.join(relative(path)).join("cgroup.procs");
        if file.exists() {
            fs::write(file, "0")?;
        }
    }
    Ok(())
}

/// The files that a process is moved with, open for writing.
pub(crate) fn entrances(path: &Path) -> Vec<OwnedFd> {
    let files = roots().into_iter().map(|root| root.join(relative(path)).join("cgroup.procs"));
    files.filter_map(|file| Some(fs::File::options().write(true).open(file).ok()?.into())).collect()
}

/// Keeps memory for a cgroup, in bytes. Version 1 cannot.
pub(crate) fn keep_memory(path: &Path, bytes: u64) -> io::Result<()> {
    match is_unified() {
        true => fs::write(directory("", path).join("memory.min"), bytes.to_string()),
        false => Ok(()),
    }
}

/// Limits the memory of a cgroup and all below it, in bytes.
pub(crate) fn limit_memory(path: &Path, bytes: u64) -> io::Result<()> {
    let file = if is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
    fs::write(directory("memory", path).join(file), bytes.to_string())
}

/// Memory in use, in bytes; 0 where it is not counted.
pub(crate) fn memory_usage(path: &Path) -> u64 {
    let file = if is_unified() { "memory.current" } else { "memory.usage_in_bytes" };
    Group::open(&directory("memory", path)).number(file)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// The hierarchies' roots.
fn roots() -> Vec<PathBuf> {
    match is_unified() {
        true => vec![PathBuf::from(ROOT)],
        false => {
            let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
        }
    }
}

/// Lets the cgroups below the root of the unified hierarchy use every controller.
pub(crate) fn delegate() {
    let root = Path::new(ROOT);
    let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else { return };
    // One at a time: a refused one must not take the others with it.
    for controller in controllers.split_whitespace() {
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Removes a cgroup with all below it, from every hierarchy; their processes have ended.
pub(crate) fn remove(path: &Path) {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.as_os_str().is_empty() {
        return;
    }
    let mut roots = vec![PathBuf::from(ROOT)];
    if !is_unified()
        && let Ok(entries) = fs::read_dir(ROOT)
    {
        roots.extend(entries.flatten().map(|entry| entry.path()));
    }
    for root in roots {
        remove_directories(&root.join(relative));
    }
}

fn remove_directories(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_directories(&entry.path());
    }
    let _ = fs::remove_dir(directory);
}
