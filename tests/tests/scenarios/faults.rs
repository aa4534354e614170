//! What goes wrong with disks: it is said, nothing is left of it, and the next try works.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use linkspan_host::protocol::message::{ContainerId, ModifySettings};
use linkspan_host::protocol::resource::{MappedVirtualDisk, ModifyType, ScsiDevice, VerityInfo};
use linkspan_host::vmm::{Disk, ScsiAddress};
use linkspan_host::{Error, Layers, ProcessSpec, Stdio};
use linkspan_tests::{
    Backend, GuestState, Remains, Vm, append_tree, layer_image, on_both_backends, pid_in, unique,
};
use tempfile::TempDir;
use tokio::time::timeout;

use super::agent_crash::agent_among;

on_both_backends!(a_full_scratch_is_the_trouble_of_its_container_alone);

mod alone {
    use linkspan_tests::on_both_backends;

    use super::*;

    on_both_backends!(alone: a_machine_that_dies_while_it_mounts_leaves_nothing);
}

mod qemu_only {
    #[test]
    fn an_agent_that_is_killed_while_it_mounts_leaves_nothing() {
        linkspan_tests::block_on(super::an_agent_that_is_killed_while_it_mounts_leaves_nothing());
    }
}

/// How long the kernel may take to clean up behind processes.
const SOON: Duration = Duration::from_secs(10);

async fn a_full_scratch_is_the_trouble_of_its_container_alone(vm: Vm) {
    let before = vm.sandbox("beside").await;
    for _ in 0..2 {
        let layers = Layers::of(vm.root()).scratch_mib(32);
        let process = ProcessSpec::new(["sleep", "100000"]);
        let container = vm.container(unique("full"), layers).process(process).create();
        let container = container.await.unwrap();
        let init = container.start(Stdio::NULL).await.unwrap();
        let sh = async |script: &str| {
            let output = container.command("sh").args(["-c", script]).output().await.unwrap();
            let [out, err] =
                [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
            (out.trim_end().to_owned(), err.into_owned())
        };
        // A large write can fail where a small one has room yet, and what the first had reserved too
        // much comes back once it is on the disk.
        let fill = "cat /dev/zero > /fill; for i in 1 2 3; do sync; dd if=/dev/zero of=/rest$i bs=4096 2>/dev/null; done";
        let (_, complaint) = sh(fill).await;
        assert!(complaint.contains("No space left"), "{complaint}");
        let (said, complaint) =
            sh("head -c 300000 /fill > /more || echo refused; mkdir /d || echo too").await;
        assert!(complaint.contains("No space left") && said.contains("refused"), "{complaint}");
        // It can be spoken with all the same, read from, and mended from within.
        assert_eq!(
            sh("head -c 5 /etc/passwd; rm /fill; echo x > /more && cat /more").await.0,
            "root:x"
        );
        let (_, complaint) = sh(fill).await;
        assert!(complaint.contains("No space left"), "{complaint}");
        // Full as it is, it goes.
        init.handle().kill().await.unwrap();
        init.wait().await.unwrap();
        container.delete().await.unwrap();
    }
    assert_eq!(before.text("echo y > /own && cat /own").await, "y");
    before.remove().await;
}

/// A layer with a hash tree, and what pins it.
fn pinned(directory: &TempDir) -> (PathBuf, VerityInfo) {
    let path = directory.path().join("pinned.ext4");
    fs::copy(layer_image(), &path).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    (path, serde_json::from_value(append_tree(&file)).unwrap())
}

async fn an_agent_that_is_killed_while_it_mounts_leaves_nothing() {
    let vm = Vm::own("halfway", Backend::Qemu).await;
    let directory = tempfile::tempdir().unwrap();
    let (path, verity) = pinned(&directory);
    let address = ScsiAddress { controller: 3, lun: 11 };
    let disk = MappedVirtualDisk {
        mount_path: "/run/mounts/scsi/halfway".to_owned(),
        controller: 3,
        lun: 11,
        read_only: true,
        verity_info: Some(verity),
        ..MappedVirtualDisk::default()
    };
    let add = ModifySettings::new(ModifyType::Add, disk.clone().into());
    let remove = ModifySettings::new(ModifyType::Remove, disk.into());
    let unplug =
        ModifySettings::new(ModifyType::Remove, ScsiDevice { controller: 3, lun: 11 }.into());
    let look = async || {
        let script = "/bin/busybox grep -c halfway /proc/mounts; for d in /sys/block/dm-*; do [ -e $d ] && echo device; done; [ -e /run/mounts/scsi/halfway ] && echo directory; true";
        let output = vm.command("/bin/busybox").args(["sh", "-c", script]).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let attach = async || {
        let file = File::open(&path).unwrap();
        let size = file.metadata().unwrap().len();
        vm.vmm().attach_disk(address, Disk { file, size, read_only: true }).await.unwrap();
    };
    // First while it waits for a disk that is not there yet, then somewhere between the disk and the
    // mount: the order is killed, and then mounted, as the agent gets to see it.
    for early in [true, false, false, false] {
        let agents = GuestState::agents(&vm).await;
        let agent = agent_among(&vm, &agents).await.to_string();
        if !early {
            attach().await;
        }
        let uvm = ContainerId::uvm();
        let mount = vm.request(&uvm, &add);
        // The answer to this one may be lost with the agent.
        let kill = vm.command("/bin/busybox").args(["kill", "-9", &agent]);
        let both = async { tokio::join!(mount, timeout(Duration::from_secs(20), kill.status())) };
        let (mounted, _) = timeout(Duration::from_secs(60), both).await.expect("both are told");
        match mounted {
            // It was quicker: the new agent has taken it down.
            Ok(_) => assert!(!early),
            Err(error) => assert!(error.to_string().contains("started again"), "{error}"),
        }
        assert_eq!(look().await, "0\n", "early: {early}");
        if early {
            attach().await;
        }
        vm.request(&ContainerId::uvm(), &add).await.unwrap();
        assert_eq!(look().await, "1\ndevice\ndirectory\n");
        vm.request(&ContainerId::uvm(), &remove).await.unwrap();
        vm.request(&ContainerId::uvm(), &unplug).await.unwrap();
        vm.vmm().detach_disk(address).await.unwrap();
        assert_eq!(look().await, "0\n");
    }
    vm.terminate().await;
}

async fn a_machine_that_dies_while_it_mounts_leaves_nothing(backend: Backend) {
    let directory = tempfile::tempdir().unwrap();
    let layer = |number: u32| {
        let path = directory.path().join(format!("{number}.ext4"));
        let content = tempfile::tempdir().unwrap();
        fs::write(content.path().join(format!("layer{number}")), "x").unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let options = linkspan_layer::Options::default();
        linkspan_layer::build_image(content.path(), &file, options, |_| {}).unwrap();
        path
    };
    let layers = (0..24).map(layer).fold(Layers::of(layer_image()), Layers::layer);
    let script = ["sh", "-c", "ls / | grep -c layer"];
    let make = |vm: &Vm| {
        vm.container(unique("dying"), layers.clone()).process(ProcessSpec::new(script)).create()
    };
    // From a moment after the first request to about the end of them.
    for moment in [5, 100, 400] {
        let vm = Vm::own("dying", backend).await;
        let pid = pid_in(&vm.vmm().describe());
        let remains = Remains::of(pid);
        let making = tokio::spawn(make(&vm));
        tokio::time::sleep(Duration::from_millis(moment)).await;
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let made = timeout(Duration::from_secs(30), making).await.expect("it ends").unwrap();
        match made {
            // The loopback backend can be done by then; nobody can use it any more.
            Ok(container) => assert!(container.start(Stdio::NULL).await.is_err()),
            Err(error) => {
                // The loopback backend's directory goes with it.
                let told = matches!(error, Error::Closed { .. } | Error::Vmm(_) | Error::Io { .. });
                assert!(told, "after {moment} ms: {error:?}");
            }
        }
        vm.terminate().await;
        remains.gone_within(SOON).await;
    }
    let vm = Vm::own("next", backend).await;
    let container = make(&vm).await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "24\n");
    container.delete().await.unwrap();
    vm.terminate().await;
}
