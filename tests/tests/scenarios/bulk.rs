//! A gibibyte each way, checked to the last byte.

use std::process::Stdio as HostStdio;

use linkspan_host::Stdio;
use linkspan_tests::{Sandbox, Vm, on_both_backends};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

on_both_backends!(big_output_of_a_gibibyte_is_exact, big_input_of_a_gibibyte_is_exact);

/// Blocks in a gibibyte.
const BLOCKS: u32 = 1024;

/// A block without repetition; in the stream each is preceded by its number, so that one that is
/// lost, doubled or moved shows.
fn block() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..1 << 20).map(|_| next()).collect()
}

fn number(index: u32) -> String {
    format!("{index:07}\n")
}

/// Brings the block to the container as `/block`.
async fn place(sandbox: &Sandbox, block: &[u8]) {
    let mut child = sandbox.command("sh").args(["-c", "cat > /block"]).spawn().await.unwrap();
    child.stdin.take().unwrap().write_all(block).await.unwrap();
    assert!(child.wait().await.unwrap().success());
}

async fn big_output_of_a_gibibyte_is_exact(vm: Vm) {
    let sandbox = vm.sandbox("output").await;
    let block = block();
    place(&sandbox, &block).await;
    let script = format!(
        "i=0; while [ $i -lt {BLOCKS} ]; do printf '%07d\\n' $i; cat /block; i=$((i+1)); done"
    );
    let command = sandbox.command("sh").args(["-c".to_owned(), script]).stdio(Stdio::OUTPUT);
    let begun = std::time::Instant::now();
    let mut child = command.spawn().await.unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (mut head, mut body) = ([0; 8], vec![0; block.len()]);
    for index in 0..BLOCKS {
        stdout.read_exact(&mut head).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&head), number(index));
        stdout.read_exact(&mut body).await.unwrap();
        assert!(body == block, "block {index} has changed");
    }
    assert_eq!(stdout.read(&mut head).await.unwrap(), 0, "there is more than was written");
    drop(stdout);
    assert!(child.wait().await.unwrap().success());
    println!("stdout: {:.0} MiB/s", f64::from(BLOCKS) / begun.elapsed().as_secs_f64());
    sandbox.remove().await;
}

async fn big_input_of_a_gibibyte_is_exact(vm: Vm) {
    let sandbox = vm.sandbox("input").await;
    let block = block();
    let mut there = sandbox.command("md5sum").spawn().await.unwrap();
    let here = Command::new("md5sum").stdin(HostStdio::piped()).stdout(HostStdio::piped()).spawn();
    let mut here = here.expect("md5sum runs on this host");
    let (mut theirs, mut ours) = (there.stdin.take().unwrap(), here.stdin.take().unwrap());
    let begun = std::time::Instant::now();
    for index in 0..BLOCKS {
        let head = number(index);
        for bytes in [head.as_bytes(), &block] {
            let (sent, summed) = tokio::join!(theirs.write_all(bytes), ours.write_all(bytes));
            sent.unwrap();
            summed.unwrap();
        }
    }
    drop((theirs, ours));
    let theirs = there.wait_with_output().await.unwrap();
    let ours = here.wait_with_output().await.unwrap();
    println!("stdin: {:.0} MiB/s", f64::from(BLOCKS) / begun.elapsed().as_secs_f64());
    assert!(theirs.status.success());
    assert_eq!(String::from_utf8_lossy(&theirs.stdout), String::from_utf8_lossy(&ours.stdout));
    sandbox.remove().await;
}
