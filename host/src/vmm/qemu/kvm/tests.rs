use std::os::unix::fs::PermissionsExt;

use super::*;

/// A program in QEMU's place. It finds its console's descriptor as QEMU does.
fn fake(directory: &Path, script: &str) -> PathBuf {
    let path = directory.join("qemu");
    let console = r#"fd=$(echo "$*" | sed 's/.*id=console,fd=\([0-9]*\).*/\1/')"#;
    std::fs::write(&path, format!("#!/bin/bash\n{console}\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

async fn verdict_on(script: &str, first_word: u64, whole_boot: u64) -> Verdict {
    let directory = tempfile::tempdir().unwrap();
    let qemu = fake(directory.path(), script);
    let (first_word, whole_boot) =
        (Duration::from_millis(first_word), Duration::from_millis(whole_boot));
    let kernel = Path::new("/kernel");
    probe(&qemu, kernel, Accelerator::Kvm, first_word, whole_boot).await.unwrap()
}

#[tokio::test]
async fn a_kernel_that_panics_for_want_of_a_root_works() {
    let script = "echo 'Kernel panic - not syncing: VFS' >&$fd";
    let verdict = verdict_on(script, 20_000, 20_000).await;
    assert!(verdict.works, "{verdict:?}");
}

#[tokio::test]
async fn a_silent_kernel_does_not_work() {
    let verdict = verdict_on("exec sleep 1000", 100, 20_000).await;
    assert!(!verdict.works && verdict.reason.contains("said nothing"), "{verdict:?}");
}

#[tokio::test]
async fn a_kernel_that_gets_stuck_does_not_work() {
    let verdict = verdict_on("echo booting >&$fd; exec sleep 1000", 20_000, 100).await;
    assert!(!verdict.works && verdict.reason.contains("stuck"), "{verdict:?}");
}

#[tokio::test]
async fn a_qemu_that_fails_does_not_work_and_says_why() {
    let verdict = verdict_on("echo 'no such thing' >&2; exit 1", 20_000, 20_000).await;
    assert!(!verdict.works && verdict.reason.contains("no such thing"), "{verdict:?}");
}
