//! What is run, as whom and where.

use linkspan_host::{ProgramProblem, Stdio};
use linkspan_tests::{Sandbox, Vm, on_both_backends};

on_both_backends!(
    exit_codes_are_the_programs,
    a_missing_program_is_told_from_one_that_cannot_run,
    an_init_that_is_missing_is_told_at_creation,
    an_unknown_user_is_named,
    users_are_resolved_in_the_container,
    environment_and_directory_are_as_given,
    a_missing_working_directory_is_an_error_that_names_it,
    external_programs_have_exactly_their_environment,
    ordinary_containers_cannot_harm_the_machine,
);

async fn exit_codes_are_the_programs(vm: Vm) {
    let sandbox = vm.sandbox("codes").await;
    for code in [0, 1, 3, 42, 125, 126, 127, 255] {
        let script = format!("exit {code}");
        let status = sandbox.command("sh").args(["-c", &script]).status().await.unwrap();
        assert_eq!(status.code(), code);
    }
    sandbox.remove().await;
}

async fn a_missing_program_is_told_from_one_that_cannot_run(vm: Vm) {
    let sandbox = vm.sandbox("missing").await;
    sandbox.text("echo data > /data; chmod 644 /data; echo junk > /junk; chmod 755 /junk").await;
    for (program, problem) in [
        ("no-such-program", ProgramProblem::NotFound),
        ("/no/such/program", ProgramProblem::NotFound),
        ("/data", ProgramProblem::NotExecutable),
        ("/junk", ProgramProblem::NotExecutable),
        ("/etc", ProgramProblem::NotExecutable),
    ] {
        let error = sandbox.command(program).status().await.unwrap_err();
        assert_eq!(error.program_problem(), Some(problem), "{program}: {error}");
        assert!(error.to_string().contains(program), "{error}");
    }
    assert_eq!(sandbox.text("echo works on").await, "works on");
    sandbox.remove().await;
}

async fn an_init_that_is_missing_is_told_at_creation(vm: Vm) {
    let error = vm.with_init("init", ["no-such-init"]).create().await;
    let error = match error {
        Err(error) => error,
        // A runtime may find out only when it is to run it.
        Ok(container) => {
            let error = container.start(Stdio::NULL).await.unwrap_err();
            container.delete().await.unwrap();
            error
        }
    };
    assert_eq!(error.program_problem(), Some(ProgramProblem::NotFound), "{error}");
    assert!(error.to_string().contains("no-such-init"), "{error}");
}

async fn an_unknown_user_is_named(vm: Vm) {
    let sandbox = vm.sandbox("nobody").await;
    let error = sandbox.command("true").user("no-such-user").status().await.unwrap_err();
    assert!(error.to_string().contains("no-such-user"), "{error}");
    assert_eq!(error.program_problem(), None, "{error}");
    let error = sandbox.command("true").user("root:no-such-group").status().await.unwrap_err();
    assert!(error.to_string().contains("no-such-group"), "{error}");
    sandbox.remove().await;
}

async fn users_are_resolved_in_the_container(vm: Vm) {
    let sandbox = vm.sandbox("users").await;
    sandbox
        .text(
            "echo 'site:x:3300:3400::/:/bin/sh' >> /etc/passwd; \
             echo 'site:x:3400:' >> /etc/group; echo 'logs:x:77:site' >> /etc/group",
        )
        .await;
    for (user, ids) in [
        ("site", "3300 3400"),
        ("3300", "3300 3400"),
        ("site:logs", "3300 77"),
        ("site:5", "3300 5"),
        ("1234", "1234 0"),
        ("1234:4321", "1234 4321"),
        ("root", "0 0"),
    ] {
        let script = ["-c", "echo $(id -u) $(id -g)"];
        let output = sandbox.command("sh").args(script).user(user).output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), ids, "user {user}");
    }
    sandbox.remove().await;
}

async fn environment_and_directory_are_as_given(vm: Vm) {
    let sandbox = vm.sandbox("environment").await;
    let command = sandbox.command("sh").args(["-c", "echo \"$A|$B|$PATH\"; pwd"]);
    let command = command.env("A", "x=y z").env("B", "ü").current_dir("/etc");
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (variables, directory) = text.split_once('\n').unwrap();
    assert!(variables.starts_with("x=y z|ü|/"), "{variables}");
    assert_eq!(directory, "/etc\n");
    sandbox.remove().await;
}

async fn a_missing_working_directory_is_an_error_that_names_it(vm: Vm) {
    let sandbox = vm.sandbox("directory").await;
    let error = sandbox.command("pwd").current_dir("/no/such/dir").status().await.unwrap_err();
    assert!(error.to_string().contains("/no/such/dir"), "{error}");
    sandbox.remove().await;
}

async fn external_programs_have_exactly_their_environment(vm: Vm) {
    let command = vm.command("/bin/busybox").arg("env").env("ONLY", "this");
    let output = command.output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ONLY=this\n");
    let status = vm.command("/bin/busybox").args(["sh", "-c", "exit 9"]).status().await.unwrap();
    assert_eq!(status.code(), 9);
    let error = vm.command("/no/such/program").status().await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}

async fn ordinary_containers_cannot_harm_the_machine(vm: Vm) {
    let sandbox = vm.sandbox("harmless").await;
    for script in [
        "mount -t tmpfs none /tmp",
        "echo b > /proc/sysrq-trigger",
        "hostname other",
        "for d in /sys/fs/cgroup /sys/fs/cgroup/pids; do \
         [ -e $d/cgroup.procs ] && mkdir $d/escape && exit 0; done; false",
    ] {
        refused(&sandbox, script).await;
    }
    let pids = sandbox.text("ls -d /proc/[0-9]* | wc -l").await;
    assert!(pids.parse::<u32>().unwrap() < 10, "it sees {pids} processes");
    sandbox.remove().await;
}

async fn refused(sandbox: &Sandbox, script: &str) {
    let output = sandbox.sh(script).await;
    assert!(!output.status.success(), "{script:?} is not refused");
}
