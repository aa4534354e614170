//! Create.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use linkspan_protocol::message::{Envelope, HostedContainer, NotificationType, SchemaVersion};

use super::bundle::Bundle;
use super::{Container, new_pipes, user, workdir};
use crate::guest_path::{ContainerName, GuestPath};
use crate::process::{Process, SignalCode};
use crate::runtime::Job;
use crate::stdio::{Pipes, Streams};
use crate::storage::make_directory;
use crate::terminal::ConsoleSocket;
use crate::uvm::Uvm;
use crate::{Error, Result, cgroup};

/// Makes a container. After a failure nothing of it is left and the id is free again.
pub(crate) async fn create(
    uvm: &Uvm,
    envelope: &Envelope,
    document: HostedContainer,
) -> Result<()> {
    let name = ContainerName::parse(envelope.container_id.as_str())?;
    let version = document.schema_version;
    if version < SchemaVersion::MINIMUM {
        let reason = format!("{}.{} is older than 2.1", version.major, version.minor);
        return Err(Error::Document { field: "SchemaVersion", reason });
    }
    let id = name.as_str();
    let reservation = uvm.reserve(id)?;
    let mut bundle = Bundle::new(&document.oci_bundle_path, document.oci_specification)?;
    let scratch = match document.scratch_dir_path.as_str() {
        "" => None,
        path => Some(GuestPath::parse("ScratchDirPath", path)?),
    };
    let cgroup = uvm.cgroup.join(id);
    bundle.adapt(&cgroup);
    user::resolve(&mut bundle.spec["process"], &bundle.root)?;
    uvm.ready().await;

    let made = make_directory(bundle.directory.as_path(), 0o755)?;
    if let Some(cwd) = bundle.spec["process"]["cwd"].as_str() {
        workdir::make(&bundle.root, cwd);
    }
    bundle.add_name_files()?;
    bundle.write()?;
    let (init, pipes) = make(uvm, id, &bundle).await.inspect_err(|_| {
        for name in ["config.json", "hostname", "hosts", "resolv.conf"] {
            let _ = std::fs::remove_file(bundle.directory.join(name));
        }
    })?;
    made.keep();

    let container = Rc::new(Container {
        id: id.to_owned(),
        activity_id: envelope.activity_id.clone(),
        bundle: bundle.directory,
        scratch,
        root: bundle.root,
        cgroup: cgroup.clone(),
        init: Rc::clone(&init),
        unstarted: RefCell::new(Some(pipes)),
        execs: RefCell::default(),
        process: bundle.spec["process"].take(),
        ending: Cell::new(NotificationType::UnexpectedExit),
        notified: Cell::new(false),
    });
    let owns_pid_namespace = bundle.owns_pid_namespace;
    init.supervise(SignalCode::Shell, async move || {
        // What the kernel does for a container with a pid namespace of its own.
        if !owns_pid_namespace {
            cgroup::kill(&cgroup);
        }
    });
    reservation.fill(container);
    Ok(())
}

async fn make(
    uvm: &Uvm,
    id: &str,
    bundle: &Bundle,
) -> Result<(Rc<Process>, Option<Streams<OwnedFd>>)> {
    let expectation = uvm.reaper.expect();
    let directory = bundle.directory.as_path().to_owned();
    let console = match bundle.terminal {
        true => Some(ConsoleSocket::bind("/run/linkspan/console".as_ref(), id)?),
        false => None,
    };
    let pipes = match bundle.terminal {
        true => None,
        false => Some(new_pipes()?),
    };
    let job = Job::Create {
        id: id.to_owned(),
        bundle: directory,
        console: console.as_ref().map(|console| console.path().to_owned()),
    };
    let stdio = pipes.as_ref().and_then(Pipes::theirs);
    let pid = uvm.runtime.run(job, stdio).await?;
    let made = async {
        let pid = pid.ok_or(Error::NoProcess(0))?;
        let child = expectation
            .register(pid)
            .map_err(|source| Error::Io { what: format!("watch process {pid}"), source })?;
        let terminal = match &console {
            Some(console) => Some(console.receive().await?),
            None => None,
        };
        Ok(Process::new(child, terminal))
    };
    match made.await {
        Ok(process) => Ok((process, pipes.map(Pipes::into_ours))),
        Err(error) => {
            let _ = uvm.runtime.run(Job::Delete { id: id.to_owned() }, None).await;
            Err(error)
        }
    }
}
