//! Many at once.

use linkspan_host::Stdio;
use linkspan_tests::{Vm, on_both_backends};
use tokio::task::JoinSet;

on_both_backends!(
    thirty_processes_at_once_keep_their_output_and_codes,
    several_containers_are_made_at_once,
    all_who_wait_get_the_exit_code,
    a_wait_that_is_given_up_disturbs_nobody,
    pids_are_different_and_of_the_root_namespace,
);

async fn thirty_processes_at_once_keep_their_output_and_codes(vm: Vm) {
    let sandbox = vm.sandbox("many").await;
    let mut running = Vec::new();
    for number in 0..30 {
        let script = format!("cat; echo {number}; exit {number}");
        let command = sandbox.command("sh").args(["-c".to_owned(), script]);
        running.push(async move {
            let output = command.output().await.unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{number}\n"));
            assert_eq!(output.status.code(), number);
        });
    }
    join_all(running).await;
    sandbox.remove().await;
}

async fn several_containers_are_made_at_once(vm: Vm) {
    let mut running = JoinSet::new();
    for number in 0..6 {
        let vm = vm.clone();
        running.spawn(async move {
            let sandbox = vm.sandbox("parallel").await;
            sandbox.text(&format!("echo {number} > /own")).await;
            assert_eq!(sandbox.text("cat /own").await, number.to_string());
            sandbox.remove().await;
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

async fn all_who_wait_get_the_exit_code(vm: Vm) {
    let sandbox = vm.sandbox("waiters").await;
    let mut child = sandbox.command("sh").args(["-c", "read x; exit 11"]).spawn().await.unwrap();
    let mut waiting = JoinSet::new();
    for _ in 0..5 {
        let handle = child.handle().clone();
        waiting.spawn(async move { handle.wait().await.unwrap().code() });
    }
    drop(child.stdin.take());
    drop((child.stdout.take(), child.stderr.take()));
    while let Some(code) = waiting.join_next().await {
        assert_eq!(code.unwrap(), 11);
    }
    assert_eq!(child.handle().wait().await.unwrap().code(), 11);
    sandbox.remove().await;
}

async fn a_wait_that_is_given_up_disturbs_nobody(vm: Vm) {
    let sandbox = vm.sandbox("given-up").await;
    let sleep = sandbox.command("sleep").arg("1000").stdio(Stdio::NULL).spawn().await.unwrap();
    let soon = std::time::Duration::from_millis(50);
    assert!(tokio::time::timeout(soon, sleep.handle().wait()).await.is_err());
    sleep.handle().kill().await.unwrap();
    assert_eq!(sleep.wait().await.unwrap().code(), 137);
    sandbox.remove().await;
}

async fn pids_are_different_and_of_the_root_namespace(vm: Vm) {
    let sandbox = vm.sandbox("pids").await;
    let mut pids = vec![sandbox.init.pid()];
    let mut children = Vec::new();
    for _ in 0..4 {
        let child = sandbox.command("sleep").arg("1000").stdio(Stdio::NULL).spawn().await.unwrap();
        pids.push(child.pid());
        children.push(child);
    }
    for pid in &pids {
        let path = format!("/proc/{pid}/cmdline");
        let cat = vm.command("/bin/busybox").args(["cat", &path]).output().await.unwrap();
        assert!(cat.stdout.starts_with(b"sleep\0"), "{pid}: {cat:?}");
    }
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 5);
    sandbox.remove().await;
}

/// Drives all at once on this task.
async fn join_all(futures: Vec<impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    std::future::poll_fn(|cx| {
        for slot in &mut futures {
            if slot.as_mut().is_some_and(|future| future.as_mut().poll(cx).is_ready()) {
                *slot = None;
            }
        }
        match futures.iter().all(Option::is_none) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}
