//! A container from creation to deletion.

use linkspan_host::protocol::HResult;
use linkspan_host::{Error, Layers, ProcessSpec, Stdio};
use linkspan_tests::{Vm, on_both_backends, unique};

on_both_backends!(
    an_inits_output_and_exit_code_arrive,
    signals_end_processes_with_128_and_the_signal,
    a_container_can_be_stopped_from_outside,
    an_exec_after_the_inits_exit_is_refused,
    a_running_container_is_ended_by_its_deletion,
    a_second_start_is_refused_without_harm,
    an_id_is_taken_until_its_container_is_deleted,
    bad_ids_and_empty_commands_are_named,
    a_hostname_and_the_files_that_tell_it,
    properties_tell_of_processes_and_their_use,
);

async fn an_inits_output_and_exit_code_arrive(vm: Vm) {
    for code in [0, 3, 255] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let container = vm.with_init("init", ["sh", "-c", &script]).create().await.unwrap();
        let output =
            container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), code);
        assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
        container.exited().await.unwrap();
        container.delete().await.unwrap();
    }
}

async fn signals_end_processes_with_128_and_the_signal(vm: Vm) {
    let sandbox = vm.sandbox("signals").await;
    let sleep = || sandbox.command("sleep").arg("1000").stdio(Stdio::NULL).spawn();
    let killed = sleep().await.unwrap();
    assert!(killed.handle().kill().await.unwrap());
    let status = killed.handle().wait().await.unwrap();
    assert_eq!((status.code(), status.signal()), (137, Some(9)));
    assert!(!killed.handle().kill().await.unwrap(), "an exited process cannot be signalled");

    let terminated = sleep().await.unwrap();
    assert!(terminated.handle().signal(15).await.unwrap());
    assert_eq!(terminated.wait().await.unwrap().code(), 143);

    // An init is not spared by the kernel's protection of first processes.
    assert!(sandbox.init.handle().kill().await.unwrap());
    assert_eq!(sandbox.init.handle().wait().await.unwrap().code(), 137);
    sandbox.remove().await;
}

async fn a_container_can_be_stopped_from_outside(vm: Vm) {
    let init = ["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"];
    let container = vm.with_init("stop", init).create().await.unwrap();
    let mut child = container.start(Stdio::OUTPUT).await.unwrap();
    let mut ready = [0; 6];
    use tokio::io::AsyncReadExt;
    child.stdout.as_mut().unwrap().read_exact(&mut ready).await.unwrap();
    container.shut_down().await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), 7);
    container.shut_down().await.expect("one that has ended is no error");
    container.terminate().await.expect("one that has ended is no error");
    container.delete().await.unwrap();

    let sandbox = vm.sandbox("terminate").await;
    sandbox.terminate().await.unwrap();
    assert_eq!(sandbox.init.handle().wait().await.unwrap().code(), 137);
    sandbox.remove().await;
}

async fn an_exec_after_the_inits_exit_is_refused(vm: Vm) {
    let container = vm.with_init("gone", ["true"]).create().await.unwrap();
    let init = container.start(Stdio::NULL).await.unwrap();
    assert!(init.handle().wait().await.unwrap().success());
    let error = container.command("true").status().await.unwrap_err();
    assert_eq!(error.code(), Some(HResult::SYSTEM_ALREADY_STOPPED), "{error}");
    assert!(error.to_string().contains(container.id()), "{error}");
    // What is asked again is answered again.
    assert!(init.wait().await.unwrap().success());
    container.delete().await.unwrap();
}

async fn a_running_container_is_ended_by_its_deletion(vm: Vm) {
    let id = unique("busy");
    let layers = Layers::of(vm.root());
    let builder = vm.container(&id, layers).process(ProcessSpec::new(["sleep", "1000"]));
    let container = builder.create().await.unwrap();
    let init = container.start(Stdio::NULL).await.unwrap();

    container.delete().await.expect("a running container is ended, then deleted");
    assert_eq!(init.wait().await.unwrap().code(), 137);
    let again = vm.container(&id, Layers::of(vm.root())).process(ProcessSpec::new(["true"]));
    again.create().await.expect("its id is free").delete().await.unwrap();
}

async fn a_second_start_is_refused_without_harm(vm: Vm) {
    let sandbox = vm.sandbox("twice").await;
    let error = sandbox.start(Stdio::NULL).await.unwrap_err();
    assert!(matches!(error, Error::Guest { .. }), "{error}");
    assert!(error.to_string().contains(sandbox.id()), "{error}");
    assert_eq!(sandbox.text("echo works on").await, "works on");
    sandbox.remove().await;
}

async fn an_id_is_taken_until_its_container_is_deleted(vm: Vm) {
    let sandbox = vm.sandbox("taken").await;
    let again = vm.container(sandbox.id(), Layers::of(vm.root())).create().await;
    let error = again.expect_err("the id is taken");
    assert!(error.to_string().contains(sandbox.id()), "{error}");
    assert_eq!(sandbox.text("echo works on").await, "works on");
    assert_eq!(sandbox.text("cat /etc/passwd | head -n 1 | cut -d: -f1").await, "root");
    sandbox.remove().await;
}

async fn bad_ids_and_empty_commands_are_named(vm: Vm) {
    for id in ["", "..", "a/b", "a b", &"x".repeat(65)] {
        let error = vm.container(id, Layers::of(vm.root())).create().await.unwrap_err();
        assert!(error.to_string().contains(&format!("{id:?}")), "{error}");
        assert!(error.to_string().contains("container id"), "{error}");
    }
    let none: [&str; 0] = [];
    let error = vm.with_init("empty", none).create().await.unwrap_err();
    assert!(error.to_string().starts_with("args"), "{error}");
}

async fn a_hostname_and_the_files_that_tell_it(vm: Vm) {
    let init = ["sh", "-c", "hostname; cat /etc/hostname; grep -c named /etc/hosts"];
    let container = vm.with_init("host", init).hostname("named.example").create().await.unwrap();
    let output = container.start(Stdio::OUTPUT).await.unwrap().wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "named.example\nnamed.example\n1\n");
    container.delete().await.unwrap();
}

async fn properties_tell_of_processes_and_their_use(vm: Vm) {
    let sandbox = vm.sandbox("properties").await;
    let other = sandbox.command("sleep").arg("1000").stdio(Stdio::NULL).spawn().await.unwrap();
    let processes = sandbox.processes().await.unwrap();
    assert!(processes.contains(&sandbox.init.pid()), "{processes:?}");
    assert!(processes.contains(&other.pid()), "{processes:?}");
    let statistics = sandbox.statistics().await.unwrap();
    let text = format!("{statistics:?}");
    assert!(text.contains("usage"), "{text}");
    sandbox.remove().await;
    // The kernel has ended it together with its pid namespace.
    assert_eq!(other.wait().await.unwrap().code(), 137);
}
