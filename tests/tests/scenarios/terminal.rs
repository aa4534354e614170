//! Terminals.

use linkspan_host::{Child, ProcessSpec, Stdio};
use linkspan_tests::{Vm, on_both_backends};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

on_both_backends!(
    a_terminal_has_the_size_that_was_asked_for,
    a_resize_is_seen_by_the_program,
    all_output_of_a_terminal_is_stdout,
    an_init_can_have_a_terminal,
    control_c_on_a_terminal_interrupts_the_program,
    a_resize_without_a_terminal_is_refused,
);

async fn a_terminal_has_the_size_that_was_asked_for(vm: Vm) {
    let sandbox = vm.sandbox("size").await;
    let command = sandbox.command("sh").args(["-c", "stty size; tty; echo $TERM"]);
    let output = command.terminal(33, 101).spawn().await.unwrap().wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("33 101\r\n/dev/pts/"), "{text:?}");
    assert!(text.ends_with("xterm\r\n"), "{text:?}");
    sandbox.remove().await;
}

async fn a_resize_is_seen_by_the_program(vm: Vm) {
    let sandbox = vm.sandbox("resize").await;
    let script = "trap 'stty size; exit 8' WINCH; echo ready; while :; do sleep 0.05; done";
    let command = sandbox.command("sh").args(["-c", script]).terminal(24, 80);
    let mut shell = command.spawn().await.unwrap();
    expect(&mut shell, "ready\r\n").await;
    shell.handle().resize(50, 132).await.unwrap();
    let text = expect(&mut shell, "50 132\r\n").await;
    assert!(!text.contains("24 80"), "{text}");
    assert_eq!(shell.wait().await.unwrap().code(), 8);
    sandbox.remove().await;
}

async fn all_output_of_a_terminal_is_stdout(vm: Vm) {
    let sandbox = vm.sandbox("merged").await;
    let command = sandbox.command("sh").args(["-c", "echo out; echo err >&2; exit 3"]);
    let child = command.terminal(24, 80).spawn().await.unwrap();
    assert!(child.stderr.is_none());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\r\nerr\r\n");
    assert_eq!(output.status.code(), 3);
    sandbox.remove().await;
}

async fn an_init_can_have_a_terminal(vm: Vm) {
    let mut process = ProcessSpec::new(["sh", "-c", "stty size; read line; echo got $line"]);
    process.terminal = Some((40, 90));
    let container = vm.with_init("tty", ["x"]).process(process).create().await.unwrap();
    let mut init = container.start(Stdio::TERMINAL).await.unwrap();
    expect(&mut init, "40 90\r\n").await;
    init.stdin.as_mut().unwrap().write_all(b"typed\n").await.unwrap();
    expect(&mut init, "got typed\r\n").await;
    assert!(init.wait().await.unwrap().success());
    container.delete().await.unwrap();
}

async fn control_c_on_a_terminal_interrupts_the_program(vm: Vm) {
    let sandbox = vm.sandbox("interrupt").await;
    let command = sandbox.command("sh").args(["-c", "echo ready; exec sleep 1000"]);
    let mut child = command.terminal(24, 80).spawn().await.unwrap();
    expect(&mut child, "ready\r\n").await;
    child.stdin.as_mut().unwrap().write_all(&[3]).await.unwrap();
    let handle = child.handle().clone();
    assert_eq!(handle.wait().await.unwrap().code(), 130);
    sandbox.remove().await;
}

async fn a_resize_without_a_terminal_is_refused(vm: Vm) {
    let sandbox = vm.sandbox("no-tty").await;
    let error = sandbox.init.handle().resize(10, 10).await.unwrap_err();
    assert!(error.to_string().contains("terminal"), "{error}");
    sandbox.remove().await;
}

/// Reads until `text` has come; returns all that was read.
async fn expect(child: &mut Child, text: &str) -> String {
    let stdout = child.stdout.as_mut().expect("a terminal");
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(text) {
        let mut byte = [0; 1];
        let len = stdout.read(&mut byte).await.expect("read from the terminal");
        let seen = String::from_utf8_lossy(&all);
        assert!(len > 0, "the terminal ended without {text:?}, after {seen:?}");
        all.push(byte[0]);
    }
    String::from_utf8_lossy(&all).into_owned()
}
