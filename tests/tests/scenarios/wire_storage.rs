//! Disks and container roots, by hand: every form that a host can ask for.

use std::fs::File;
use std::os::unix::fs::FileExt;

use linkspan_protocol::HResult;
use linkspan_tests::raw::{Connection, with_connection};
use linkspan_tests::{Backend, unique};
use serde_json::{Value, json};

use super::wire_frames::conversations;

conversations!(
    a_blank_disk_is_formatted_once_and_keeps_what_is_written,
    a_disk_that_holds_something_else_is_named,
    a_block_device_is_a_link,
    a_second_disk_at_a_path_does_no_harm,
    a_disk_that_never_comes_is_an_error_in_time,
    roots_of_no_one_and_many_layers,
    a_root_that_fails_leaves_what_was_there,
    a_container_that_never_comes_leaves_its_scratch_free,
    options_that_contradict_each_other_are_refused,
    what_this_machine_has_not_is_said,
);

pub(crate) const DISK: &str = "MappedVirtualDisk";

pub(crate) fn blank(megabytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(megabytes << 20).unwrap();
    file
}

pub(crate) fn layer() -> File {
    let file = tempfile::tempfile().unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("hello"), "from a layer\n").unwrap();
    let options = linkspan_layer::Options::default();
    linkspan_layer::build_image(directory.path(), &file, options, |_| {}).unwrap();
    file
}

pub(crate) fn at(lun: u8, path: &str, more: Value) -> Value {
    let mut settings = json!({"Controller": 3, "Lun": lun, "MountPath": path});
    let more = more.as_object().unwrap().clone();
    settings.as_object_mut().unwrap().extend(more);
    settings
}

/// What a shell in the guest's root prints.
pub(crate) async fn sh(connection: &mut Connection<'_>, script: &str) -> String {
    let said = connection.external(&["/bin/busybox", "sh", "-c", script]).await;
    assert_eq!(said.code, 0, "{script:?}: {}", said.stdout);
    said.stdout.trim_end().to_owned()
}

pub(crate) async fn unplug(connection: &mut Connection<'_>, lun: u8) {
    let settings = json!({"Controller": 3, "Lun": lun});
    connection.modify("Remove", "SCSIDevice", settings).await.expect_success();
    connection.host().detach(lun).await;
}

async fn a_blank_disk_is_formatted_once_and_keeps_what_is_written(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (file, path) = (blank(300), "/run/mounts/scsi/blank");
    // What was there before does not shine through.
    file.write_all_at(&[0xaa; 64 << 10], 4 << 20).unwrap();
    connection.host().attach(0, &file, false).await;
    let settings = at(0, path, json!({"EnsureFilesystem": true, "Filesystem": "ext4"}));
    for round in 0..2 {
        connection.modify("Add", DISK, settings.clone()).await.expect_success();
        let script = format!(
            "cd {path}; b=/bin/busybox; $b cat kept; echo {round} >> kept; $b mkdir d{round}; for i in 0 1 2 3 4 5 6 7; do echo x > d{round}/$i; done; $b ls; $b wc -l < kept"
        );
        let expected = ["d0\nkept\nlost+found\n1", "0\nd0\nd1\nkept\nlost+found\n2"];
        let said = connection.external(&["/bin/busybox", "sh", "-c", &script]).await.stdout;
        assert_eq!(said.trim_end(), expected[round]);
        connection.modify("Remove", DISK, at(0, path, json!({}))).await.expect_success();
    }
    unplug(connection, 0).await;
    let image =
        format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    let check = std::process::Command::new("/sbin/e2fsck").args(["-fn", &image]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

async fn a_disk_that_holds_something_else_is_named(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (file, path) = (blank(8), "/run/mounts/scsi/other");
    connection.host().attach(1, &file, false).await;
    for (more, part) in [
        (json!({}), "3:1 holds no known file system"),
        (json!({"Filesystem": "ext4"}), "3:1 holds no known file system"),
        (json!({"Filesystem": "vfat"}), "\"vfat\" is not ext4, xfs"),
        (json!({"Filesystem": "vfat", "EnsureFilesystem": true}), "\"vfat\" is not"),
    ] {
        let answer = connection.modify("Add", DISK, at(1, path, more)).await;
        answer.expect_fault(HResult::FAIL);
        assert!(answer.body["ErrorMessage"].as_str().unwrap().contains(part), "{}", answer.body);
    }
    unplug(connection, 1).await;
    let file = layer();
    connection.host().attach(1, &file, true).await;
    let xfs = json!({"Filesystem": "xfs", "ReadOnly": true});
    let answer = connection.modify("Add", DISK, at(1, path, xfs)).await;
    assert!(answer.body["ErrorMessage"].as_str().unwrap().contains("holds ext4, not xfs"));
    assert_eq!(sh(connection, &format!("ls -d {path} || echo none")).await, "none");
    unplug(connection, 1).await;
}

async fn a_block_device_is_a_link(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let file = blank(1);
    file.write_all_at(b"raw bytes", 0).unwrap();
    connection.host().attach(3, &file, true).await;
    let path = "/run/mounts/scsi/block";
    let settings = at(3, path, json!({"BlockDev": true, "ReadOnly": true}));
    connection.modify("Add", DISK, settings.clone()).await.expect_success();
    let read = format!("/bin/busybox head -c 9 {path}; /bin/busybox readlink {path} >/dev/null");
    assert_eq!(sh(connection, &read).await, "raw bytes");
    connection.modify("Add", DISK, settings.clone()).await.expect_fault(HResult::FAIL);
    // It is no mount, and yet not taken for one.
    for _ in 0..2 {
        connection.modify("Remove", DISK, settings.clone()).await.expect_success();
    }
    assert_eq!(sh(connection, &format!("ls -d {path} || echo none")).await, "none");
    unplug(connection, 3).await;
}

async fn a_second_disk_at_a_path_does_no_harm(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (file, path) = (blank(64), "/run/mounts/scsi/twice");
    connection.host().attach(4, &file, false).await;
    let ensure = at(4, path, json!({"EnsureFilesystem": true, "Filesystem": "ext4"}));
    connection.modify("Add", DISK, ensure.clone()).await.expect_success();
    sh(connection, &format!("echo mine > {path}/file")).await;
    connection.modify("Add", DISK, ensure.clone()).await.expect_fault(HResult::FAIL);
    assert_eq!(sh(connection, &format!("/bin/busybox cat {path}/file")).await, "mine");
    connection.modify("Remove", DISK, ensure).await.expect_success();
    assert_eq!(sh(connection, &format!("ls -d {path} || echo none")).await, "none");
    unplug(connection, 4).await;
}

async fn a_disk_that_never_comes_is_an_error_in_time(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let settings = at(60, "/run/mounts/scsi/never", json!({"ReadOnly": true}));
    let missing = connection.post_modify("Add", DISK, settings).await;
    // The agent serves others meanwhile.
    sh(connection, "true").await;
    let answer = connection.response_to(missing).await;
    answer.expect_fault(HResult::FAIL);
    assert!(answer.body["ErrorMessage"].as_str().unwrap().contains("3:60"), "{}", answer.body);
}

async fn roots_of_no_one_and_many_layers(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("roots");
    let (root, base) = (format!("/run/gcs/c/{id}/rootfs"), format!("/run/layers/{id}"));
    let scratch = format!("/run/gcs/c/{id}/scratch");
    let make = "b=/bin/busybox; i=0; while [ $i -lt 64 ]; do $b mkdir -p @/$i; echo $i > @/$i/top; echo > @/$i/own$i; i=$((i+1)); done".replace('@', &base);
    sh(connection, &make).await;
    let write = format!("echo x > {root}/new && echo writable || echo read-only");
    for (layers, scratch, expected) in [
        (0, true, "0 writable"),
        (1, true, "1 0 writable"),
        (1, false, "1 0 read-only"),
        (2, false, "2 0 read-only"),
        (64, true, "64 0 writable"),
        (64, false, "64 0 read-only"),
    ] {
        let paths: Vec<_> = (0..layers).map(|at| json!({"Path": format!("{base}/{at}")})).collect();
        let place =
            if scratch { format!("/run/gcs/c/{id}/scratch{layers}") } else { String::new() };
        let settings = json!({"ContainerRootPath": root, "Layers": paths, "ScratchPath": place});
        connection.modify("Add", "CombinedLayers", settings).await.expect_success();
        let look = format!(
            "cd {root}; /bin/busybox ls | /bin/busybox grep -c own; /bin/busybox cat top; cd /; {write}"
        );
        let said = connection.external(&["/bin/busybox", "sh", "-c", &look]).await.stdout;
        let said: Vec<_> = said.split_whitespace().collect();
        assert_eq!(said.join(" "), expected, "{layers} layers");
        let settings = json!({"ContainerRootPath": root});
        connection.modify("Remove", "CombinedLayers", settings).await.expect_success();
    }
    let nothing = json!({"ContainerRootPath": root, "Layers": [], "ScratchPath": ""});
    let answer = connection.modify("Add", "CombinedLayers", nothing).await;
    answer.expect_fault(HResult::FAIL);
    assert_eq!(sh(connection, &format!("ls -d {root} || echo none")).await, "none");

    // Paths that make more options than the kernel takes.
    let long = format!("{base}/{}", "x".repeat(200));
    let paths: Vec<_> = (0..40).map(|at| json!({"Path": format!("{long}/{at}")})).collect();
    sh(connection, &format!("/bin/busybox mkdir {long}; /bin/busybox mv {base}/[0-9]* {long}/"))
        .await;
    let settings = json!({"ContainerRootPath": root, "Layers": paths, "ScratchPath": scratch});
    connection.modify("Add", "CombinedLayers", settings).await.expect_success();
    let count = format!("cd {root}; /bin/busybox ls | /bin/busybox grep -c own");
    assert_eq!(sh(connection, &count).await, "40");
    let settings = json!({"ContainerRootPath": root});
    connection.modify("Remove", "CombinedLayers", settings).await.expect_success();
    sh(connection, &format!("/bin/busybox rm -rf {base} /run/gcs/c/{id}")).await;
}

async fn a_root_that_fails_leaves_what_was_there(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("kept");
    let bundle = format!("/run/gcs/c/{id}");
    let make = format!(
        "/bin/busybox mkdir -p {bundle}/rootfs {bundle}/s/upper; echo mine > {bundle}/s/upper/file; echo mine > {bundle}/rootfs/file"
    );
    sh(connection, &make).await;
    let settings = json!({
        "ContainerRootPath": format!("{bundle}/rootfs"),
        "Layers": [{"Path": "/run/layers/no-such-layer"}],
        "ScratchPath": format!("{bundle}/s"),
    });
    let answer = connection.modify("Add", "CombinedLayers", settings).await;
    answer.expect_fault(HResult::FAIL);
    let look = format!("cd {bundle}; /bin/busybox cat rootfs/file s/upper/file; ls s");
    assert_eq!(sh(connection, &look).await, "mine\nmine\nupper");
    sh(connection, &format!("/bin/busybox rm -rf {bundle}")).await;
}

async fn a_container_that_never_comes_leaves_its_scratch_free(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (file, scratch, id) = (blank(64), "/run/mounts/scsi/lonely", &unique("lonely"));
    connection.host().attach(5, &file, false).await;
    let ensure = at(5, scratch, json!({"EnsureFilesystem": true, "Filesystem": "ext4"}));
    connection.modify("Add", DISK, ensure.clone()).await.expect_success();
    let root = format!("/run/gcs/c/{id}/rootfs");
    let settings = json!({
        "ContainerRootPath": root,
        "Layers": [{"Path": "/run/layers/base"}],
        "ScratchPath": format!("{scratch}/scratch/{id}"),
    });
    for _ in 0..2 {
        connection.modify("Add", "CombinedLayers", settings.clone()).await.expect_success();
        let bound = format!("/bin/busybox grep -c ' /run/gcs/c/{id} ' /proc/mounts");
        assert_eq!(sh(connection, &bound).await, "1", "all of the bundle is on the scratch disk");
        let remove = json!({"ContainerRootPath": root});
        connection.modify("Remove", "CombinedLayers", remove).await.expect_success();
    }
    // No container has deleted anything, and yet the disk is free.
    connection.modify("Remove", DISK, ensure).await.expect_success();
    assert_eq!(sh(connection, &format!("ls -d /run/gcs/c/{id} || echo none")).await, "none");
    unplug(connection, 5).await;
}

async fn options_that_contradict_each_other_are_refused(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let path = "/run/mounts/scsi/wrong";
    let verity = json!({"RootDigest": "00".repeat(32), "BlockSize": 4096, "Ext4SizeInBytes": 4096});
    for (more, part) in [
        (json!({"EnsureFilesystem": true}), "Filesystem"),
        (json!({"Encrypted": true}), "Encrypted"),
        (json!({"Encrypted": true, "ReadOnly": true}), "Encrypted"),
        (json!({"VerityInfo": verity}), "VerityInfo"),
        (json!({"ReadOnly": true, "VerityInfo": {}}), "VerityInfo.RootDigest"),
        (json!({"Controller": 4}), "Controller: 4"),
    ] {
        let answer = connection.modify("Add", DISK, at(50, path, more)).await;
        answer.expect_fault(HResult::FAIL);
        let text = answer.body["ErrorMessage"].as_str().unwrap();
        assert!(text.starts_with(part), "{text:?} does not name {part}");
    }
}

async fn what_this_machine_has_not_is_said(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    for (guid, part) in
        [("0a0b0c0d-0000-0000-0000-000000000001", "VMBus"), ("../../etc", "\"../../etc\"")]
    {
        let answer = connection.modify("Add", "VPCIDevice", json!({"VMBusGUID": guid})).await;
        answer.expect_fault(HResult::FAIL);
        assert!(answer.body["ErrorMessage"].as_str().unwrap().contains(part), "{}", answer.body);
    }
    let nobody = json!({"MountPath": "/run/mounts/plan9/0", "Port": 564, "ShareName": "0"});
    let answer = connection.modify("Add", "MappedDirectory", nobody.clone()).await;
    answer.expect_fault(HResult::FAIL);
    assert!(answer.body["ErrorMessage"].as_str().unwrap().contains("port 564"), "{}", answer.body);
    // Whether the kernel has no 9p, or the host hangs up on it.
    let ([port], [listener]) = connection.host().listen();
    let silent = json!({"MountPath": "/run/mounts/plan9/0", "Port": port, "ShareName": "0"});
    let asked = connection.post_modify("Add", "MappedDirectory", silent).await;
    drop(listener.accept().await.unwrap());
    let answer = connection.response_to(asked).await;
    answer.expect_fault(HResult::FAIL);
    assert!(answer.body["ErrorMessage"].as_str().unwrap().contains("9p"), "{}", answer.body);
    for (settings, part) in [
        (json!({"MountPath": "/run/mounts/plan9/0", "Port": -1}), "Port: -1"),
        (json!({"MountPath": "/run/mounts/plan9/0", "Port": port, "ShareName": "0,x"}), "\"0,x\""),
        (json!({"MountPath": "/run/mounts/plan9/0", "ShareName": "no-such-tag"}), "no-such-tag"),
    ] {
        let answer = connection.modify("Add", "MappedDirectory", settings).await;
        answer.expect_fault(HResult::FAIL);
        let text = answer.body["ErrorMessage"].as_str().unwrap();
        assert!(text.contains(part) || text.contains("virtiofs"), "{text} lacks {part}");
    }
    assert_eq!(sh(connection, "ls -d /run/mounts/plan9/0 || echo none").await, "none");
}
