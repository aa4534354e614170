//! Machines that do not come up: what is said, how soon, and that nothing stays.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use linkspan_host::{Backend, Error, UtilityVm};
use linkspan_tests::{block_on, image, machine};
use tempfile::TempDir;

/// Tests that are about one backend only.
macro_rules! alone {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            block_on(async { inner::$name().await });
        })*
    };
}

alone!(
    a_kernel_that_never_connects_is_told_with_its_phase_and_console,
    a_kernel_without_init_is_told_with_its_panic,
    a_kernel_that_is_no_kernel_is_told,
    boot_files_that_are_missing_are_named,
    a_missing_qemu_is_named,
    impossible_sizes_are_named_with_their_bounds,
    a_missing_agent_is_named,
    qemu_that_dies_ends_everything_with_a_reason,
    two_machines_at_once_do_not_disturb_each_other,
    little_memory_and_one_processor_are_enough,
);

fn kernel() -> PathBuf {
    image().join("vmlinuz")
}

/// Fails to boot within the given time; the message.
async fn failure(builder: linkspan_host::Builder, within: Duration) -> (Error, String) {
    let begun = Instant::now();
    let error = builder.start().await.expect_err("such a machine cannot come up");
    assert!(begun.elapsed() < within, "it took {:?}", begun.elapsed());
    let text = chain(&error);
    println!("{text}");
    (error, text)
}

/// A message with its causes, as people get to see it.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// An initrd with one program as `/init`, busybox acting by that name.
fn initrd_with_init(script: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("initrd");
    let mut archive = Vec::new();
    let busybox = fs::read(linkspan_tests::rootfs().join("bin/busybox")).unwrap();
    let script = format!("#!/busybox sh\n{script}\n");
    let directories = ["dev", "proc"];
    for (ino, name) in (1..).zip(directories) {
        let entry = cpio::newc::Builder::new(name).mode(0o040_755).nlink(2).ino(ino);
        entry.write(&mut archive, 0).finish().unwrap();
    }
    let console = cpio::newc::Builder::new("dev/console").mode(0o020_600).ino(9).nlink(1);
    console.rdev_major(5).rdev_minor(1).write(&mut archive, 0).finish().unwrap();
    for (ino, name, data) in [(10, "busybox", &busybox[..]), (11, "init", script.as_bytes())] {
        let entry = cpio::newc::Builder::new(name).mode(0o100_755).nlink(1).ino(ino);
        let mut writer = entry.write(&mut archive, u32::try_from(data.len()).unwrap());
        std::io::Write::write_all(&mut writer, data).unwrap();
        writer.finish().unwrap();
    }
    cpio::newc::trailer(&mut archive).unwrap();
    fs::write(&path, archive).unwrap();
    (directory, path)
}

mod inner {
    use super::*;

    pub(super) async fn a_kernel_that_never_connects_is_told_with_its_phase_and_console() {
        let (_directory, initrd) =
            initrd_with_init("echo here is a stranger\nwhile :; do /busybox sleep 1; done");
        let builder = machine("deaf", Backend::Qemu).initrd(initrd);
        let builder = builder.boot_timeout(Duration::from_secs(20));
        let (error, text) = failure(builder, Duration::from_secs(28)).await;
        assert!(matches!(error, Error::Boot { .. }), "{error:?}");
        assert!(text.contains("deaf") && text.contains("20 s"), "{text}");
        assert!(text.contains("here is a stranger"), "the console's end is missing: {text}");
        assert!(text.contains("it hung in: "), "the phase is missing: {text}");
    }

    pub(super) async fn a_kernel_without_init_is_told_with_its_panic() {
        let directory = tempfile::tempdir().unwrap();
        let initrd = directory.path().join("initrd");
        fs::write(&initrd, b"").unwrap();
        let builder = machine("rootless", Backend::Qemu).initrd(initrd);
        let builder = builder.boot_timeout(Duration::from_secs(40));
        // Long before the deadline: a machine that has ended will not come up any more.
        let (error, text) = failure(builder, Duration::from_secs(30)).await;
        assert!(matches!(error, Error::Boot { .. }), "{error:?}");
        assert!(text.contains("Kernel panic"), "{text}");
    }

    pub(super) async fn a_kernel_that_is_no_kernel_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let garbage = directory.path().join("garbage");
        fs::write(&garbage, vec![0x5a; 1 << 20]).unwrap();
        let builder = machine("garbage", Backend::Qemu).kernel(&garbage);
        let builder = builder.boot_timeout(Duration::from_secs(10));
        let (_, text) = failure(builder, Duration::from_secs(15)).await;
        assert!(text.contains("garbage"), "{text}");
    }

    pub(super) async fn boot_files_that_are_missing_are_named() {
        for (builder, named) in [
            (machine("m", Backend::Qemu).kernel("/no/such/kernel"), "/no/such/kernel"),
            (machine("m", Backend::Qemu).initrd("/no/such/initrd"), "/no/such/initrd"),
            (UtilityVm::builder("m").initrd("/i").backend(Backend::Qemu), "kernel"),
            (UtilityVm::builder("m").kernel(kernel()).backend(Backend::Qemu), "initrd"),
            (UtilityVm::builder("m").image("/no/such/image"), "/no/such/image"),
        ] {
            let (_, text) = failure(builder, Duration::from_secs(5)).await;
            assert!(text.contains(named), "{named}: {text}");
        }
    }

    pub(super) async fn a_missing_qemu_is_named() {
        for path in ["/no/such/qemu", "/etc/passwd"] {
            let builder = machine("m", Backend::Qemu).qemu(path);
            let (_, text) = failure(builder, Duration::from_secs(5)).await;
            assert!(text.contains(path), "{text}");
        }
        let (_, text) =
            failure(machine("m", Backend::Qemu).qemu("/bin/false"), Duration::from_secs(15)).await;
        assert!(text.contains("QEMU") && text.contains("code 1"), "{text}");
    }

    pub(super) async fn impossible_sizes_are_named_with_their_bounds() {
        for (builder, value, bound) in [
            (machine("m", Backend::Qemu).memory_mib(1), "1 MiB", "64"),
            (machine("m", Backend::Qemu).cpus(0), "0 processors", "255"),
            (machine("m", Backend::Qemu).cpus(1000), "1000 processors", "255"),
        ] {
            let (_, text) = failure(builder, Duration::from_secs(5)).await;
            assert!(text.contains(value) && text.contains(bound), "{text}");
        }
    }

    pub(super) async fn a_missing_agent_is_named() {
        let builder = machine("m", Backend::Loopback).agent("/no/such/agent");
        let (_, text) = failure(builder, Duration::from_secs(5)).await;
        assert!(text.contains("/no/such/agent"), "{text}");
        let builder = machine("m", Backend::Loopback).agent("/bin/false");
        let (_, text) = failure(builder, Duration::from_secs(5)).await;
        assert!(text.contains("ended"), "{text}");
    }

    pub(super) async fn qemu_that_dies_ends_everything_with_a_reason() {
        let uvm = machine("dies", Backend::Qemu).start().await.unwrap();
        let pid = linkspan_tests::pid_in(&uvm.vmm().describe());
        let wait = uvm.command("/bin/busybox").args(["sleep", "1000"]).spawn().await.unwrap();
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let error = tokio::time::timeout(Duration::from_secs(5), wait.wait()).await;
        let error = error.expect("a wait does not outlive its machine").unwrap_err();
        assert!(chain(&error).contains("signal"), "{error}");
        let exit = uvm.exited().await;
        assert!(!exit.clean && exit.reason.contains("signal"), "{exit:?}");
        let error = uvm.dump_stacks().await.unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        uvm.terminate().await;
    }

    pub(super) async fn two_machines_at_once_do_not_disturb_each_other() {
        let (one, two) = tokio::join!(
            machine("one", Backend::Qemu).start(),
            machine("two", Backend::Qemu).start()
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        one.terminate().await;
        let echo = two.command("/bin/busybox").args(["echo", "here"]).output().await.unwrap();
        assert_eq!(echo.stdout, b"here\n");
        two.terminate().await;
    }

    pub(super) async fn little_memory_and_one_processor_are_enough() {
        let builder = machine("small", Backend::Qemu).memory_mib(192).cpus(1);
        let uvm = builder.start().await.unwrap();
        let nproc = uvm.command("/bin/busybox").arg("nproc").output().await.unwrap();
        assert_eq!(nproc.stdout, b"1\n");
        uvm.terminate().await;
    }
}
