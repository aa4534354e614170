//! Pods, and what else a container's annotations ask of the guest.

use linkspan_protocol::{HResult, MessageType};
use linkspan_tests::raw::{Connection, document, with_connection};
use linkspan_tests::{Backend, unique};
use serde_json::{Value, json};

use super::wire_frames::conversations;

conversations!(
    a_workload_shares_its_sandboxes_namespaces_and_names,
    a_pods_directories_are_shared_and_go_with_it,
    what_makes_no_pod_is_refused_and_leaves_nothing,
    a_virtual_pod_has_a_root_of_its_own,
    a_sandbox_of_the_second_form_leaves_no_directory,
    a_denied_call_fails_in_a_container_and_in_its_execs,
    limits_and_shared_memory_follow_the_annotations,
    a_privileged_container_sees_the_machines_devices,
    an_init_s_output_is_also_in_the_pods_logs,
    hooks_run_around_the_container,
    names_of_an_image_are_resolved_inside_it,
    an_exec_has_no_more_capabilities_than_the_init,
);

const KIND: &str = "io.kubernetes.cri.container-type";
const POD: &str = "io.kubernetes.cri.sandbox-id";
const VIRTUAL: &str = "io.microsoft.cri.virtual-pod-id";
const SKIP: &str = "io.microsoft.cri.skip-pod-networking";

/// A sandbox's document; it needs no network.
fn sandbox(id: &str) -> Value {
    let mut document = document(id, &["sleep", "100000"]);
    document["OciSpecification"]["hostname"] = json!(format!("{id}.example"));
    document["OciSpecification"]["annotations"] = json!({KIND: "sandbox", SKIP: "true"});
    document
}

/// A workload's document.
fn workload(id: &str, pod: &str, args: &[&str]) -> Value {
    let mut document = document(id, args);
    document["OciSpecification"]["hostname"] = json!("");
    document["OciSpecification"]["annotations"] = json!({KIND: "container", POD: pod});
    document
}

/// What a shell prints in the utility VM.
async fn outside(connection: &mut Connection<'_>, script: &str) -> String {
    let finished = connection.external(&["/bin/busybox", "sh", "-c", script]).await;
    finished.stdout.trim_end().to_owned()
}

async fn a_workload_shares_its_sandboxes_namespaces_and_names(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, id) = (&unique("pod"), &unique("work"));
    let sandbox_pid = connection.start_from(pod, sandbox(pod)).await;
    let pid = connection.start_from(id, workload(id, pod, &["sleep", "100000"])).await;
    let inodes = |pid: u64| {
        format!("for n in net ipc uts pid mnt; do /bin/busybox readlink /proc/{pid}/ns/$n; done")
    };
    let theirs = outside(connection, &inodes(sandbox_pid)).await;
    let ours = outside(connection, &inodes(pid)).await;
    let (theirs, ours): (Vec<_>, Vec<_>) = (theirs.lines().collect(), ours.lines().collect());
    assert_eq!(theirs.len(), 5);
    assert_eq!(ours[..3], theirs[..3], "network, ipc and uts are the pod's");
    assert!(ours[3] != theirs[3] && ours[4] != theirs[4], "pid and mount are its own");
    let names = connection.shell(id, "cat /etc/hostname /etc/hosts; hostname").await;
    assert!(names.starts_with(&format!("{pod}.example\n127.0.0.1 localhost\n")), "{names}");
    assert!(names.contains(&format!("\n127.0.0.1 {pod}.example {pod}\n")), "{names}");
    assert!(names.ends_with(&format!("\n{pod}.example")), "{names}");
    let cgroup = outside(connection, &format!("/bin/busybox cat /proc/{pid}/cgroup")).await;
    assert!(cgroup.contains(&format!("/{pod}/{id}")), "{cgroup}");
    connection.end(id, pid).await;
    connection.end(pod, sandbox_pid).await;
    // Nothing but a new pod may use the id again.
    let answer = connection.create_from(id, workload(id, pod, &["true"])).await;
    answer.expect_fault(HResult::FAIL);
    let sandbox_pid = connection.start_from(pod, sandbox(pod)).await;
    connection.end(pod, sandbox_pid).await;
}

async fn a_pods_directories_are_shared_and_go_with_it(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, one, two) = (&unique("pod"), &unique("work"), &unique("work"));
    let sandbox_pid = connection.start_from(pod, sandbox(pod)).await;
    let with_mounts = |id: &str| {
        let mut document = workload(id, pod, &["sleep", "100000"]);
        let mounts = document["OciSpecification"]["mounts"].as_array_mut().unwrap();
        for (destination, source) in [
            ("/shared", "sandbox:///a/b"),
            ("/memory", "sandbox-tmp://m"),
            ("/outer", "uvm:///sys/kernel"),
        ] {
            mounts.push(json!({
                "destination": destination, "source": source, "type": "bind",
                "options": ["rbind", "rw"],
            }));
        }
        document
    };
    let first = connection.start_from(one, with_mounts(one)).await;
    let second = connection.start_from(two, with_mounts(two)).await;
    let wrote =
        connection.shell(one, "echo x > /shared/f; echo y > /memory/f; ls -d /outer/mm").await;
    assert_eq!(wrote, "/outer/mm");
    let read = connection.shell(two, "cat /shared/f /memory/f; stat -c %a /shared /memory").await;
    assert_eq!(read, "x\ny\n777\n777");
    let kinds = connection.shell(two, "stat -f -c %T /memory").await;
    assert_eq!(kinds, "tmpfs");
    // What a container links to is not followed out of the pod.
    connection.shell(one, "ln -s /etc /shared/out").await;
    let escaping = &unique("work");
    let mut document = workload(escaping, pod, &["true"]);
    document["OciSpecification"]["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/x", "source": "sandbox://a/b/out/made", "type": "bind",
        "options": ["bind"],
    }));
    connection.combine(escaping).await;
    let answer = connection.create_from(escaping, document).await;
    let made = outside(connection, "/bin/busybox ls -d /etc/made").await;
    assert_eq!(made, "", "the link was followed: {}", answer.body);
    let settings = json!({"ContainerRootPath": format!("/run/gcs/c/{escaping}/rootfs")});
    connection.modify("Remove", "CombinedLayers", settings).await.expect_success();
    if answer.result() == 0 {
        connection
            .call(MessageType::DELETE_CONTAINER_STATE, escaping, json!({}))
            .await
            .expect_success();
    }
    for name in ["sandboxMounts", "sandboxTmpfsMounts", "hugepages"] {
        let line = format!("/bin/busybox grep ' /run/gcs/c/{pod}/{name} ' /proc/self/mountinfo");
        let line = outside(connection, &line).await;
        assert!(line.contains(" shared:"), "{name}: {line}");
    }
    connection.end(one, first).await;
    connection.end(two, second).await;
    connection.end(pod, sandbox_pid).await;
    let left = format!("/bin/busybox grep -c {pod} /proc/self/mountinfo; ls -d /run/gcs/c/{pod}");
    assert_eq!(outside(connection, &left).await, "0");
}

async fn what_makes_no_pod_is_refused_and_leaves_nothing(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, id) = (&unique("pod"), &unique("work"));
    connection.combine(id).await;
    let orphan = workload(id, "nowhere", &["true"]);
    connection.create_from(id, orphan).await.expect_fault(HResult::FAIL);
    let mut nameless = workload(id, "", &["true"]);
    nameless["OciSpecification"]["annotations"] = json!({KIND: "container"});
    connection.create_from(id, nameless).await.expect_fault(HResult::FAIL);

    connection.combine(pod).await;
    let left = format!("ls /run/gcs/c/{pod}; /bin/busybox grep -c {pod} /proc/self/mountinfo");
    let before = outside(connection, &left).await;
    let mut unconnected = sandbox(pod);
    unconnected["OciSpecification"]["annotations"] = json!({KIND: "sandbox"});
    unconnected["OciSpecification"]["windows"] =
        json!({"network": {"networkNamespace": "11111111-0000-0000-0000-000000000000"}});
    connection.create_from(pod, unconnected).await.expect_fault(HResult::ELEMENT_NOT_FOUND);
    let mut missing = sandbox(pod);
    missing["OciSpecification"]["process"]["args"] = json!(["no-such-program"]);
    connection.create_from(pod, missing).await.expect_fault(HResult::FAIL);
    assert_eq!(outside(connection, &left).await, before, "only what the host made is left");

    let sandbox_pid = {
        connection.create_from(pod, sandbox(pod)).await.expect_success();
        connection.start(pod).await
    };
    let mut named = workload(id, pod, &["true"]);
    named["OciSpecification"]["hostname"] = json!("other");
    connection.create_from(id, named).await.expect_fault(HResult::FAIL);
    connection.create_from(id, workload(id, pod, &["true"])).await.expect_success();
    connection.delete(id).await.expect_success();
    connection.end(pod, sandbox_pid).await;
}

async fn a_virtual_pod_has_a_root_of_its_own(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, id) = (&unique("virtual"), &unique("work"));
    let mut document = sandbox(pod);
    document["OciSpecification"]["annotations"] =
        json!({KIND: "container", POD: "elsewhere", VIRTUAL: pod, SKIP: "TRUE"});
    let sandbox_pid = connection.start_from(pod, document).await;
    let mut document = workload(id, "elsewhere", &["sleep", "100000"]);
    document["OciSpecification"]["annotations"][VIRTUAL] = json!(pod);
    let pid = connection.start_from(id, document).await;
    assert_eq!(connection.shell(id, "cat /etc/hostname").await, format!("{pod}.example"));
    let root = format!("ls -d /run/gcs/c/virtual-pods/{pod}/hosts");
    assert_ne!(outside(connection, &root).await, "");
    connection.end(id, pid).await;
    connection.end(pod, sandbox_pid).await;
    assert_eq!(outside(connection, &format!("ls -d /run/gcs/c/virtual-pods/{pod}")).await, "");
}

async fn a_sandbox_of_the_second_form_leaves_no_directory(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, id) = (&unique("second"), &unique("work"));
    let mut pids = Vec::new();
    for (one, mut document) in [(pod, sandbox(pod)), (id, workload(id, pod, &["sleep", "100000"]))]
    {
        let bundle = format!("/run/gcs/pods/{pod}/{one}");
        document["OciBundlePath"] = json!(bundle);
        document["ScratchDirPath"] = json!(format!("/run/gcs/scratch/{pod}/{one}"));
        document["OciSpecification"]["root"]["path"] = json!(format!("{bundle}/rootfs"));
        let settings = json!({
            "ContainerRootPath": format!("{bundle}/rootfs"),
            "Layers": [{"Path": "/run/layers/base"}],
            "ScratchPath": format!("/run/gcs/scratch/{pod}/{one}"),
        });
        connection.modify("Add", "CombinedLayers", settings).await.expect_success();
        connection.create_from(one, document).await.expect_success();
        pids.push(connection.start(one).await);
    }
    assert_eq!(connection.shell(id, "cat /etc/hostname").await, format!("{pod}.example"));
    for (one, pid) in [(id, pids[1]), (pod, pids[0])] {
        connection.signal(one, pid, 9).await.expect_success();
        connection.wait(one, pid).await.expect_success();
        let settings = json!({"ContainerRootPath": format!("/run/gcs/pods/{pod}/{one}/rootfs")});
        connection.modify("Remove", "CombinedLayers", settings).await.expect_success();
        let answer = connection.call(MessageType::DELETE_CONTAINER_STATE, one, json!({})).await;
        answer.expect_success();
    }
    assert_eq!(outside(connection, &format!("ls -d /run/gcs/pods/{pod}")).await, "");
}

async fn a_denied_call_fails_in_a_container_and_in_its_execs(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let all = ["CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"];
    for no_new_privileges in [true, false] {
        let id = &unique("seccomp");
        let script = "mkdir /made; echo $?; chmod 700 /etc; echo $?; exec sleep 100000";
        let mut document = document(id, &["sh", "-c", script]);
        let spec = &mut document["OciSpecification"];
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        spec["process"]["capabilities"] =
            json!({"bounding": all, "effective": all, "permitted": all});
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{
                "names": ["mkdir", "mkdirat", "not_a_call"],
                "action": "SCMP_ACT_ERRNO", "errnoRet": 122,
            }],
        });
        connection.combine(id).await;
        connection.create_from(id, document).await.expect_success();
        let pid = connection.start(id).await;
        // The quota error is nobody else's.
        let script = "mkdir /made 2>&1; mkdir -m 700 /x 2>/dev/null || chmod 700 /etc && echo fine; \
                      grep -E '^(Seccomp|CapEff|CapBnd)' /proc/self/status";
        let text = connection.shell(id, script).await;
        assert!(text.contains("Quota exceeded") || text.contains("quota exceeded"), "{text}");
        assert!(text.contains("fine") && text.contains("Seccomp:\t2"), "{text}");
        assert!(text.contains("CapEff:\t000000000000000b"), "no capability is left over: {text}");
        let status = format!("/bin/busybox grep -E '^(Seccomp:|CapEff|NoNew)' /proc/{pid}/status");
        let status = outside(connection, &status).await;
        assert!(status.contains("Seccomp:\t2"), "the init: {status}");
        let privileges = format!("NoNewPrivs:\t{}", u8::from(no_new_privileges));
        assert!(status.contains(&privileges), "the init: {status}");
        assert!(status.contains("CapEff:\t000000000000000b"), "the init: {status}");
        connection.end(id, pid).await;
    }
    let id = &unique("seccomp");
    connection.combine(id).await;
    let mut document = document(id, &["true"]);
    document["OciSpecification"]["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_MAYBE"});
    let answer = connection.create_from(id, document).await;
    assert!(answer.result() != 0 && answer.body.to_string().contains("SCMP_ACT_MAYBE"));
}

async fn limits_and_shared_memory_follow_the_annotations(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, id) = (&unique("pod"), &unique("work"));
    let sandbox_pid = connection.start_from(pod, sandbox(pod)).await;
    let mut document = workload(id, pod, &["sleep", "100000"]);
    let annotations = &mut document["OciSpecification"]["annotations"];
    annotations["io.microsoft.lcow.rlimitcore"] = json!("4096;8192");
    annotations["io.microsoft.lcow.shm.size-kb"] = json!("2048");
    let pid = connection.start_from(id, document).await;
    let text = connection.shell(id, "grep core /proc/self/limits; df -k /dev/shm | tail -1").await;
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[..6], ["Max", "core", "file", "size", "4096", "8192"], "{text}");
    assert!(words.contains(&"2048"), "{text}");
    connection.end(id, pid).await;
    for (key, value, named) in [
        ("io.microsoft.lcow.rlimitcore", "1", "rlimit core"),
        ("io.microsoft.lcow.shm.size-kb", "0", "non-zero"),
        ("io.microsoft.lcow.shm.size-kb", "many", "many"),
    ] {
        let mut document = workload(id, pod, &["true"]);
        document["OciSpecification"]["annotations"][key] = json!(value);
        let answer = connection.create_from(id, document).await;
        answer.expect_fault(HResult::FAIL);
        assert!(answer.body.to_string().contains(named), "{}", answer.body);
    }
    connection.end(pod, sandbox_pid).await;
}

async fn a_privileged_container_sees_the_machines_devices(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("privileged");
    let mut document = document(id, &["sleep", "100000"]);
    document["OciSpecification"]["annotations"] =
        json!({"io.microsoft.virtualmachine.lcow.privileged": "true"});
    let pid = connection.start_from(id, document).await;
    let list = "find /dev -type b -o -type c | grep -v pts | sed 's,^/dev/,,' | sort";
    let inside = connection.shell(id, list).await;
    let all = outside(
        connection,
        "/bin/busybox find /dev -type b -o -type c | /bin/busybox grep -vE 'pts/|/console$|/ptmx$|/shm/|/fd/'",
    )
    .await;
    for device in all.lines().filter_map(|path| path.strip_prefix("/dev/")) {
        assert!(inside.lines().any(|line| line == device), "{device} is not in {inside}");
    }
    connection.end(id, pid).await;

    // What a container may use, not what it can make a node for, is decided by the machine.
    for (annotations, rules, opens) in [
        (json!({}), json!([]), false),
        (
            json!({}),
            json!([{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]),
            true,
        ),
        (json!({"io.microsoft.virtualmachine.lcow.privileged": "1"}), json!([]), true),
    ] {
        let id = &unique("devices");
        let mut document = linkspan_tests::raw::document(id, &["sleep", "100000"]);
        document["OciSpecification"]["annotations"] = annotations;
        document["OciSpecification"]["linux"]["resources"] = json!({"devices": rules});
        let pid = connection.start_from(id, document).await;
        let script = "mknod /own c 1 11; dd if=/own of=/dev/null count=0 2>&1; echo $?; echo x > /dev/null && echo fine";
        let text = connection.shell(id, script).await;
        let denied = text.contains("Operation not permitted");
        assert!(denied != opens && text.ends_with("fine"), "{opens}: {text}");
        connection.end(id, pid).await;
    }

    // One that is not privileged gets what its spec names, with the machine's numbers.
    let (pod, id) = (&unique("pod"), &unique("work"));
    let sandbox_pid = connection.start_from(pod, sandbox(pod)).await;
    let mut document = workload(id, pod, &["sleep", "100000"]);
    document["OciSpecification"]["linux"]["devices"] =
        json!([{"path": "/dev/kmsg", "type": "b", "major": 77, "minor": 77}]);
    let pid = connection.start_from(id, document).await;
    assert_eq!(
        connection.shell(id, "stat -c '%F %t %T' /dev/kmsg").await,
        "character special file 1 b"
    );
    connection.end(id, pid).await;
    let mut document = workload(id, pod, &["true"]);
    document["OciSpecification"]["linux"]["devices"] = json!([{"path": "/dev/nothing"}]);
    let answer = connection.create_from(id, document).await;
    assert!(answer.result() != 0 && answer.body.to_string().contains("/dev/nothing"));
    connection.end(pod, sandbox_pid).await;
}

async fn an_init_s_output_is_also_in_the_pods_logs(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, id, reader) = (&unique("pod"), &unique("work"), &unique("work"));
    let sandbox_pid = connection.start_from(pod, sandbox(pod)).await;
    let mut document =
        workload(id, pod, &["sh", "-c", "echo out; echo err >&2; exec sleep 100000"]);
    document["OciSpecification"]["annotations"]["io.microsoft.container.lcow.tee-log-path"] =
        json!("app/init.log");
    connection.combine(id).await;
    connection.create_from(id, document).await.expect_success();
    let ([port], [listener]) = connection.host().listen();
    let settings = linkspan_tests::raw::pipes(None, Some(port), None, json!({}));
    let answer = connection.call(MessageType::EXECUTE_PROCESS, id, settings).await;
    answer.expect_success();
    let pid = answer.body["ProcessId"].as_u64().unwrap();
    let (mut stdout, _) = listener.accept().await.expect("accept");
    assert_eq!(connection.shell(id, "echo from an exec").await, "from an exec");
    let mut document = workload(reader, pod, &["sleep", "100000"]);
    document["OciSpecification"]["annotations"]["io.microsoft.container.lcow.tee-log-dir-mount"] =
        json!("/var/log/pod");
    let reader_pid = connection.start_from(reader, document).await;
    connection.signal(id, pid, 9).await.expect_success();
    assert_eq!(linkspan_tests::raw::read_all(&mut stdout).await, "out\n");
    drop(stdout);
    connection.wait(id, pid).await.expect_success();
    let mut log = Vec::new();
    // Two threads write it: who is first is not said, and stderr has nobody who waits for it.
    for _ in 0..100 {
        let text = connection.shell(reader, "cat /var/log/pod/app/init.log").await;
        log = text.lines().map(str::to_owned).collect();
        log.sort();
        if log.len() == 2 {
            break;
        }
    }
    assert_eq!(log, ["err", "out"]);
    connection.delete(id).await.expect_success();
    let mut document = workload(id, pod, &["true"]);
    document["OciSpecification"]["annotations"]["io.microsoft.container.lcow.tee-log-path"] =
        json!("../../escape");
    let answer = connection.create_from(id, document).await;
    assert!(answer.result() != 0 && answer.body.to_string().contains("not within"));
    connection.end(reader, reader_pid).await;
    connection.end(pod, sandbox_pid).await;
}

async fn hooks_run_around_the_container(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("hooks");
    let mut document = document(id, &["sh", "-c", "cat /started; exec sleep 100000"]);
    let trace = format!("/run/gcs/hooks-{id}");
    let hook = |name: &str| {
        let script =
            format!("echo {name} $(/bin/busybox sed 's/.*\"id\":\"//;s/\".*//') >> {trace}");
        json!([{"path": "/bin/busybox", "args": ["busybox", "sh", "-c", script]}])
    };
    document["OciSpecification"]["hooks"] = json!({
        "createRuntime": hook("createRuntime"),
        "poststart": hook("poststart"),
        "poststop": hook("poststop"),
    });
    let pid = connection.start_from(id, document).await;
    let text = outside(connection, &format!("/bin/busybox cat {trace}")).await;
    assert_eq!(text, format!("createRuntime {id}\npoststart {id}"));
    connection.end(id, pid).await;
    let text =
        outside(connection, &format!("/bin/busybox cat {trace}; /bin/busybox rm {trace}")).await;
    assert_eq!(text, format!("createRuntime {id}\npoststart {id}\npoststop {id}"));

    // The agent's program is itself a hook, which puts the state into another's arguments.
    let agent = outside(connection, "/bin/busybox readlink /proc/1/exe").await;
    connection.combine(id).await;
    let mut document = linkspan_tests::raw::document(id, &["sleep", "100000"]);
    document["OciSpecification"]["annotations"] = json!({"test/word": "of annotation"});
    document["OciSpecification"]["hooks"] = json!({"createRuntime": [{
        "path": agent,
        "args": [
            "generichook", "/bin/busybox", "sh", "-c",
            "echo {{id}} {{pid}} {{annotation \"test/word\"}} $X > $TRACE",
        ],
        "env": ["X={{id}}", format!("TRACE={trace}")],
    }]});
    connection.create_from(id, document).await.expect_success();
    let pid = connection.start(id).await;
    let text =
        outside(connection, &format!("/bin/busybox cat {trace}; /bin/busybox rm {trace}")).await;
    assert_eq!(text, format!("{id} {pid} of annotation {id}"));
    connection.end(id, pid).await;

    connection.combine(id).await;
    let mut document = linkspan_tests::raw::document(id, &["true"]);
    document["OciSpecification"]["hooks"] =
        json!({"createRuntime": [{"path": "/bin/busybox", "args": ["busybox", "false"]}]});
    let answer = connection.create_from(id, document).await;
    answer.expect_fault(HResult::FAIL);
    connection.create_from(id, linkspan_tests::raw::document(id, &["true"])).await.expect_success();
    connection.delete(id).await.expect_success();
}

async fn names_of_an_image_are_resolved_inside_it(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("names");
    connection.combine(id).await;
    let root = format!("/run/gcs/c/{id}/rootfs");
    // The image's links lead to the machine's files, which know another user.
    let script = format!(
        "cd {root}/etc && /bin/busybox rm -f passwd && /bin/busybox ln -s /etc/../../run/own passwd; \
         echo 'who:x:4242:4243::/:/bin/sh' > {root}/run/own 2>/dev/null || \
         {{ /bin/busybox mkdir -p {root}/run; echo 'who:x:4242:4243::/:/bin/sh' > {root}/run/own; }}"
    );
    outside(connection, &script).await;
    let mut document = document(id, &["sleep", "100000"]);
    document["OciSpecification"]["process"]["user"] = json!({"username": "who"});
    connection.create_from(id, document).await.expect_success();
    let pid = connection.start(id).await;
    let ids =
        outside(connection, &format!("/bin/busybox grep -E '^[UG]id' /proc/{pid}/status")).await;
    assert!(ids.contains("Uid:\t4242\t") && ids.contains("Gid:\t4243\t"), "{ids}");
    connection.end(id, pid).await;
}

async fn an_exec_has_no_more_capabilities_than_the_init(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let id = &unique("capabilities");
    let mut document = document(id, &["sleep", "100000"]);
    let few = ["CAP_CHOWN"];
    document["OciSpecification"]["process"]["capabilities"] =
        json!({"bounding": few, "effective": few, "permitted": few});
    let pid = connection.start_from(id, document).await;
    let text = connection.shell(id, "grep -E '^Cap(Bnd|Eff)' /proc/self/status").await;
    assert_eq!(text, "CapEff:\t0000000000000001\nCapBnd:\t0000000000000001");
    connection.end(id, pid).await;
}
