//! Memory: what containers together may have, and what keeps the agent alive when they want more.
//!
//! ```text
//! /gcs        the agent: a share that cannot be taken from it, and last to be killed
//! /external   processes that hosts run in the utility VM's root: they count against nobody else
//! /pods       containers: all memory but a reserve, which follows memory that is plugged in
//! ```

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::cgroup;

/// The agent's cgroup.
const AGENT: &str = "/gcs";

/// Where external processes are put.
pub(crate) const EXTERNAL: &str = "/external";

/// Memory in bytes that the kernel does not take from the agent, whoever else wants it: several
/// times what it has with a dozen containers.
const KEPT: u64 = 16 << 20;

/// What containers together may have.
pub(crate) struct Headroom {
    pods: PathBuf,
    reserve: u64,
    /// In bytes; `None` where limits are somebody else's.
    applied: Cell<Option<u64>>,
    warning: u64,
    /// The agent's memory when it was last warned of.
    warned: Cell<u64>,
}

impl Headroom {
    /// Where the machine is somebody else's: nothing is limited.
    pub(crate) fn unlimited() -> Self {
        let (applied, warned) = (Cell::new(None), Cell::new(0));
        Self { pods: PathBuf::new(), reserve: 0, applied, warning: u64::MAX, warned }
    }

    /// Makes the cgroups of a machine's own and moves the calling process into the agent's.
    pub(crate) fn of_machine(pods: &Path, reserve: u64, warning: u64) -> Self {
        for path in [Path::new(AGENT), Path::new(EXTERNAL), pods] {
            cgroup::make(path);
        }
        for (what, done) in [
            ("move the agent into its cgroup", cgroup::enter(Path::new(AGENT))),
            ("keep memory for the agent", cgroup::keep_memory(Path::new(AGENT), KEPT)),
            ("keep the agent from being killed", protect()),
        ] {
            if let Err(error) = done {
                warn!(%error, "cannot {what}");
            }
        }
        let (pods, applied) = (pods.to_owned(), Cell::new(Some(0)));
        let headroom = Self { pods, reserve, applied, warning, warned: Cell::new(0) };
        if let Err(error) = headroom.apply() {
            warn!(%error, "containers' memory is not limited");
        }
        headroom
    }

    /// Whether the machine is the agent's own.
    pub(crate) fn is_machine(&self) -> bool {
        self.applied.get().is_some()
    }

    /// Limits containers to the memory that there is now.
    pub(crate) fn apply(&self) -> io::Result<()> {
        let Some(applied) = self.applied.get() else { return Ok(()) };
        let limit = total_memory()?.saturating_sub(self.reserve);
        if limit == 0 {
            let reserve = self.reserve;
            let text = format!("the reserve of {reserve} bytes is all the memory that there is");
            return Err(io::Error::other(text));
        }
        cgroup::limit_memory(&self.pods, limit)?;
        if limit != applied {
            self.applied.set(Some(limit));
            info!(limit, "memory of all containers");
        }
        Ok(())
    }

    /// Warns of an agent that has grown beyond what it should. To be called when it may have.
    pub(crate) fn look_at_agent(&self) {
        if self.applied.get().is_none() {
            return;
        }
        let usage = cgroup::memory_usage(Path::new(AGENT));
        if usage > self.warning && usage > self.warned.get() {
            self.warned.set(usage);
            let (cgroup, threshold) = (AGENT, self.warning);
            warn!(cgroup, thresholdBytes = threshold, memoryUsage = usage, "{EXCEEDED}");
        }
    }
}

/// What hosts' diagnosis looks for.
pub(crate) const EXCEEDED: &str = "memory usage for cgroup exceeded threshold";

/// The kernel chooses any other process first. Children have the same until they say otherwise.
fn protect() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-1000")
}

/// Makes the calling process one like any other for the kernel's choice.
pub(crate) fn unprotect() {
    // Where the agent was not protected, nothing is to be undone.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
}

fn total_memory() -> io::Result<u64> {
    let info = rustix::system::sysinfo();
    Ok(info.totalram as u64 * u64::from(info.mem_unit))
}
