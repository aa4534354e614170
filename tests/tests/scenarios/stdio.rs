//! Bytes to and from processes.

use std::time::{Duration, Instant};

use linkspan_host::Stdio;
use linkspan_tests::{Vm, on_both_backends};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

on_both_backends!(
    stdout_and_stderr_are_kept_apart,
    a_half_closed_stdin_is_the_end_of_input,
    without_a_stdin_input_ends_at_once,
    output_is_complete_before_the_exit,
    binary_data_comes_back_unchanged,
    a_process_may_close_its_output_early,
    a_reader_that_leaves_breaks_the_writers_pipe,
    a_child_in_the_background_does_not_hold_the_exit_for_ever,
    an_unread_output_does_not_block_other_processes,
    input_that_nobody_reads_ends_with_the_process,
    a_stopped_reader_holds_the_writer_back_and_loses_nothing,
);

async fn stdout_and_stderr_are_kept_apart(vm: Vm) {
    let sandbox = vm.sandbox("apart").await;
    let script = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let output = sandbox.sh(script).await;
    let lines = |word: &str| (0..500).map(|i| format!("{word} {i}\n")).collect::<String>();
    assert!(output.stdout == lines("out").as_bytes(), "stdout is mixed up");
    assert!(output.stderr == lines("err").as_bytes(), "stderr is mixed up");
    sandbox.remove().await;
}

async fn a_half_closed_stdin_is_the_end_of_input(vm: Vm) {
    let sandbox = vm.sandbox("eof").await;
    let mut wc = sandbox.command("wc").arg("-c").spawn().await.unwrap();
    let mut stdin = wc.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    AsyncWriteExt::shutdown(&mut stdin).await.unwrap();
    // Still open: only the half-close can be what ends the input.
    let output = wc.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "5");
    drop(stdin);
    sandbox.remove().await;
}

async fn without_a_stdin_input_ends_at_once(vm: Vm) {
    let sandbox = vm.sandbox("null").await;
    let output = sandbox.command("wc").arg("-c").stdio(Stdio::OUTPUT).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
    let container = vm.with_init("null", ["wc", "-c"]).create().await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
    container.delete().await.unwrap();
    sandbox.remove().await;
}

async fn output_is_complete_before_the_exit(vm: Vm) {
    let sandbox = vm.sandbox("complete").await;
    for round in 0..10 {
        let script = "dd if=/dev/zero bs=64k count=32 2>/dev/null; echo end >&2";
        let output = sandbox.sh(script).await;
        assert_eq!(output.stdout.len(), 2 << 20, "round {round}");
        assert_eq!(output.stderr, b"end\n", "round {round}");
    }
    sandbox.remove().await;
}

async fn binary_data_comes_back_unchanged(vm: Vm) {
    let sandbox = vm.sandbox("binary").await;
    let data = noise(50 << 20);
    let mut cat = sandbox.command("cat").spawn().await.unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    let sent = data.clone();
    let writer = tokio::spawn(async move { stdin.write_all(&sent).await });
    let output = cat.wait_with_output().await.unwrap();
    writer.await.unwrap().unwrap();
    assert!(output.stdout == data, "{} bytes came back, or others", output.stdout.len());
    assert!(output.status.success() && output.stderr.is_empty());
    sandbox.remove().await;
}

/// All byte values in no order that repeats soon.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

async fn a_process_may_close_its_output_early(vm: Vm) {
    let sandbox = vm.sandbox("closes").await;
    let script = "echo last; exec >&- 2>&-; read line; exit 4";
    let mut child = sandbox.command("sh").args(["-c", script]).spawn().await.unwrap();
    let mut text = String::new();
    child.stdout.as_mut().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "last\n");
    // Its output has ended; it has not.
    let status = timeout(Duration::from_millis(300), child.handle().wait()).await;
    assert!(status.is_err(), "its exit is told before it exits");
    child.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), 4);
    sandbox.remove().await;
}

async fn a_reader_that_leaves_breaks_the_writers_pipe(vm: Vm) {
    let sandbox = vm.sandbox("epipe").await;
    let only_stdout = Stdio { stdin: false, stdout: true, stderr: false };
    let mut yes = sandbox.command("yes").stdio(only_stdout).spawn().await.unwrap();
    let mut some = [0; 100_000];
    yes.stdout.as_mut().unwrap().read_exact(&mut some).await.unwrap();
    drop(yes.stdout.take());
    let status = timeout(Duration::from_secs(20), yes.handle().wait()).await;
    let status = status.expect("a writer whose reader has left ends").unwrap();
    // By the signal, or by its own word where the signal is ignored.
    assert!([141, 1].contains(&status.code()), "{status}");
    sandbox.remove().await;
}

async fn a_child_in_the_background_does_not_hold_the_exit_for_ever(vm: Vm) {
    let sandbox = vm.sandbox("background").await;
    let begun = Instant::now();
    let script = "sleep 1000 & echo started; exit 5";
    let shell = sandbox.command("sh").args(["-c", script]).spawn().await.unwrap();
    let output = timeout(Duration::from_secs(60), shell.wait_with_output()).await;
    let output = output.expect("the exit is told while the child lives").unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (5, &b"started\n"[..]));
    assert!(begun.elapsed() >= Duration::from_secs(5), "its output could still have come");
    sandbox.remove().await;
}

async fn an_unread_output_does_not_block_other_processes(vm: Vm) {
    let sandbox = vm.sandbox("unread").await;
    let unread = sandbox.command("yes").spawn().await.unwrap();
    for _ in 0..5 {
        assert_eq!(sandbox.text("echo through").await, "through");
    }
    assert!(unread.handle().kill().await.unwrap());
    assert_eq!(unread.wait().await.unwrap().code(), 137);
    sandbox.remove().await;
}

async fn input_that_nobody_reads_ends_with_the_process(vm: Vm) {
    let sandbox = vm.sandbox("unreadable").await;
    let mut child = sandbox.command("sh").args(["-c", "exit 6"]).spawn().await.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let block = vec![0; 1 << 20];
    let written = timeout(Duration::from_secs(30), async {
        loop {
            if let Err(error) = stdin.write_all(&block).await {
                return error;
            }
        }
    });
    let (error, output) = tokio::join!(written, child.wait_with_output());
    error.expect("writing to an exited process fails");
    assert_eq!(output.unwrap().status.code(), 6);
    sandbox.remove().await;
}

async fn a_stopped_reader_holds_the_writer_back_and_loses_nothing(vm: Vm) {
    let sandbox = vm.sandbox("backpressure").await;
    let script = "dd if=/dev/zero bs=1M count=64 2>/dev/null; echo written >&2";
    let mut child = sandbox.command("sh").args(["-c", script]).spawn().await.unwrap();
    let mut word = [0; 8];
    let early =
        timeout(Duration::from_secs(2), child.stderr.as_mut().unwrap().read_exact(&mut word));
    assert!(early.await.is_err(), "64 MiB went somewhere while nobody read them");
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.stdout.len(), &*output.stderr), (64 << 20, &b"written\n"[..]));
    sandbox.remove().await;
}
