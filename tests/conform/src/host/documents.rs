//! What requests say, and in which order they come.

use linkspan_protocol::message::INFINITE;
use linkspan_protocol::{MessageType, UVM_ID};

use super::record::Request;
use super::session::HostSession;
use crate::verdict::{Checked, Stop, ensure};

pub(super) async fn strings(s: &mut HostSession) -> Checked {
    let plain = s.plain().await?;
    let kinds = [
        MessageType::CREATE,
        MessageType::EXECUTE_PROCESS,
        MessageType::GET_PROPERTIES,
        MessageType::MODIFY_SETTINGS,
    ];
    match kinds.iter().any(|&kind| plain.has(kind)) {
        true => Ok(()),
        false => Err(Stop::Skip("the host did not send a request with such a document".into())),
    }
}

pub(super) async fn waits(s: &mut HostSession) -> Checked {
    let plain = s.plain_with(MessageType::EXECUTE_PROCESS).await?;
    for pid in plain.of(MessageType::EXECUTE_PROCESS).filter_map(|request| request.pid) {
        let wait = plain
            .of(MessageType::WAIT_FOR_PROCESS)
            .find(|request| request.body["ProcessId"] == pid)
            .ok_or_else(|| Stop::fail(format!("process {pid} is not waited for")))?;
        let limit = &wait.body["TimeoutInMs"];
        ensure!(*limit == INFINITE, "the wait for process {pid} has a TimeoutInMs of {limit}");
    }
    Ok(())
}

pub(super) async fn kill(s: &mut HostSession) -> Checked {
    let plain = s.plain_with(MessageType::SIGNAL_PROCESS).await?;
    let mut kills = 0;
    for request in plain.of(MessageType::SIGNAL_PROCESS) {
        let options = request.body.get("Options");
        let signal = options.and_then(|options| options["Signal"].as_u64());
        let named = options.is_some() && !matches!(signal, Some(1..=8 | 10..));
        ensure!(
            !named,
            "a kill has Options: SignalProcess with id {} is {}",
            request.id,
            request.body
        );
        kills += usize::from(options.is_none());
    }
    match kills {
        0 => Err(Stop::Skip("the host did not kill a process".into())),
        _ => Ok(()),
    }
}

pub(super) async fn oci_process(s: &mut HostSession) -> Checked {
    let plain = s.plain().await?;
    let in_container = |request: &&Request| request.container() != UVM_ID;
    match plain.of(MessageType::EXECUTE_PROCESS).filter(in_container).count() {
        0 => Err(Stop::Skip("the host did not start a process in a container".into())),
        _ => Ok(()),
    }
}

/// Resources that a container is made of.
const MADE_OF: [&str; 5] =
    ["MappedVirtualDisk", "VPMemDevice", "CombinedLayers", "Network", "MappedDirectory"];

pub(super) async fn order(s: &mut HostSession) -> Checked {
    let plain = s.plain_with(MessageType::CREATE).await?;
    let creates: Vec<&Request> =
        plain.of(MessageType::CREATE).filter(|request| request.container() != UVM_ID).collect();
    for create in &creates {
        let id = create.container();
        let of = |kind: MessageType| plain.of(kind).find(|request| request.container() == id);
        let Some(init) = of(MessageType::EXECUTE_PROCESS) else { continue };
        let created = create.answered.is_some_and(|answered| answered < init.came);
        ensure!(created, "the init of {id:?} is asked for before Create is answered");
        let start = of(MessageType::START);
        let Some(start) = start.filter(|start| start.came < init.came) else {
            return Err(Stop::fail(format!("no Start of {id:?} comes before its init")));
        };
        let created = create.answered.is_some_and(|answered| answered < start.came);
        ensure!(created, "Start of {id:?} comes before Create is answered");
        // What comes in between may be another container's, if there is another to come.
        let others = creates.iter().any(|other| other.came > create.came);
        let late = plain.of(MessageType::MODIFY_SETTINGS).find(|request| {
            let (change, resource) = request.change();
            let between = request.came > create.came && request.came < init.came;
            between && change == "Add" && MADE_OF.contains(&resource)
        });
        if let Some(late) = late
            && !others
        {
            return Err(Stop::fail(format!("{:?} comes after Create of {id:?}", late.change())));
        }
    }
    match creates.is_empty() {
        true => Err(Stop::Skip("the host did not create a container".into())),
        false => Ok(()),
    }
}

pub(super) async fn unplugs(s: &mut HostSession) -> Checked {
    let plain = s.plain().await?;
    let removed = |resource: &'static str| {
        plain
            .of(MessageType::MODIFY_SETTINGS)
            .filter(move |request| request.change() == ("Remove", resource))
    };
    let address = |request: &Request| {
        let settings = &request.body["Request"]["Settings"];
        ["Controller", "Lun"].map(|key| settings[key].as_u64().unwrap_or_default())
    };
    let mut any = false;
    for disk in removed("MappedVirtualDisk") {
        any = true;
        let unplugged = removed("SCSIDevice")
            .any(|device| address(device) == address(disk) && device.came > disk.came);
        let place = address(disk);
        ensure!(unplugged, "the SCSI device {place:?} is not removed after its mount");
    }
    match any {
        true => Ok(()),
        false => Err(Stop::Skip("the host did not remove a disk's mount".into())),
    }
}
