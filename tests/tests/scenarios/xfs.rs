//! Scratch disks with xfs, which only its own program makes: it goes into the image.

use std::os::unix::fs::FileExt;
use std::process::Command;

use linkspan_host::UtilityVm;
use linkspan_host::protocol::message::{ContainerId, ModifySettings};
use linkspan_host::protocol::resource::{MappedVirtualDisk, ModifyType, ScsiDevice};
use linkspan_host::vmm::{Disk, ScsiAddress};
use linkspan_tests::{agent, block_on, cli, rootfs};

#[test]
fn an_xfs_is_made_once_by_the_program_in_the_image() {
    block_on(made_once());
}

/// What `--add` takes for a program of this machine and all that it is linked with.
fn with_libraries(program: &str) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().expect("run ldd");
    assert!(output.status.success(), "ldd {program}: is it there? `cargo xtask setup` sees to it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths =
        text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let paths = std::iter::once(program).chain(paths);
    paths.map(|path| format!("{path}:{path}")).collect()
}

async fn made_once() {
    let image = tempfile::tempdir().unwrap();
    let (guest, busybox) = (agent(), rootfs().join("bin/busybox"));
    let mut build = Command::new(cli());
    build.args([
        "image",
        "build",
        "-q",
        "--no-vmlinux",
        "--compression",
        "none",
        "--modules",
        "+xfs",
    ]);
    build.arg("--guest-agent").arg(guest).arg("--out").arg(image.path());
    build.arg("--add").arg(format!("{}:/bin/busybox", busybox.display()));
    for spec in with_libraries("/usr/sbin/mkfs.xfs") {
        build.arg("--add").arg(spec);
    }
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let uvm = UtilityVm::builder("xfs").image(image.path()).start().await.unwrap();
    let (address, path) = (ScsiAddress { controller: 0, lun: 7 }, "/run/mounts/scsi/xfs");
    let file = tempfile::tempfile().unwrap();
    let size = 320 << 20;
    file.set_len(size).unwrap();
    let disk = Disk { file: file.try_clone().unwrap(), size, read_only: false };
    uvm.vmm().attach_disk(address, disk).await.unwrap();
    let mapped = MappedVirtualDisk {
        mount_path: path.to_owned(),
        controller: 0,
        lun: 7,
        ensure_filesystem: true,
        filesystem: "xfs".to_owned(),
        ..MappedVirtualDisk::default()
    };
    let modify = async |kind, mapped: &MappedVirtualDisk| {
        let request = ModifySettings::new(kind, mapped.clone().into());
        uvm.request(&ContainerId::uvm(), &request).await
    };
    for round in 0..2 {
        modify(ModifyType::Add, &mapped).await.unwrap();
        let script = format!(
            "b=/bin/busybox; $b grep -c ' {path} xfs rw' /proc/mounts; cd {path}; $b ls; echo {round} > kept{round}"
        );
        let output =
            uvm.command("/bin/busybox").args(["sh", "-c", &script]).output().await.unwrap();
        let expected = ["1\n", "1\nkept0\n"][round];
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "round {round}");
        modify(ModifyType::Remove, &mapped).await.unwrap();
    }
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"XFSB");

    let device = ScsiDevice { controller: 0, lun: 7 };
    let request = ModifySettings::new(ModifyType::Remove, device.into());
    uvm.request(&ContainerId::uvm(), &request).await.unwrap();
    uvm.vmm().detach_disk(address).await.unwrap();
    uvm.terminate().await;
}
