//! What a container's root can be made of.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use linkspan_host::{Error, Layers, ProcessSpec, Stdio};
use linkspan_tests::{Vm, on_both_backends, rootfs, unique};
use tempfile::TempDir;

on_both_backends!(
    a_directory_is_a_layer,
    a_tar_archive_is_a_layer,
    a_compressed_archive_is_a_layer,
    an_ext4_image_is_a_layer,
    a_vhd_is_a_layer,
    an_upper_layer_hides_what_it_replaces,
    writes_stay_in_their_container,
    a_layer_that_cannot_be_used_is_named,
    a_scratch_disk_has_the_size_that_was_asked_for,
);

async fn a_directory_is_a_layer(vm: Vm) {
    shows_the_root(&vm, rootfs()).await;
}

async fn a_tar_archive_is_a_layer(vm: Vm) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rootfs.tar");
    archive(&rootfs(), File::create(&path).unwrap());
    shows_the_root(&vm, path).await;
}

async fn a_compressed_archive_is_a_layer(vm: Vm) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rootfs.tar.gz");
    let gzip = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
    archive(&rootfs(), gzip).finish().unwrap();
    shows_the_root(&vm, path).await;
}

async fn an_ext4_image_is_a_layer(vm: Vm) {
    let (_directory, path, _) = ext4_image();
    shows_the_root(&vm, path).await;
}

async fn a_vhd_is_a_layer(vm: Vm) {
    let (_directory, path, file) = ext4_image();
    linkspan_layer::vhd::append_footer(&file, [7; 16]).unwrap();
    shows_the_root(&vm, path).await;
}

fn archive<W: Write>(root: &Path, out: W) -> W {
    let mut builder = tar::Builder::new(out);
    builder.follow_symlinks(false);
    builder.append_dir_all(".", root).unwrap();
    builder.into_inner().unwrap()
}

fn ext4_image() -> (TempDir, PathBuf, File) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rootfs.ext4");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let options = linkspan_layer::Options::default();
    linkspan_layer::build_image(&rootfs(), &file, options, |_| {}).unwrap();
    (directory, path, file)
}

/// The same files, modes, owners and links as in the directory that it was made of.
async fn shows_the_root(vm: &Vm, layer: PathBuf) {
    let list = "cd /; md5sum bin/busybox; readlink bin/sh; stat -c '%n %a %u %g %F' bin etc tmp \
                bin/busybox bin/sh etc/passwd; cat etc/passwd; ls bin | md5sum";
    let process = ProcessSpec::new(["sh", "-c", list]);
    let container = vm.container(unique("layer"), Layers::of(layer)).process(process);
    let container = container.create().await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    container.delete().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let here = std::process::Command::new("/bin/busybox")
        .args(["sh", "-c", &list.replacen("cd /", "cd \"$ROOT\"", 1)])
        .env("ROOT", rootfs())
        .output()
        .unwrap();
    assert!(here.status.success());
    let (there, here) =
        [&output.stdout, &here.stdout].map(|text| String::from_utf8_lossy(text)).into();
    assert_eq!(there, here);
}

async fn an_upper_layer_hides_what_it_replaces(vm: Vm) {
    let upper = tempfile::tempdir().unwrap();
    fs::create_dir(upper.path().join("etc")).unwrap();
    fs::write(upper.path().join("etc/passwd"), "changed\n").unwrap();
    fs::write(upper.path().join("added"), "new\n").unwrap();
    let layers = Layers::of(vm.root()).layer(upper.path());
    let process = ProcessSpec::new(["sh", "-c", "cat /etc/passwd /added; ls /bin/busybox"]);
    let container = vm.container(unique("upper"), layers).process(process).create().await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    container.delete().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "changed\nnew\n/bin/busybox\n");
}

async fn writes_stay_in_their_container(vm: Vm) {
    let (one, two) = tokio::join!(vm.sandbox("one"), vm.sandbox("two"));
    one.text(
        "echo mine > /mine; echo gone >> /etc/passwd; rm /bin/busybox.none 2>/dev/null; rm -r /tmp",
    )
    .await;
    assert_eq!(
        two.text("ls -d /tmp; grep -c gone /etc/passwd || true; ls / | grep -c mine || true").await,
        "/tmp\n0\n0"
    );
    assert!(!rootfs().join("mine").exists() && rootfs().join("tmp").exists());
    one.remove().await;
    two.remove().await;
    let three = vm.sandbox("three").await;
    assert_eq!(three.text("ls / | grep -c mine || true").await, "0");
    three.remove().await;
}

async fn a_layer_that_cannot_be_used_is_named(vm: Vm) {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let mut whole = archive(&rootfs(), Vec::new());
    let cut = file("cut.tar", &whole[..whole.len() / 2]);
    whole[512 * 3 + 148] ^= 0x55;
    let corrupt = file("corrupt.tar", &whole);
    let mut gzip =
        archive(&rootfs(), GzEncoder::new(Vec::new(), Compression::fast())).finish().unwrap();
    gzip.truncate(gzip.len() / 2);
    let cut_gzip = file("cut.tar.gz", &gzip);
    let text = file("notes.txt", b"no file system at all\n");
    let empty = file("empty", b"");
    let missing = directory.path().join("missing");
    for path in [cut, corrupt, cut_gzip, text, empty, missing] {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let error = vm.container(unique("bad"), Layers::of(&path)).create().await;
        let error = error.expect_err(&name);
        assert!(matches!(error, Error::Layer { .. } | Error::Io { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(&name), "{error}");
    }
    // Nothing of all that is in the way.
    let sandbox = vm.sandbox("after").await;
    sandbox.remove().await;
}

async fn a_scratch_disk_has_the_size_that_was_asked_for(vm: Vm) {
    let layers = Layers::of(vm.root()).scratch_mib(64);
    let script = "dd if=/dev/zero of=/fill bs=1M count=100; echo $?; rm /fill; dd if=/dev/zero of=/fill bs=1M count=20 && echo fits";
    let process = ProcessSpec::new(["sh", "-c", script]);
    let container = vm.container(unique("small"), layers).process(process).create().await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    container.delete().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\nfits\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"));

    let none = Layers::of(vm.root()).scratch_mib(1);
    let error = vm.container(unique("tiny"), none).create().await.unwrap_err();
    assert!(error.to_string().contains("1 MiB"), "{error}");
}
