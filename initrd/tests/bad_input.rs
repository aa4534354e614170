//! What is wrong with an input is said by name, and nothing is left behind.

mod support;

use std::{fs, path::Path};

use linkspan_initrd::{Error, ForeignAgent, ImageBuilder, KernelPackage, Modules};
use support::{Packing, RELEASE, Scene};

fn open_error(path: &Path) -> String {
    KernelPackage::open(path).unwrap_err().to_string()
}

fn build_error(scene: &Scene, builder: &ImageBuilder<'_>) -> String {
    let out = scene.path("out");
    let error = builder.build(&out, &mut |_| {}).unwrap_err();
    assert!(!out.exists(), "something was left behind");
    error.to_string()
}

#[test]
fn a_package_that_is_not_there_is_named() {
    let error = open_error(Path::new("/nowhere/linux.deb"));
    assert_eq!(error, "cannot read kernel package \"/nowhere/linux.deb\"");
}

#[test]
fn a_file_that_is_no_package_is_refused() {
    let scene = Scene::new();
    for (data, part) in [
        (b"".as_slice(), "is not a Debian package"),
        (b"hello, world".as_slice(), "is not a Debian package"),
        (b"!<arch>\n".as_slice(), "it is empty"),
    ] {
        let error = open_error(&scene.write("x.deb", data, 0o644));
        assert!(error.contains(part) && error.contains("x.deb"), "{error}");
    }
    let error = open_error(&scene.deb(&[("control.tar", Vec::new())]));
    assert!(error.contains("debian-binary"), "{error}");
    let version = ("debian-binary", b"2.0\n".to_vec());
    let error = open_error(&scene.deb(std::slice::from_ref(&version)));
    assert!(error.contains("it has no data.tar"), "{error}");
    let error = open_error(&scene.deb(&[version, ("data.tar.lzma", Vec::new())]));
    assert!(error.contains("data.tar.lzma"), "{error}");
}

#[test]
fn damage_inside_a_package_is_found() {
    let scene = Scene::new();
    for packing in [Packing::Xz, Packing::Zst, Packing::Gz] {
        let path = scene.package(packing);
        let whole = fs::read(&path).unwrap();
        let mut broken = whole.clone();
        let middle = broken.len() / 2;
        broken[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
        fs::write(&path, &broken).unwrap();
        let error = KernelPackage::open(&path).unwrap_err();
        assert!(matches!(error, Error::Unpack { .. }), "{packing:?} changed: {error}");
        fs::write(&path, &whole[..middle]).unwrap();
        let error = KernelPackage::open(&path).unwrap_err();
        assert!(matches!(error, Error::Unpack { .. }), "{packing:?} cut: {error}");
    }
}

#[test]
fn a_package_without_a_kernel_or_with_two_is_refused() {
    let scene = Scene::new();
    fs::create_dir(scene.path("empty")).unwrap();
    let error = open_error(&scene.path("empty"));
    assert!(error.contains("has no boot/vmlinuz-*"), "{error}");
    let tree = scene.package(Packing::Tree);
    fs::write(tree.join("boot/vmlinuz-7.0"), b"other").unwrap();
    let error = open_error(&tree);
    assert!(error.ends_with(&format!("several kernels: {RELEASE}, 7.0")), "{error}");
}

#[test]
fn a_module_the_kernel_lacks_is_named_with_who_wants_it() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let modules = Modules::none().with("share").unwrap();
    let builder = ImageBuilder::new(&kernel, scene.agent()).modules(modules);
    let error = build_error(&scene, &builder);
    assert!(error.contains("no module \"virtiofs\", wanted by group \"share\""), "{error}");

    fs::remove_file(scene.module_file("virtio")).unwrap();
    let kernel = scene.tree_as_is();
    let modules = Modules::none().with("vsock").unwrap();
    let error = build_error(&scene, &ImageBuilder::new(&kernel, scene.agent()).modules(modules));
    assert!(error.contains("\"virtio\", wanted by module \"virtio_pci\""), "{error}");
}

#[test]
fn a_module_that_is_no_module_is_named() {
    let scene = Scene::new();
    let kernel = scene.tree();
    fs::write(scene.module_file("overlay"), b"\xfd7zXZ\0garbage").unwrap();
    let modules = Modules::none().with("storage").unwrap();
    let builder = ImageBuilder::new(&kernel, scene.agent()).modules(modules.clone());
    let error = build_error(&scene, &builder);
    assert!(error.contains("overlay.ko"), "{error}");
    fs::write(scene.module_file("overlay"), b"plain text").unwrap();
    let error = build_error(&scene, &builder);
    assert!(error.contains("overlay.ko") && error.contains("not a 64-bit ELF"), "{error}");
}

#[test]
fn modules_that_need_each_other_are_refused() {
    let scene = Scene::new();
    scene.tree();
    fs::write(scene.module_file("overlay"), support::module("erofs", "")).unwrap();
    fs::write(scene.module_file("erofs"), support::module("overlay", "")).unwrap();
    let kernel = scene.tree_as_is();
    let modules = Modules::none().with("storage").unwrap();
    let builder = ImageBuilder::new(&kernel, scene.agent()).modules(modules);
    let error = build_error(&scene, &builder);
    assert!(error.contains("\"overlay\" needs itself through \"erofs\""), "{error}");
}

#[test]
fn an_unknown_group_is_answered_with_those_there_are() {
    let error = Modules::default().with("sound").unwrap_err().to_string();
    assert!(
        error.starts_with("unknown module group \"sound\"; there are vsock, virtio,"),
        "{error}"
    );
    assert!(Modules::default().without("sound").is_err());
}

#[test]
fn a_bad_addition_is_refused_with_its_value() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let builder = || ImageBuilder::new(&kernel, scene.agent()).modules(Modules::none());
    for (spec, part) in [
        ("no-colon", "file to add \"no-colon\" is not FILE:GUESTPATH"),
        (":/x", "is not FILE:GUESTPATH"),
        ("x:y", "guest path \"y\" is not absolute"),
        ("x:/a/../b", "guest path \"/a/../b\" has a . or .. component"),
    ] {
        let error = builder().add_spec(spec).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let file = scene.write("file", b"x", 0o644);
    let spec = |guest: &str| format!("{}:{guest}", file.display());
    for (builder, part) in [
        (builder().add_spec("/nowhere:/x").unwrap(), "cannot read file to add \"/nowhere\""),
        (builder().add_spec("/dev/null:/x").unwrap(), "\"/dev/null\" is not a regular file"),
        (builder().add_spec(&spec("/init")).unwrap(), "guest path /init is given twice"),
        (builder().add_spec(&spec("/init/x")).unwrap(), "/init"),
        (builder().add_spec(&spec("/dev/console")).unwrap(), "/dev/console is given twice"),
    ] {
        let error = build_error(&scene, &builder);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_agent_that_cannot_run_is_refused() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let builder = |path: &Path| ImageBuilder::new(&kernel, path).modules(Modules::none());
    let error = build_error(&scene, &builder(Path::new("/nowhere/agent")));
    assert_eq!(error, "cannot read agent \"/nowhere/agent\"");
    let script = scene.write("script", b"#!/bin/sh\n", 0o755);
    assert!(build_error(&scene, &builder(&script)).contains("not a 64-bit ELF file"));
    let object = scene.write("object", &support::module("", ""), 0o755);
    assert!(build_error(&scene, &builder(&object)).contains("not an executable"));
    let foreign = ForeignAgent::new(scene.agent(), vec!["a\nb".into()]).unwrap();
    let error = build_error(&scene, &builder(&scene.agent()).foreign_agent(foreign));
    assert!(error.contains("argument \"a\\nb\""), "{error}");
}

#[test]
fn a_kernel_that_is_no_bzimage_gives_no_vmlinux() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let builder = ImageBuilder::new(&kernel, scene.agent()).modules(Modules::none()).vmlinux(true);
    let error = build_error(&scene, &builder);
    assert!(error.contains("it is not an x86 bzImage"), "{error}");
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let out = scene.path("out");
    fs::create_dir_all(out.join("initrd/in-the-way")).unwrap();
    let builder = ImageBuilder::new(&kernel, scene.agent()).modules(Modules::none());
    let error = builder.build(&out, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("out/initrd"), "{error}");
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["initrd"]);
}
