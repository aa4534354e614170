//! What the kernel counts for a container.
//!
//! Hosts expect the figures of cgroup v1 metrics on both versions. `path` is a cgroup's path
//! from the root of the hierarchy, as in `linux.cgroupsPath`.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use linkspan_protocol::message::{
    BlkioMetrics, ContainerMetrics, CpuMetrics, CpuThrottling, CpuUsage, HugetlbMetrics,
    MemoryEntry, MemoryMetrics, MemoryOomControl, PidsMetrics,
};

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

/// One file with a number, or `max`.
fn number(file: PathBuf) -> u64 {
    let Ok(text) = fs::read_to_string(file) else { return 0 };
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// A file of `key value` lines.
struct Table(String);

impl Table {
    fn read(file: PathBuf) -> Self {
        Self(fs::read_to_string(file).unwrap_or_default())
    }

    fn get(&self, key: &str) -> u64 {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    }
}

/// The sizes of this machine's huge pages, as cgroups write them: `2MB`.
fn huge_page_sizes() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name();
        let kib: u64 =
            name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kib {
            kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
            kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
            kib => format!("{kib}KB"),
        })
    })
}

fn unified(path: &Path) -> ContainerMetrics {
    let directory = directory("", path);
    let file = |name: &str| number(directory.join(name));
    let (cpu, memory) =
        (Table::read(directory.join("cpu.stat")), Table::read(directory.join("memory.stat")));
    let events = Table::read(directory.join("memory.events"));
    let entry = |prefix: &str| MemoryEntry {
        limit: file(&format!("{prefix}.max")),
        usage: file(&format!("{prefix}.current")),
        max: file(&format!("{prefix}.peak")),
        failcnt: 0,
    };
    let (usage, swap) = (entry("memory"), entry("memory.swap"));
    let hugetlb = huge_page_sizes().map(|pagesize| HugetlbMetrics {
        usage: file(&format!("hugetlb.{pagesize}.current")),
        max: file(&format!("hugetlb.{pagesize}.max")),
        failcnt: Table::read(directory.join(format!("hugetlb.{pagesize}.events"))).get("max"),
        pagesize,
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
    let memory = directory("memory", path);
    let (cpu, account, pids) =
        (directory("cpu", path), directory("cpuacct", path), directory("pids", path));
    let stat = Table::read(memory.join("memory.stat"));
    let throttled = Table::read(cpu.join("cpu.stat"));
    let control = Table::read(memory.join("memory.oom_control"));
    let entry = |prefix: &str| MemoryEntry {
        limit: number(memory.join(format!("{prefix}.limit_in_bytes"))),
        usage: number(memory.join(format!("{prefix}.usage_in_bytes"))),
        max: number(memory.join(format!("{prefix}.max_usage_in_bytes"))),
        failcnt: number(memory.join(format!("{prefix}.failcnt"))),
    };
    let per_cpu = fs::read_to_string(account.join("cpuacct.usage_percpu")).unwrap_or_default();
    let huge = directory("hugetlb", path);
    let hugetlb = huge_page_sizes().map(|pagesize| HugetlbMetrics {
        usage: number(huge.join(format!("hugetlb.{pagesize}.usage_in_bytes"))),
        max: number(huge.join(format!("hugetlb.{pagesize}.max_usage_in_bytes"))),
        failcnt: number(huge.join(format!("hugetlb.{pagesize}.failcnt"))),
        pagesize,
    });
    ContainerMetrics {
        hugetlb: hugetlb.collect(),
        pids: Some(PidsMetrics {
            current: number(pids.join("pids.current")),
            limit: number(pids.join("pids.max")),
        }),
        cpu: Some(CpuMetrics {
            usage: Some(CpuUsage {
                total: number(account.join("cpuacct.usage")),
                kernel: number(account.join("cpuacct.usage_sys")),
                user: number(account.join("cpuacct.usage_user")),
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
    Table::read(directory("memory", path).join(file)).get("oom_kill")
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
    number(directory("memory", path).join(file))
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
