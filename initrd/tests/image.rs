//! Whole builds from small kernels made up here: no network, no real kernel.

mod support;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, process::Command};

use linkspan_initrd::{
    Category, Compression, Error, Event, ForeignAgent, ImageBuilder, KernelPackage, ModuleForm,
    Modules, Step,
};
use support::{CpioEntry, Packing, RELEASE, Scene, read_cpio};

fn plain<'k>(kernel: &'k KernelPackage, scene: &Scene) -> ImageBuilder<'k> {
    ImageBuilder::new(kernel, scene.agent())
        .modules(
            Modules::none().with("vsock").unwrap().with("storage").unwrap().with("erofs").unwrap(),
        )
        .compression(Compression::None)
}

fn built(scene: &Scene, builder: &ImageBuilder<'_>) -> BTreeMap<String, CpioEntry> {
    let image = builder.build(&scene.path("out"), &mut |_| {}).unwrap();
    read_cpio(&fs::read(image.initrd.path).unwrap()).into_iter().collect()
}

#[test]
fn the_archive_reads_back_as_what_went_in() {
    let scene = Scene::new();
    let extra = scene.write("tool", b"#!", 0o4711);
    let kernel = scene.tree();
    let builder = plain(&kernel, &scene).add(extra, "/opt/deep/tool".parse().unwrap());
    let entries = built(&scene, &builder);

    let init = &entries["init"];
    assert_eq!((init.mode, &init.data), (0o100755, &fs::read(scene.agent()).unwrap()));
    let link = &entries["bin/linkspan-guest"];
    assert_eq!((link.mode & 0o170000, link.data.as_slice()), (0o120000, b"/init".as_slice()));
    let console = &entries["dev/console"];
    assert_eq!((console.mode, console.rdev), (0o020600, (5, 1)));
    assert_eq!(entries["tmp"].mode, 0o041777);
    let tool = &entries["opt/deep/tool"];
    assert_eq!((tool.mode, tool.data.as_slice()), (0o104711, b"#!".as_slice()));
    assert_eq!(entries["opt/deep"].mode, 0o040755);
    assert!(!entries.contains_key("etc/linkspan/agent"));
    let inodes: Vec<u32> = entries.values().map(|entry| entry.ino).collect();
    let distinct: std::collections::BTreeSet<_> = inodes.iter().collect();
    assert_eq!(distinct.len(), inodes.len());
}

#[test]
fn debians_cpio_lists_the_archive() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let image = plain(&kernel, &scene).build(&scene.path("out"), &mut |_| {}).unwrap();
    let input = fs::File::open(&image.initrd.path).unwrap();
    let Ok(output) = Command::new("cpio").arg("-t").stdin(input).output() else {
        eprintln!("skipped: no cpio on this machine");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(Into::into).collect();
    let ours: Vec<String> = read_cpio(&fs::read(&image.initrd.path).unwrap())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(listed, ours);
}

#[test]
fn every_module_comes_after_what_it_needs_whatever_the_package() {
    for packing in [Packing::Tree, Packing::Plain, Packing::Gz, Packing::Xz, Packing::Zst] {
        let scene = Scene::new();
        let kernel = KernelPackage::open(&scene.package(packing)).unwrap();
        assert_eq!(kernel.release(), RELEASE);
        let entries = built(&scene, &plain(&kernel, &scene));
        let list = |group: &str| -> Vec<String> {
            let data = &entries[&format!("etc/linkspan/modules/{group}")].data;
            let text = String::from_utf8(data.clone()).unwrap();
            for path in text.lines() {
                assert!(entries.contains_key(&path[1..]), "{path} is listed but not there");
            }
            text.lines().map(|line| line.rsplit('/').next().unwrap().to_owned()).collect()
        };
        // virtio_pci is asked for first; vsock is a soft dependency; crc is built in.
        let vsock = ["virtio.ko", "virtio_pci.ko", "vsock.ko", "vmw_vsock_virtio_transport.ko"];
        assert_eq!(list("vsock"), vsock, "{packing:?}");
        assert_eq!(list("storage"), ["overlay.ko"], "{packing:?}");
        assert_eq!(list("erofs"), ["erofs.ko"], "{packing:?}");
    }
}

#[test]
fn a_module_is_stored_decompressed_and_in_the_form_asked_for() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let path = format!("lib/modules/{RELEASE}/overlay.ko");
    let lean = built(&scene, &plain(&kernel, &scene)).remove(&path).unwrap().data;
    let shipped = plain(&kernel, &scene).module_form(ModuleForm::AsShipped);
    let shipped = built(&scene, &shipped).remove(&path).unwrap().data;
    let has = |data: &[u8], text: &[u8]| data.windows(text.len()).any(|window| window == text);
    assert!(has(&shipped, b"~Module signature appended~") && has(&shipped, b".BTF"));
    assert!(!has(&lean, b"~Module signature appended~") && !has(&lean, b".BTF"));
    assert!(has(&lean, b"depends="));
    assert!(has(&lean, b"init_module"), "a global symbol is gone");
    assert!(has(&shipped, b"unused_local") && !has(&lean, b"unused_local"));
}

#[test]
fn equal_inputs_give_equal_bytes_wherever_and_whenever_they_lie() {
    let digest = |packing, umask: u32| {
        let scene = Scene::new();
        let extra = scene.write(&format!("extra-{umask}"), b"extra", 0o640);
        let package = scene.package(packing);
        scene.age(u64::from(umask) * 1_000_000);
        let kernel = KernelPackage::open(&package).unwrap();
        let image = plain(&kernel, &scene)
            .compression(Compression::Zstd(5))
            .add(extra, "/etc/extra".parse().unwrap())
            .build(&scene.path(&format!("out-{umask}")), &mut |_| {})
            .unwrap();
        (image.initrd.sha256, image.sizes)
    };
    let first = digest(Packing::Tree, 1);
    assert_eq!(first, digest(Packing::Xz, 700));
    assert_eq!(first, digest(Packing::Zst, 50));
}

#[test]
fn the_umask_does_not_reach_the_image() {
    // The umask belongs to the process, so the builds run in children that only differ in it.
    const CHILD: &str = "LINKSPAN_INITRD_TEST_OUT";
    if let Some(out) = std::env::var_os(CHILD) {
        let scene = Scene::new();
        let kernel = scene.tree();
        plain(&kernel, &scene).build(out.as_ref(), &mut |_| {}).unwrap();
        return;
    }
    let scene = Scene::new();
    let build = |umask: &str| {
        let out = scene.path(&format!("umask-{umask}"));
        let status = Command::new("sh")
            .args(["-c", "umask \"$0\" && exec \"$@\"", umask])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "the_umask_does_not_reach_the_image", "--quiet"])
            .env(CHILD, &out)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let initrd = out.join("initrd");
        (fs::read(&initrd).unwrap(), fs::metadata(initrd).unwrap().permissions().mode())
    };
    assert_eq!(build("0022"), build("0077"));
}

#[test]
fn the_date_asked_for_is_on_every_entry() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let entries = built(&scene, &plain(&kernel, &scene).mtime(1_700_000_000));
    assert!(entries.values().all(|entry| entry.mtime == 1_700_000_000));
    let entries = built(&scene, &plain(&kernel, &scene));
    assert!(entries.values().all(|entry| entry.mtime == 0));
}

#[test]
fn a_foreign_agent_comes_with_its_command_line() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let file = scene.write("gcs", &support::executable(None), 0o600);
    let foreign = ForeignAgent::new(file, vec!["-v4".into(), "two words".into()]).unwrap();
    let entries = built(&scene, &plain(&kernel, &scene).foreign_agent(foreign));
    assert_eq!(entries["etc/linkspan/agent"].data, b"/bin/gcs\n-v4\ntwo words\n");
    assert_eq!(entries["bin/gcs"].mode, 0o100755);
    assert!(!entries.contains_key("etc/linkspan/vmbus"));
}

#[test]
fn an_agent_that_wants_vmbus_names_is_noted() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let file = scene.write("gcs", &support::executable(None), 0o755);
    let foreign = ForeignAgent::new(file, Vec::new()).unwrap();
    let builder = plain(&kernel, &scene).foreign_agent(foreign).vmbus_compat(true);
    assert_eq!(built(&scene, &builder)["etc/linkspan/vmbus"].data, b"");
}

#[test]
fn a_dynamic_agent_is_refused_unless_its_interpreter_is_added() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let file = scene.write("gcs", &support::executable(Some("/lib64/ld.so")), 0o755);
    let foreign = ForeignAgent::new(&file, Vec::new()).unwrap();
    let builder = plain(&kernel, &scene).foreign_agent(foreign);
    let error = builder.build(&scene.path("none"), &mut |_| {}).unwrap_err();
    assert!(
        matches!(&error, Error::NeedsInterpreter { interpreter, .. } if interpreter == "/lib64/ld.so")
    );
    assert!(error.to_string().contains("--add"), "{error}");
    let loader = scene.write("ld.so", b"loader", 0o755);
    let entries = built(&scene, &builder.add(loader, "/lib64/ld.so".parse().unwrap()));
    assert!(entries.contains_key("bin/gcs"));
}

#[test]
fn the_size_table_accounts_for_every_byte() {
    let scene = Scene::new();
    let kernel = scene.tree();
    let image = plain(&kernel, &scene)
        .compression(Compression::Zstd(19))
        .build(&scene.path("out"), &mut |_| {})
        .unwrap();
    assert_eq!(image.sizes.compressed, image.initrd.bytes);
    let sum: u64 = image.sizes.rows.iter().map(|row| row.compressed).sum();
    let slack = image.sizes.rows.len() as u64;
    assert!(sum <= image.initrd.bytes && sum + slack >= image.initrd.bytes, "{sum}");
    let groups = image.sizes.by_category();
    assert!(groups.contains_key(&Category::Modules("vsock")));
    let text = image.sizes.to_string();
    for part in ["agent", "/init", "modules/storage", "overlay.ko", "total", "ratio"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn progress_reaches_each_announced_total() {
    let scene = Scene::new();
    let mut sums: BTreeMap<String, (Option<u64>, u64, bool)> = BTreeMap::new();
    let mut note = |event| match event {
        Event::Started { step, total } => {
            sums.insert(step.to_string(), (total, 0, false));
        }
        Event::Advanced { step, bytes } => sums.get_mut(&step.to_string()).unwrap().1 += bytes,
        Event::Finished { step } => sums.get_mut(&step.to_string()).unwrap().2 = true,
    };
    let kernel = KernelPackage::open_with(&scene.package(Packing::Xz), &mut note).unwrap();
    plain(&kernel, &scene).build(&scene.path("out"), &mut note).unwrap();
    for step in [Step::Unpack, Step::Modules, Step::Compress, Step::Write] {
        let (total, sum, finished) = sums[&step.to_string()];
        assert!(finished && sum > 0, "{step}");
        assert!(total.is_none_or(|total| total == sum), "{step}: {sum} of {total:?}");
    }
}
