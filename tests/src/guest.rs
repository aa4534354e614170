//! What is in a guest, counted in its own root.

use std::fmt;

use linkspan_host::{Backend, UtilityVm};

/// Counts of what may not grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestState {
    /// Lines of the root's mount table.
    pub mounts: u64,
    /// Containers' cgroups.
    pub cgroups: u64,
    /// Processes with a program, those that count included.
    pub processes: u64,
    /// Processes that nobody has reaped.
    pub zombies: u64,
    /// Threads of all the agent's processes.
    pub threads: u64,
    /// Open descriptors of all the agent's processes.
    pub descriptors: u64,
    /// Directories of containers and layers.
    pub directories: u64,
    /// Resident memory of all the agent's processes, in KiB.
    pub resident_kib: u64,
}

impl GuestState {
    /// Looks around in the guest. `cgroup` is where its containers' cgroups are.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn of(uvm: &UtilityVm, cgroup: &str) -> Self {
        let script = SCRIPT.replace("@CGROUP@", cgroup);
        let output = uvm.command("/bin/busybox").args(["sh", "-c", &script]).output().await;
        let output = output.expect("run a shell in the utility VM");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|number| number.trim().parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {text:?} ({complaint})"))
        };
        Self {
            mounts: value("mounts "),
            cgroups: value("cgroups "),
            processes: value("processes "),
            zombies: value("zombies "),
            threads: value("threads "),
            descriptors: value("descriptors "),
            directories: value("directories "),
            resident_kib: value("resident "),
        }
    }

    /// Pids of the agent's processes in the guest's root namespace, the oldest first: the
    /// supervisor, the agent, its workers.
    ///
    /// # Panics
    /// When they cannot be told.
    pub async fn agents(uvm: &UtilityVm) -> Vec<u32> {
        let script = format!("{AGENTS} for p in $agents; do echo $p; done");
        let output = uvm.command("/bin/busybox").args(["sh", "-c", &script]).output().await;
        let output = output.expect("run a shell in the utility VM").stdout;
        let text = String::from_utf8_lossy(&output);
        let mut pids: Vec<u32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
        pids.sort_unstable();
        pids
    }

    /// Where the cgroups of a machine's containers are, seen from its root, for a shell.
    ///
    /// # Panics
    /// When a loopback machine has no cgroup.
    pub fn cgroup(uvm: &UtilityVm, backend: Backend) -> String {
        match backend {
            Backend::Qemu => "/sys/fs/cgroup/pods".to_owned(),
            Backend::Loopback => {
                let pid = crate::pid_in(&uvm.vmm().describe());
                let line = crate::remains::command_line(pid);
                let flag = line.iter().find_map(|word| word.strip_prefix("-cgroup="));
                let flag = flag.expect("the agent has a cgroup");
                format!("/sys/fs/cgroup{flag} /sys/fs/cgroup/*{flag}")
            }
        }
    }
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Only builtins and one program: nothing else is in a utility VM's root.
const AGENTS: &str = r#"
b=/bin/busybox
agents=
for p in /proc/[0-9]*; do
  case "$($b readlink $p/exe)" in
    */init|*/agent|*linkspan-guest) agents="$agents ${p#/proc/}";;
  esac
done
"#;

const SCRIPT: &str = r#"
b=/bin/busybox
processes=0 zombies=0 threads=0 descriptors=0 resident=0
for p in /proc/[0-9]*; do
  [ "$p" = "/proc/$$" ] && continue
  exe=$($b readlink $p/exe)
  if [ -n "$exe" ]; then processes=$((processes + 1)); fi
  while read -r key value unit; do
    if [ "$key" = State: ] && [ "$value" = Z ]; then zombies=$((zombies + 1)); fi
    case "$exe" in */init|*/agent|*linkspan-guest)
      if [ "$key" = Threads: ]; then threads=$((threads + value)); fi
      if [ "$key" = VmRSS: ]; then resident=$((resident + value)); fi;;
    esac
  done 2>/dev/null < $p/status
  case "$exe" in */init|*/agent|*linkspan-guest)
    for fd in $p/fd/*; do descriptors=$((descriptors + 1)); done;;
  esac
done
echo mounts $($b wc -l < /proc/self/mounts)
echo cgroups $($b find @CGROUP@ -mindepth 1 -type d 2>/dev/null | $b wc -l)
echo processes $processes
echo zombies $zombies
echo threads $threads
echo descriptors $descriptors
echo directories $($b find /run/gcs /run/mounts /run/layers -mindepth 2 -maxdepth 2 2>/dev/null | $b wc -l)
echo resident $resident
"#;
