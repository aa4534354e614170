use std::collections::HashSet;
use std::os::unix::net::UnixStream as StdUnixStream;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::*;

const AT: ScsiAddress = ScsiAddress { controller: 1, lun: 3 };

fn file(length: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(length).unwrap();
    file
}

fn disk(length: u64, size: u64) -> Disk {
    Disk { file: file(length), size, read_only: false }
}

/// Answers each command, refusing `refused`; gives what was asked.
async fn serve(socket: StdUnixStream, refused: &'static str) -> Vec<Value> {
    socket.set_nonblocking(true).unwrap();
    let (read, mut write) = UnixStream::from_std(socket).unwrap().into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
    let mut asked = Vec::new();
    while let Ok(Some(line)) = lines.next_line().await {
        let command: Value = serde_json::from_str(&line).unwrap();
        let mut answer = match command["execute"] == refused {
            true => json!({ "error": { "class": "GenericError", "desc": "no" } }),
            false => json!({ "return": {} }),
        };
        answer["id"] = command["id"].clone();
        let mut text = format!("{answer}\r\n");
        if command["execute"] == "device_del" && refused != "device_del" {
            // Somebody else's, and its own before the answer: both are possible.
            let other = json!({ "event": "DEVICE_DELETED", "data": { "path": "/x" } });
            let own = json!({ "event": "DEVICE_DELETED", "data": command["arguments"].clone() });
            let own = own.to_string().replace("\"id\"", "\"device\"");
            text = format!("{other}\r\n{own}\r\n{text}");
        }
        asked.push(command);
        write.write_all(text.as_bytes()).await.unwrap();
    }
    asked
}

fn names(asked: &[Value]) -> Vec<&str> {
    asked.iter().skip(1).map(|command| command["execute"].as_str().unwrap()).collect()
}

fn start(refused: &'static str) -> (Disks, tokio::task::JoinHandle<Vec<Value>>) {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let server = tokio::spawn(serve(theirs, refused));
    (Disks::new(Qmp::new(ours, |_| {}).unwrap()), server)
}

#[tokio::test]
async fn a_disk_is_attached_and_detached_in_order() {
    let (disks, server) = start("");
    disks.attach(AT, disk(8192, 4096)).await.unwrap();
    let again = disks.attach(AT, disk(8192, 4096)).await.unwrap_err();
    assert!(again.to_string().contains("1:3"), "{again}");
    disks.detach(AT).await.unwrap();
    assert!(matches!(disks.detach(AT).await, Err(QemuError::NoDisk(AT))));
    drop(disks);
    let asked = server.await.unwrap();
    let expected =
        ["add-fd", "blockdev-add", "device_add", "device_del", "blockdev-del", "remove-fd"];
    assert_eq!(names(&asked), expected);
    let blockdev = &asked[2]["arguments"];
    assert_eq!((&blockdev["size"], &blockdev["read-only"]), (&json!(4096), &json!(false)));
    let set = &asked[1]["arguments"]["fdset-id"];
    assert_eq!(blockdev["file"]["filename"], format!("/dev/fdset/{set}"));
    let device = &asked[3]["arguments"];
    assert_eq!((&device["bus"], &device["lun"]), (&json!("scsi1.0"), &json!(3)));
}

#[tokio::test]
async fn what_fails_is_undone() {
    for (refused, expected) in [
        ("add-fd", &["add-fd"][..]),
        ("blockdev-add", &["add-fd", "blockdev-add", "remove-fd"]),
        ("device_add", &["add-fd", "blockdev-add", "device_add", "blockdev-del", "remove-fd"]),
    ] {
        let (disks, server) = start(refused);
        let error = disks.attach(AT, disk(4096, 4096)).await.unwrap_err();
        assert!(matches!(error, QemuError::DiskCommand { verb: "attach", .. }), "{error:?}");
        assert!(matches!(disks.detach(AT).await, Err(QemuError::NoDisk(AT))));
        drop(disks);
        assert_eq!(names(&server.await.unwrap()), expected);
    }
}

#[test]
fn a_disk_that_cannot_be_is_refused_before_qemu_sees_it() {
    let refuse = |address, disk| Plan::new(address, disk).unwrap_err().to_string();
    assert!(refuse(AT, disk(4096, 8192)).contains("4096"));
    assert!(refuse(AT, disk(4096, 0)).contains("multiple of 512"));
    assert!(refuse(AT, disk(4096, 1000)).contains("multiple of 512"));
    for address in [ScsiAddress { controller: 4, lun: 0 }, ScsiAddress { controller: 0, lun: 64 }] {
        assert!(refuse(address, disk(4096, 4096)).contains("3:63"));
    }
    let null = Disk { file: File::open("/dev/null").unwrap(), size: 512, read_only: true };
    assert!(refuse(AT, null).contains("neither"));
}

#[test]
fn a_read_only_disk_is_open_for_reading_only() {
    let plan = Plan::new(AT, Disk { read_only: true, ..disk(4096, 4096) }).unwrap();
    assert_eq!(fcntl_getfl(&plan.file).unwrap() & OFlags::RWMODE, OFlags::RDONLY);

    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(4096).unwrap();
    let file = File::open(named.path()).unwrap();
    let writable = Plan::new(AT, Disk { file, size: 4096, read_only: false });
    assert!(writable.unwrap_err().to_string().contains("writ"));
}

#[test]
fn every_address_has_a_set_of_its_own() {
    let addresses = (0..CONTROLLERS)
        .flat_map(|controller| (0..LUNS).map(move |lun| ScsiAddress { controller, lun }));
    let sets: HashSet<u32> = addresses.clone().map(set).collect();
    assert_eq!(sets.len(), addresses.count());
    assert!(!sets.contains(&0));
}
