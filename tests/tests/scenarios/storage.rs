//! Layers of many containers: attached once, pinned, many at a time, and what is left of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use linkspan_host::protocol::message::{ContainerId, ModifySettings};
use linkspan_host::protocol::resource::{
    MappedVirtualDisk, ModifyType, ScsiDevice, VerityInfo, VpmemDevice, VpmemMapping,
};
use linkspan_host::vmm::{Disk, ScsiAddress};
use linkspan_host::{Error, Layers, ProcessSpec, Stdio, UtilityVm};
use linkspan_tests::{
    Backend, GuestState, Vm, append_tree, layer_image, machine, on_both_backends, unique,
};
use serde_json::Value;
use tempfile::TempDir;

on_both_backends!(
    twenty_containers_share_one_attachment,
    a_root_of_sixty_four_layers,
    a_layer_that_fails_takes_nothing_with_it,
    what_cannot_be_pinned_is_said_before_anything_is_attached,
);

mod qemu_only {
    use linkspan_tests::{Backend, block_on, shared};

    #[test]
    fn a_pinned_layer_runs_and_another_hash_is_refused() {
        shared(Backend::Qemu, super::a_pinned_layer_runs_and_another_hash_is_refused);
    }

    #[test]
    fn a_flipped_byte_is_an_io_error_in_the_container() {
        shared(Backend::Qemu, super::a_flipped_byte_is_an_io_error_in_the_container);
    }

    #[test]
    fn layers_on_persistent_memory() {
        block_on(super::layers_on_persistent_memory());
    }

    #[test]
    fn an_agent_that_is_killed_leaves_no_devices() {
        block_on(super::an_agent_that_is_killed_leaves_no_devices());
    }
}

/// How many disks are mounted in the guest that have a file of this name.
async fn mounted(uvm: &UtilityVm, name: &str) -> u64 {
    let script = format!(
        "n=0; for f in /run/mounts/scsi/*/{name}; do [ -e $f ] && n=$((n+1)); done; echo $n"
    );
    let output = uvm.command("/bin/busybox").args(["sh", "-c", &script]).output().await.unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
}

async fn twenty_containers_share_one_attachment(vm: Vm) {
    let directory = tempfile::tempdir().unwrap();
    let (name, root) = (unique("twenty"), layer_image());
    let path = small_layer(&directory, &name, "shared\n");
    // All at once: the first attaches, the others wait for it.
    let makers = (0..20).map(|_| {
        let (vm, layers) = (vm.clone(), Layers::of(&root).layer(&path).scratch_mib(64));
        let process = ProcessSpec::new(["cat".to_owned(), format!("/{name}")]);
        tokio::spawn(async move {
            vm.container(unique("sharing"), layers).process(process).create().await.unwrap()
        })
    });
    let mut containers = Vec::new();
    for maker in makers.collect::<Vec<_>>() {
        containers.push(maker.await.unwrap());
    }
    assert_eq!(mounted(&vm, &name).await, 1);
    // The layer stays as long as one of them needs it.
    for (at, container) in containers.into_iter().enumerate() {
        assert_eq!(mounted(&vm, &name).await, 1, "{at} have gone");
        let child = container.start(Stdio::OUTPUT).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "shared\n");
        container.delete().await.unwrap();
    }
    assert_eq!(mounted(&vm, &name).await, 0);
}

/// A layer with one file of that name and contents.
fn small_layer(directory: &TempDir, name: &str, contents: &str) -> PathBuf {
    let content = tempfile::tempdir().unwrap();
    fs::write(content.path().join(name), contents).unwrap();
    fs::write(content.path().join("top"), format!("{name}\n")).unwrap();
    let path = directory.path().join(format!("{name}.ext4"));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let options = linkspan_layer::Options::default();
    linkspan_layer::build_image(content.path(), &file, options, |_| {}).unwrap();
    path
}

async fn a_root_of_sixty_four_layers(vm: Vm) {
    let directory = tempfile::tempdir().unwrap();
    let mut layers = Layers::of(layer_image());
    for number in 1..64 {
        layers = layers.layer(small_layer(&directory, &format!("layer{number}"), "x"));
    }
    let process = ProcessSpec::new(["sh", "-c", "ls / | grep -c layer; cat /top; echo w > /new"]);
    let container = vm.container(unique("many"), layers).process(process).create().await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "63\nlayer63\n");
    assert!(output.status.success());
    assert_eq!(mounted(&vm, "layer63").await, 1);
    container.delete().await.unwrap();
    assert_eq!(mounted(&vm, "layer63").await, 0);
}

async fn a_layer_that_fails_takes_nothing_with_it(vm: Vm) {
    let directory = tempfile::tempdir().unwrap();
    let name = &unique("good");
    let good = small_layer(&directory, name, "x");
    // A superblock that is believed, and nothing behind it that could be.
    let bad = directory.path().join("bad.ext4");
    let mut bytes = fs::read(&good).unwrap();
    bytes[2048..].fill(0xff);
    fs::write(&bad, bytes).unwrap();
    let layers = Layers::of(&good).layer(&bad);
    let error = vm.container(unique("half"), layers).create().await.unwrap_err();
    assert!(matches!(error, Error::Guest { .. }) && error.to_string().contains("mount"), "{error}");
    assert_eq!(mounted(&vm, name).await, 0);
    let layers = Layers::of(layer_image()).layer(&good);
    let process = ProcessSpec::new(["cat", "/top"]);
    let container = vm.container(unique("whole"), layers).process(process).create().await.unwrap();
    assert_eq!(mounted(&vm, name).await, 1);
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name}\n"));
    container.delete().await.unwrap();
    assert_eq!(mounted(&vm, name).await, 0);
}

async fn what_cannot_be_pinned_is_said_before_anything_is_attached(vm: Vm) {
    let root = "0".repeat(64);
    for (layers, part) in [
        (Layers::of(layer_image()).pin("abc"), "\"abc\" is not 64"),
        (Layers::of(layer_image()).pin(&root), "no hash tree"),
        (Layers::of(linkspan_tests::rootfs()).pin(&root), "root hash to pin"),
    ] {
        let error = vm.container(unique("unpinned"), layers).create().await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// A root file system with a hash tree and its superblock. Gives its path and root hash.
fn pinned_image(directory: &TempDir) -> (PathBuf, String, Value) {
    let path = directory.path().join("pinned.ext4");
    fs::copy(layer_image(), &path).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let info = append_tree(&file);
    (path, info["RootDigest"].as_str().unwrap().to_owned(), info)
}

async fn a_pinned_layer_runs_and_another_hash_is_refused(vm: Vm) {
    let directory = tempfile::tempdir().unwrap();
    let (path, root, _) = pinned_image(&directory);
    let process = ProcessSpec::new(["md5sum", "/bin/busybox"]);
    let layers = Layers::of(&path).pin(&root);
    let container = vm.container(unique("pin"), layers).process(process).create().await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    assert!(output.status.success(), "{output:?}");

    // The same file under another hash is another layer, and not this one.
    let other = format!("{}{}", if root.starts_with('0') { "1" } else { "0" }, &root[1..]);
    let error = vm.container(unique("other"), Layers::of(&path).pin(&other)).create().await;
    let text = error.unwrap_err().to_string();
    assert!(text.contains("do not match the root hash") && text.contains(&other), "{text}");
    container.delete().await.unwrap();
}

async fn a_flipped_byte_is_an_io_error_in_the_container(vm: Vm) {
    let directory = tempfile::tempdir().unwrap();
    let path = small_layer(&directory, "data", &"sixteen letters.".repeat(40 << 10));
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let root = append_tree(&file)["RootDigest"].as_str().unwrap().to_owned();
    let image = fs::read(&path).unwrap();
    let first = image.windows(16).position(|window| window == b"sixteen letters.").unwrap();
    let at = first + (300 << 10);
    file.write_all_at(&[image[at] ^ 0x10], at as u64).unwrap();

    let layers = Layers::of(vm.root()).layer(&path).pin(&root);
    let script = "cat /top; cat /data > /copy; echo $?; wc -c < /copy; tail -c 16 /data";
    let process = ProcessSpec::new(["sh", "-c", script]);
    let container = vm.container(unique("flip"), layers).process(process).create().await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    container.delete().await.unwrap();
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = said.lines().collect();
    assert_eq!((lines[0], lines[1], lines[3]), ("data", "1", "sixteen letters."), "{said}");
    let read: usize = lines[2].parse().unwrap();
    assert!(read <= 300 << 10, "{read} bytes were read, the wrong one among them");
    assert!(complaint.contains("Input/output error"), "{complaint}");
    let console = vm.vmm().console();
    assert!(console.contains("verity") && console.contains("is corrupted"), "{console}");
}

async fn an_agent_that_is_killed_leaves_no_devices() {
    let vm = Vm::own("devices", Backend::Qemu).await;
    let directory = tempfile::tempdir().unwrap();
    let (path, _, info) = pinned_image(&directory);
    let file = File::open(&path).unwrap();
    let size = file.metadata().unwrap().len();
    let address = ScsiAddress { controller: 3, lun: 9 };
    vm.vmm().attach_disk(address, Disk { file, size, read_only: true }).await.unwrap();
    let verity: VerityInfo = serde_json::from_value(info).unwrap();
    let disk = MappedVirtualDisk {
        mount_path: "/run/mounts/scsi/killed".to_owned(),
        controller: 3,
        lun: 9,
        read_only: true,
        verity_info: Some(verity),
        ..MappedVirtualDisk::default()
    };
    let add = ModifySettings::new(ModifyType::Add, disk.clone().into());
    vm.request(&ContainerId::uvm(), &add).await.unwrap();
    let look = async || {
        let script = "/bin/busybox grep -c killed /proc/mounts; for d in /sys/block/dm-*; do [ -e $d ] && echo device; done; true";
        let output = vm.command("/bin/busybox").args(["sh", "-c", script]).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(look().await, "1\ndevice\n");
    for agent in GuestState::agents(&vm).await.into_iter().filter(|&pid| pid != 1).take(1) {
        let kill = ["kill", "-9", &agent.to_string()].map(str::to_owned);
        // The answer to this one may be lost with the agent.
        let killed = vm.command("/bin/busybox").args(kill);
        let _ = tokio::time::timeout(std::time::Duration::from_secs(20), killed.status()).await;
    }
    assert_eq!(look().await, "0\n");
    vm.request(&ContainerId::uvm(), &add).await.unwrap();
    assert_eq!(look().await, "1\ndevice\n");
    let remove = ModifySettings::new(ModifyType::Remove, disk.into());
    vm.request(&ContainerId::uvm(), &remove).await.unwrap();
    let device = ScsiDevice { controller: 3, lun: 9 };
    let unplug = ModifySettings::new(ModifyType::Remove, device.into());
    vm.request(&ContainerId::uvm(), &unplug).await.unwrap();
    vm.vmm().detach_disk(address).await.unwrap();
    assert_eq!(look().await, "0\n");
    vm.terminate().await;
}

async fn layers_on_persistent_memory() {
    let uvm = machine("pmem", Backend::Qemu).pmem(3).start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // An image that fits; one that fits and is pinned; an archive, of which one is made; one more
    // than there is room for.
    let file = File::open(layer_image()).unwrap();
    let size = file.metadata().unwrap().len();
    fs::copy(layer_image(), path("base.ext4")).unwrap();
    let base = File::options().write(true).open(path("base.ext4")).unwrap();
    base.set_len(size.next_multiple_of(2 << 20)).unwrap();
    let pinned = small_layer(&directory, "pinned", "checked\n");
    let pinned_file = File::options().read(true).write(true).open(&pinned).unwrap();
    let root = append_tree(&pinned_file)["RootDigest"].as_str().unwrap().to_owned();
    pinned_file.set_len(2 << 20).unwrap();
    let content = tempfile::tempdir().unwrap();
    fs::write(content.path().join("archived"), "from an archive\n").unwrap();
    let archive = path("layer.tar");
    let mut builder = tar::Builder::new(File::create(&archive).unwrap());
    builder.append_dir_all(".", content.path()).unwrap();
    builder.finish().unwrap();
    let one_more = small_layer(&directory, "more", "on SCSI\n");

    let layers = || {
        let layers = Layers::of(path("base.ext4")).layer(&pinned).pin(&root);
        layers.layer(&archive).layer(&one_more)
    };
    for round in 0..2 {
        let process = ProcessSpec::new(["cat", "/pinned", "/archived", "/more"]);
        let container = uvm.container(unique("pmem"), layers()).process(process);
        let container = container.create().await.unwrap();
        let script = "/bin/busybox grep -c '/run/layers/p[0-9] ext4 ro' /proc/mounts; /bin/busybox ls /dev | /bin/busybox grep pmem";
        let output = uvm.command("/bin/busybox").args(["sh", "-c", script]).output().await.unwrap();
        let devices = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(devices, "3\npmem0\npmem1\npmem2\n", "round {round}");
        let child = container.start(Stdio::OUTPUT).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, "checked\nfrom an archive\non SCSI\n", "round {round}");
        container.delete().await.unwrap();
        // They stay, and are used again; nothing is mounted meanwhile.
        let left = "/bin/busybox grep -c '/run/layers/\\|/run/mounts/' /proc/mounts; true";
        let output = uvm.command("/bin/busybox").args(["sh", "-c", left]).output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n");
    }
    let other = format!("{}{}", if root.starts_with('0') { "1" } else { "0" }, &root[1..]);
    let refused = Layers::of(path("base.ext4")).layer(&pinned).pin(&other);
    let error = uvm.container("other", refused).create().await.unwrap_err().to_string();
    assert!(error.contains("do not match the root hash"), "{error}");

    // Parts of a piece, as hosts on Windows ask for them.
    // Layers come in any order; the base is the largest.
    let find =
        "for n in 0 1 2; do read s < /sys/block/pmem$n/size; [ $s -gt 4096 ] && echo $n; done";
    let output = uvm.command("/bin/busybox").args(["sh", "-c", find]).output().await.unwrap();
    let base: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    let part = |offset, size, path: &str| VpmemDevice {
        device_number: base,
        mount_path: path.to_owned(),
        mapping_info: Some(VpmemMapping {
            device_offset_in_bytes: offset,
            device_size_in_bytes: size,
        }),
        verity_info: None,
    };
    let modify = async |kind, device: VpmemDevice| {
        let request = ModifySettings::new(kind, device.into());
        uvm.request(&ContainerId::uvm(), &request).await
    };
    let whole = part(0, size, "/run/layers/part");
    modify(ModifyType::Add, whole.clone()).await.unwrap();
    let look = [
        "sh",
        "-c",
        "/bin/busybox cat /sys/block/dm-*/dm/name; /bin/busybox ls -d /run/layers/part/bin/busybox",
    ];
    let output = uvm.command("/bin/busybox").args(look).output().await.unwrap();
    let expected = format!("dm-linear-pmem{base}-0-{size}\n/run/layers/part/bin/busybox\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    modify(ModifyType::Remove, whole).await.unwrap();
    for (offset, size, part_of) in
        [(100, 4096, "DeviceOffsetInBytes: 100"), (0, 1 << 40, "DeviceSizeInBytes: 1099511627776")]
    {
        let error = modify(ModifyType::Add, part(offset, size, "/run/layers/bad")).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part_of), "{error}");
    }
    uvm.terminate().await;
}
