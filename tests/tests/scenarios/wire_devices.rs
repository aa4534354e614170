//! Disks behind device-mapper, and disks that go: only a machine of its own has these devices.

use std::fs::File;
use std::os::unix::fs::FileExt;

use linkspan_protocol::HResult;
use linkspan_tests::raw::{Connection, with_connection};
use linkspan_tests::{Backend, append_tree};
use serde_json::{Value, json};

use super::wire_storage::{DISK, at, blank, layer, sh, unplug};

/// One test of a conversation with the agent in a VM.
macro_rules! in_a_vm {
    ($($name:ident),* $(,)?) => {
        mod qemu {
            $(#[test]
            fn $name() {
                super::with_connection(super::Backend::Qemu, super::$name);
            })*
        }
    };
}

in_a_vm!(
    a_partition_is_a_disk_of_its_own,
    a_layer_whose_root_hash_is_pinned_is_checked,
    another_root_hash_is_refused,
    a_flipped_byte_is_an_error_and_never_wrong_data,
    an_encrypted_disk_tells_the_host_nothing,
    a_disk_in_use_is_not_unplugged,
    a_disk_that_is_yanked_leaves_nothing_behind,
);

async fn a_partition_is_a_disk_of_its_own(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (disk, layer) = (blank(16), layer());
    let bytes = layer.metadata().unwrap().len();
    let mut image = vec![0; bytes as usize];
    layer.read_exact_at(&mut image, 0).unwrap();
    // Two partitions of type Linux, the layer in the second.
    let mut table = [0; 512];
    for (entry, (first, sectors)) in [(2048_u32, 2048_u32), (8192, 16384)].into_iter().enumerate() {
        let entry = &mut table[446 + entry * 16..];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&table, 0).unwrap();
    disk.write_all_at(&image, 8192 * 512).unwrap();
    connection.host().attach(2, &disk, true).await;
    let path = "/run/mounts/scsi/partition";
    let settings = at(2, path, json!({"Partition": 2, "ReadOnly": true, "Options": ["ro"]}));
    connection.modify("Add", DISK, settings.clone()).await.expect_success();
    assert_eq!(sh(connection, &format!("/bin/busybox cat {path}/hello")).await, "from a layer");
    connection.modify("Remove", DISK, settings).await.expect_success();
    let first = at(2, path, json!({"Partition": 1, "ReadOnly": true}));
    let answer = connection.modify("Add", DISK, first).await;
    let text = answer.body["ErrorMessage"].as_str().unwrap().to_owned();
    assert!(text.contains("3:2 partition 1 holds no known"), "{text}");
    unplug(connection, 2).await;
}

/// A layer with a file of known contents, and what pins it.
fn pinned() -> (File, Value) {
    let (file, directory) = (tempfile::tempfile().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(directory.path().join("small"), "as it was\n").unwrap();
    std::fs::write(directory.path().join("large"), b"payload.".repeat(1 << 17)).unwrap();
    let options = linkspan_layer::Options::default();
    linkspan_layer::build_image(directory.path(), &file, options, |_| {}).unwrap();
    let info = append_tree(&file);
    (file, info)
}

fn verified(lun: u8, path: &str, info: &Value) -> Value {
    at(lun, path, json!({"ReadOnly": true, "Options": ["ro"], "VerityInfo": info}))
}

fn message(answer: &linkspan_tests::raw::Response) -> String {
    answer.expect_fault(HResult::FAIL);
    answer.body["ErrorMessage"].as_str().unwrap().to_owned()
}

/// Names of the devices that the agent has made.
async fn mapped(connection: &mut Connection<'_>) -> String {
    sh(
        connection,
        "for d in /sys/block/dm-*/dm/name; do [ -e $d ] && /bin/busybox cat $d; done; true",
    )
    .await
}

async fn a_layer_whose_root_hash_is_pinned_is_checked(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let ((file, info), path) = (pinned(), "/run/mounts/scsi/pinned");
    connection.host().attach(20, &file, true).await;
    let settings = verified(20, path, &info);
    for _ in 0..2 {
        connection.modify("Add", DISK, settings.clone()).await.expect_success();
        assert_eq!(sh(connection, &format!("/bin/busybox cat {path}/small")).await, "as it was");
        let sum = format!("/bin/busybox md5sum < {path}/large");
        assert_eq!(sh(connection, &sum).await, "7dc40a8620107cfe107768e95ddadcac  -");
        let root = info["RootDigest"].as_str().unwrap();
        let name = format!("dm-verity-scsi-contr3-lun20-p0-{root}");
        assert_eq!(mapped(connection).await, name);
        // What the host says when it removes is what hosts say.
        let remove = at(20, path, json!({"ReadOnly": true}));
        connection.modify("Remove", DISK, remove).await.expect_success();
        assert_eq!(mapped(connection).await, "");
    }
    unplug(connection, 20).await;
}

async fn another_root_hash_is_refused(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let ((file, mut info), path) = (pinned(), "/run/mounts/scsi/refused");
    connection.host().attach(21, &file, true).await;
    let right = info["RootDigest"].clone();
    info["RootDigest"] = json!("5a".repeat(32));
    let answer = connection.modify("Add", DISK, verified(21, path, &info)).await;
    let text = message(&answer);
    assert!(text.contains("3:21: its contents do not match the root hash 5a5a"), "{text}");
    assert_eq!(sh(connection, &format!("ls -d {path} || echo none")).await, "none");
    assert_eq!(mapped(connection).await, "");
    info["RootDigest"] = right;
    info["Ext4SizeInBytes"] = json!(1_u64 << 40);
    let answer = connection.modify("Add", DISK, verified(21, path, &info)).await;
    assert!(message(&answer).contains("do not fit"), "{}", answer.body);
    unplug(connection, 21).await;
}

async fn a_flipped_byte_is_an_error_and_never_wrong_data(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let path = "/run/mounts/scsi/flipped";
    let (whole, info) = pinned();
    let size = info["Ext4SizeInBytes"].as_u64().unwrap();
    let mut bytes = vec![0; whole.metadata().unwrap().len() as usize];
    whole.read_exact_at(&mut bytes, 0).unwrap();
    let data = bytes.windows(16).position(|window| window == b"payload.payload.").unwrap() as u64;
    // In a file; in its hash, which is in the tree's lowest level: not in the leaf that has the
    // superblock's hash as well.
    let (block, leaves) = (200, size + 2 * 4096);
    assert!((data..data + (1 << 20)).contains(&(block * 4096)) && size / 4096 > 256, "{data}");
    for at in [block * 4096 + 7, leaves + block * 32] {
        whole.write_all_at(&[bytes[at as usize] ^ 1], at).unwrap();
        connection.host().attach(22, &whole, true).await;
        connection.modify("Add", DISK, verified(22, path, &info)).await.expect_success();
        let read = format!(
            "/bin/busybox cat {path}/large >/dev/null 2>&1 && echo read || echo error; /bin/busybox cat {path}/small"
        );
        assert_eq!(sh(connection, &read).await, "error\nas it was", "byte {at}");
        connection.modify("Remove", DISK, verified(22, path, &info)).await.expect_success();
        unplug(connection, 22).await;
        whole.write_all_at(&[bytes[at as usize]], at).unwrap();
    }
    let console = connection.host().machine().vmm().console();
    assert!(console.contains("verity") && console.contains("corrupt"), "{console}");
    // In what is read to mount it.
    whole.write_all_at(&[bytes[1100] ^ 1], 1100).unwrap();
    connection.host().attach(22, &whole, true).await;
    let answer = connection.modify("Add", DISK, verified(22, path, &info)).await;
    assert!(message(&answer).contains("do not match the root hash"), "{}", answer.body);
    unplug(connection, 22).await;
}

async fn an_encrypted_disk_tells_the_host_nothing(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (file, path) = (blank(256), "/run/mounts/scsi/secret");
    connection.host().attach(23, &file, false).await;
    let ensure = json!({"Encrypted": true, "EnsureFilesystem": true, "Filesystem": "ext4"});
    let settings = at(23, path, ensure);
    for _ in 0..2 {
        connection.modify("Add", DISK, settings.clone()).await.expect_success();
        // The second time it is empty: the key is gone.
        let fill = format!(
            "cd {path}; b=/bin/busybox; $b ls; i=0; while [ $i -lt 200 ]; do echo only-the-guest-knows > f$i; i=$((i+1)); done; $b mkdir d; $b dd if=/dev/urandom of=big bs=65536 count=64 2>/dev/null; $b md5sum big > sum; $b sync; echo 3 > /proc/sys/vm/drop_caches; $b md5sum -c sum; $b cat f199"
        );
        let expected = "lost+found\nbig: OK\nonly-the-guest-knows";
        assert_eq!(sh(connection, &fill).await, expected);
        // A host that does not say again that it is encrypted.
        let remove = at(23, path, json!({}));
        connection.modify("Remove", DISK, remove).await.expect_success();
        assert_eq!(mapped(connection).await, "");
    }
    unplug(connection, 23).await;
    let mut bytes = vec![0; 256 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().filter(|&&byte| byte != 0).count() > 4 << 20, "nothing was written");
    for known in [&b"only-the-guest-knows"[..], b"lost+found"] {
        assert!(!bytes.windows(known.len()).any(|window| window == known));
    }
    let settings =
        at(23, path, json!({"Encrypted": true, "EnsureFilesystem": true, "Filesystem": "xfs"}));
    connection.host().attach(23, &file, false).await;
    let answer = connection.modify("Add", DISK, settings).await;
    assert!(message(&answer).contains("mkfs.xfs"), "{}", answer.body);
    assert_eq!(mapped(connection).await, "");
    unplug(connection, 23).await;
}

async fn a_disk_in_use_is_not_unplugged(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (file, path) = (layer(), "/run/mounts/scsi/busy");
    connection.host().attach(24, &file, true).await;
    let settings = at(24, path, json!({"ReadOnly": true}));
    connection.modify("Add", DISK, settings.clone()).await.expect_success();
    let device = json!({"Controller": 3, "Lun": 24});
    let answer = connection.modify("Remove", "SCSIDevice", device.clone()).await;
    let text = message(&answer);
    assert!(text.contains("unplug SCSI disk 3:24") && text.contains("still mounted"), "{text}");
    assert_eq!(sh(connection, &format!("/bin/busybox cat {path}/hello")).await, "from a layer");
    connection.modify("Remove", DISK, settings).await.expect_success();
    for _ in 0..2 {
        let answer = connection.modify("Remove", "SCSIDevice", device.clone()).await;
        answer.expect_success();
    }
    connection.host().detach(24).await;
}

async fn a_disk_that_is_yanked_leaves_nothing_behind(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let path = "/run/mounts/scsi/yanked";
    let settings = at(25, path, json!({"EnsureFilesystem": true, "Filesystem": "ext4"}));
    for _ in 0..2 {
        let file = blank(128);
        connection.host().attach(25, &file, false).await;
        connection.modify("Add", DISK, settings.clone()).await.expect_success();
        let write = format!(
            "cd {path}; b=/bin/busybox; while $b dd if=/dev/zero of=b bs=65536 count=256 conv=fsync 2>/dev/null; do :; done; echo the writer was told"
        );
        let ([port], [listener]) = connection.host().listen();
        connection.start_external(&["/bin/busybox", "sh", "-c", &write], port).await;
        let (mut stdout, _) = listener.accept().await.unwrap();
        connection.host().detach(25).await;
        let said = linkspan_tests::raw::read_all(&mut stdout).await;
        assert_eq!(said.trim_end(), "the writer was told");
        connection.modify("Remove", DISK, settings.clone()).await.expect_success();
        let device = json!({"Controller": 3, "Lun": 25});
        connection.modify("Remove", "SCSIDevice", device).await.expect_success();
        assert_eq!(sh(connection, &format!("ls -d {path} || echo none")).await, "none");
    }
}
