//! youki's libcontainer, in this process.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::Value;

use super::executor::Program;
use super::{Confinement, Job, OciRuntime, Refusal, Reply, state_root};

pub(super) struct Libcontainer;

impl OciRuntime for Libcontainer {
    fn run(&self, job: Job, stdio: Option<[OwnedFd; 3]>) -> Reply {
        match job {
            Job::Create { id, bundle, console, confinement, loopback } => {
                fs::create_dir_all(state_root()).map_err(other)?;
                let mut container = builder(id, console, stdio, confinement)?
                    .as_init(&bundle)
                    .with_systemd(false)
                    .with_detach(true)
                    .build()
                    .map_err(refusal)?;
                let pid = container.pid().ok_or_else(|| other("the container has no pid"))?;
                if loopback && let Err(error) = bring_loopback_up(pid.as_raw()) {
                    let _ = container.delete(true);
                    return Err(other(format!("bring the loopback interface up: {error}")));
                }
                Ok(u32::try_from(pid.as_raw()).ok())
            }
            Job::Start { id } => {
                load(&id)?.start().map_err(refusal)?;
                Ok(None)
            }
            Job::Exec { id, process, console, confinement } => {
                let document = in_memory(&process).map_err(other)?;
                let path = PathBuf::from(format!("/proc/self/fd/{}", document.as_raw_fd()));
                let pid = builder(id, console, stdio, confinement)?
                    .as_tenant()
                    .with_detach(true)
                    .with_process(Some(path))
                    .build()
                    .map_err(refusal)?;
                Ok(u32::try_from(pid.as_raw()).ok())
            }
            Job::Update { id, resources } => update(&id, &resources),
            Job::Delete { id } => {
                load(&id)?.delete(true).map_err(refusal)?;
                Ok(None)
            }
        }
    }
}

fn builder(
    id: String,
    console: Option<PathBuf>,
    stdio: Option<[OwnedFd; 3]>,
    confinement: Option<Confinement>,
) -> Result<ContainerBuilder, Refusal> {
    let mut builder = ContainerBuilder::new(id, SyscallType::default())
        .with_executor(Program { confinement })
        .with_root_path(state_root())
        .map_err(refusal)?
        .with_console_socket(console);
    if let Some([stdin, stdout, stderr]) = stdio {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    Ok(builder)
}

fn load(id: &str) -> Result<Container, Refusal> {
    let root = state_root().join(id);
    if !root.exists() {
        return Err(Refusal::Missing);
    }
    Container::load(root).map_err(refusal)
}

fn update(id: &str, resources: &Value) -> Reply {
    use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
    let resources = serde_json::from_value(resources.clone()).map_err(other)?;
    let container = load(id)?;
    let cgroup_path = container.spec().map_err(refusal)?.cgroup_path;
    let config = CgroupConfig { cgroup_path, systemd_cgroup: false, container_name: id.to_owned() };
    let manager = create_cgroup_manager(config).map_err(other)?;
    let options = ControllerOpt {
        resources: &resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager.apply(&options).map_err(other)?;
    Ok(None)
}

/// The runtime leaves it down. This worker has nothing more to do: it may stay in there.
fn bring_loopback_up(pid: i32) -> std::io::Result<()> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
    linkspan_guest_sys::bring_up("lo")
}

fn in_memory(value: &Value) -> std::io::Result<fs::File> {
    let mut file = fs::File::from(memfd_create("process", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok(file)
}

fn other(error: impl std::fmt::Display) -> Refusal {
    Refusal::Other(error.to_string())
}

/// The outermost message says little; its causes say what happened.
fn refusal(error: LibcontainerError) -> Refusal {
    match &error {
        LibcontainerError::Exist => Refusal::Exists,
        LibcontainerError::NoDirectory => Refusal::Missing,
        LibcontainerError::IncorrectStatus(status) => Refusal::State(status.to_string()),
        _ => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                cause = inner.source();
            }
            // What our own executor says needs no introduction.
            match text.find("executable \"") {
                Some(at) => Refusal::Other(text[at..].to_owned()),
                None => Refusal::Other(text),
            }
        }
    }
}
