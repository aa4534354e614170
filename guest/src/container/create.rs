//! Create.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use linkspan_protocol::message::{Envelope, HostedContainer, NotificationType, SchemaVersion};

use serde_json::Value;
use tokio::sync::watch;

use super::bundle::Bundle;
use super::kind::Kind;
use super::prepare::{Prepared, prepare};
use super::{Container, new_pipes, pod, tee, workdir};
use crate::guest_path::{ContainerName, GuestPath};
use crate::process::{Process, SignalCode};
use crate::runtime::{Confinement, Job};
use crate::seccomp::Filter;
use crate::stdio::{Pipes, Streams};
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
    uvm.ready().await;
    let kind = Kind::of(id, &bundle.directory, &bundle.spec)?;
    let prepared = prepare(uvm, id, &kind, &mut bundle).await?;
    let filter = Filter::of(&bundle.spec)?;
    let confinement =
        filter.as_ref().map(|filter| Confinement::of(filter, &mut bundle.spec["process"]));
    if let Some(cwd) = bundle.spec["process"]["cwd"].as_str() {
        workdir::make(&bundle.root, cwd);
    }
    bundle.write()?;
    let made = make(uvm, id, &bundle, confinement).await;
    let (init, mut pipes) = made.map_err(|error| workdir::explain(error, &bundle))?;
    let owns_pid_namespace = bundle.owns_pid_namespace();
    let Prepared { cgroup, pod_root, .. } = &prepared;
    let (cgroup, pod_root) = (cgroup.clone(), pod_root.clone());
    let supervised = cgroup.clone();
    let outcome = finish(uvm, &kind, &bundle.spec, &prepared, &init, &mut pipes).await;
    // Whatever becomes of it, its exit has to be heard of.
    init.supervise(SignalCode::Shell, async move || {
        // What the kernel does for a container with a pid namespace of its own.
        if !owns_pid_namespace {
            cgroup::kill(&supervised);
        }
    });
    if let Err(error) = outcome {
        let _ = init.signal(9);
        let _ = uvm.runtime.run(Job::Delete { id: id.to_owned() }, None).await;
        if let Some(claim) = &prepared.claim {
            uvm.networks.release(claim.key()).await;
        }
        return Err(error);
    }
    let network = prepared.keep();
    let container = Rc::new(Container {
        abandoned: watch::Sender::new(false),
        id: id.to_owned(),
        activity_id: envelope.activity_id.clone(),
        bundle: bundle.directory,
        scratch,
        root: bundle.root,
        cgroup,
        kind,
        pod_root,
        network,
        filter,
        init: Rc::clone(&init),
        unstarted: RefCell::new(Some(pipes)),
        execs: RefCell::default(),
        process: bundle.spec["process"].take(),
        ending: Cell::new(NotificationType::UnexpectedExit),
        notified: Cell::new(false),
    });
    reservation.fill(container);
    Ok(())
}

/// What is done once the init is there and before it runs.
async fn finish(
    uvm: &Uvm,
    kind: &Kind,
    spec: &Value,
    prepared: &Prepared<'_>,
    init: &Rc<Process>,
    pipes: &mut Option<Streams<OwnedFd>>,
) -> Result<()> {
    uvm.device_rules.apply(spec, &prepared.cgroup)?;
    if let Some(file) = &prepared.tee
        && let Some(pipes) = pipes
    {
        tee::insert(pipes, &prepared.pod_root.join(pod::LOGS), file)?;
    }
    if let Some(claim) = &prepared.claim {
        let pid = (!prepared.host_network).then(|| init.pid());
        let resolv_conf = prepared.resolv_conf.clone();
        uvm.networks.connect(&uvm.devices, claim.key(), pid, resolv_conf).await?;
    }
    if let Kind::Sandbox { pod, .. } = kind {
        uvm.pods.fill(pod, init);
    }
    Ok(())
}

async fn make(
    uvm: &Uvm,
    id: &str,
    bundle: &Bundle,
    confinement: Option<Confinement>,
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
        confinement,
        loopback: bundle.owns_network_namespace(),
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
