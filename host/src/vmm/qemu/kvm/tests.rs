use super::*;

/// A program in QEMU's place. It finds its console's descriptor as QEMU does.
fn fake(directory: &Path, script: &str) -> PathBuf {
    let path = directory.join("qemu");
    let console = r#"fd=$(echo "$*" | sed 's/.*id=console,fd=\([0-9]*\).*/\1/')"#;
    let script = format!("#!/bin/bash\n{console}\n{script}\n");
    // Written by another process: a file that a fork of this one has open cannot be executed.
    let write = "printf %s \"$1\" > \"$2\" && chmod +x \"$2\"";
    let mut shell = std::process::Command::new("sh");
    let status = shell.args(["-c", write, "sh", &script]).arg(&path).status().unwrap();
    assert!(status.success());
    path
}

async fn verdict_on(script: &str, speaking: u64, whole_boot: u64) -> (Verdict, bool) {
    let directory = tempfile::tempdir().unwrap();
    let qemu = fake(directory.path(), script);
    let (speaking, whole_boot) =
        (Duration::from_millis(speaking), Duration::from_millis(whole_boot));
    let kernel = Path::new("/kernel");
    probe(&qemu, kernel, Accelerator::Kvm, speaking, whole_boot).await.unwrap()
}

#[tokio::test]
async fn a_kernel_that_panics_for_want_of_a_root_works() {
    let script = "echo 'Linux version 6' >&$fd; echo 'Kernel panic - not syncing: VFS' >&$fd";
    let (verdict, conclusive) = verdict_on(script, 20_000, 20_000).await;
    assert!(verdict.works && conclusive, "{verdict:?}");
}

#[tokio::test]
async fn a_silent_kernel_does_not_work() {
    let (verdict, conclusive) =
        verdict_on("echo Probing EDD >&$fd; exec sleep 1000", 100, 20_000).await;
    assert!(!verdict.works && conclusive && verdict.reason.contains("said nothing"), "{verdict:?}");
}

#[tokio::test]
async fn a_kernel_that_gets_stuck_does_not_work() {
    let (verdict, conclusive) =
        verdict_on("echo Linux version 6 >&$fd; exec sleep 1000", 20_000, 100).await;
    assert!(!verdict.works && conclusive && verdict.reason.contains("stuck"), "{verdict:?}");
}

#[tokio::test]
async fn a_qemu_that_fails_does_not_work_and_says_why() {
    let (verdict, conclusive) =
        verdict_on("echo 'no such thing' >&2; exit 1", 20_000, 20_000).await;
    assert!(
        !verdict.works && !conclusive && verdict.reason.contains("no such thing"),
        "{verdict:?}"
    );
}
