//! What the agent does for whoever operates it: its log, the kernel's messages, its programs, the
//! machine's end.

use std::time::Duration;

use hyperv_socket::{Listener, Stream};
use linkspan_protocol::{HResult, MessageType, UVM_ID};
use linkspan_tests::raw::{Connection, RawHost};
use linkspan_tests::{Backend, block_on, machine, on_both_backends};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

on_both_backends!(alone:
    the_log_outlives_its_connection_line_by_line,
    a_reader_that_sleeps_holds_nothing_up,
);

const LOG: u32 = 109;
const LONG: Duration = Duration::from_secs(60);

type Log = tokio::io::Lines<BufReader<Stream>>;

async fn accept(listener: &Listener) -> Log {
    let (stream, _) = timeout(LONG, listener.accept()).await.expect("the agent dials").unwrap();
    BufReader::new(stream).lines()
}

/// The next line that has this message. All on the way to it must be in the form that hosts parse.
async fn line_with(log: &mut Log, message: &str) -> Value {
    loop {
        let line =
            timeout(LONG, log.next_line()).await.unwrap_or_else(|_| panic!("no {message:?}"));
        let line = line.unwrap().unwrap_or_else(|| panic!("the log ends before {message:?}"));
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        let level = line["level"].as_str().unwrap_or_default();
        assert!(["trace", "debug", "info", "warning", "error"].contains(&level), "{line}");
        if line["msg"].as_str().expect("a message") == message {
            return line;
        }
    }
}

async fn fail_once(connection: &mut Connection<'_>, target: &str) {
    let answer = connection.call(MessageType::GET_PROPERTIES, target, json!({})).await;
    answer.expect_fault(HResult::SYSTEM_NOT_FOUND);
}

async fn the_log_outlives_its_connection_line_by_line(backend: Backend) {
    let builder = machine("log", backend).log_level("info").agent_arg("-log-port=109");
    let (mut host, [listener]) = RawHost::boot(builder, [LOG]).await;
    let mut log = accept(&listener).await;
    let mut connection = host.connect().await;
    connection.negotiate().await;
    line_with(&mut log, "connected to the host").await;
    fail_once(&mut connection, "first").await;
    let line = line_with(&mut log, "request failed").await;
    assert_eq!((&line["level"], &line["target"]), (&"warning".into(), &"first".into()));
    assert_eq!(line["message_type"], "GetProperties", "{line}");

    // It goes, and comes back later: what was said meanwhile is not lost.
    drop(log);
    drop(listener);
    for target in ["second", "third", "fourth"] {
        fail_once(&mut connection, target).await;
    }
    let listener = connection.host().listen_on(LOG);
    let mut log = accept(&listener).await;
    let mut targets = Vec::new();
    while targets.last().is_none_or(|target| target != "fourth") {
        targets.push(line_with(&mut log, "request failed").await["target"].clone());
    }
    // The kernel took the line after which it learnt of the end.
    assert!(targets.ends_with(&["third".into(), "fourth".into()]), "{targets:?}");
}

async fn a_reader_that_sleeps_holds_nothing_up(backend: Backend) {
    let builder = machine("sleeps", backend).log_level("info").agent_arg("-log-port=109");
    let (mut host, [listener]) = RawHost::boot(builder, [LOG]).await;
    let mut log = accept(&listener).await;
    let mut connection = host.connect().await;
    connection.negotiate().await;
    let long = "x".repeat(4000);
    for _ in 0..400 {
        fail_once(&mut connection, &long).await;
    }
    let lost = line_with(&mut log, "log lines were lost").await;
    assert!(lost["count"].as_u64().is_some_and(|count| count > 0 && count < 400), "{lost}");
    fail_once(&mut connection, "after").await;
    assert_eq!(line_with(&mut log, "request failed").await["target"], "after");
}

/// The kernel's command line as hosts write it: everything behind the two dashes is for the first
/// process.
#[test]
fn a_foreign_host_s_kernel_command_line_boots_our_agent() {
    block_on(async {
        let mut builder = machine("foreign-line", Backend::Qemu);
        let line = "-- -e 1 /bin/vsockexec -e 109 /bin/gcs -v4 -log-format json -loglevel info";
        for word in line.split(' ') {
            builder = builder.kernel_arg(word);
        }
        let (mut host, [entropy, listener]) = RawHost::boot(builder, [1, LOG]).await;
        let (mut stream, _) = timeout(LONG, entropy.accept()).await.expect("it asks").unwrap();
        stream.write_all(&[0x5a; 512]).await.unwrap();
        drop(stream);
        let mut log = accept(&listener).await;
        let mut connection = host.connect().await;
        connection.negotiate().await;
        line_with(&mut log, "connected to the host").await;
        // No hypervisor's clock under emulation: that is said, and nothing worse.
        let clock = "no clock of a hypervisor: the time may drift away from the host's";
        assert_eq!(line_with(&mut log, clock).await["level"], "warning");

        let say = "echo '<3>a probe; of ours' > /dev/kmsg; echo '<6>too low' > /dev/kmsg";
        run(&mut connection, &["/bin/busybox", "sh", "-c", say]).await;
        let kernel = loop {
            let line = line_with(&mut log, "kmsg read").await;
            assert_ne!(line["message"], "too low");
            if line["message"] == "a probe; of ours" {
                break line;
            }
        };
        assert_eq!((&kernel["priority"], &kernel["facility"]), (&"Err".into(), &1.into()));
        assert!(kernel["seq"].is_u64() && kernel["timesincebootmicro"].is_u64(), "{kernel}");

        let ([out], [listener]) = connection.host().listen();
        let port = out.to_string();
        let args =
            ["/bin/vsockexec", "-r", "-o", &port, "/bin/busybox", "sh", "-c", "echo hi; exit 3"];
        let code = run(&mut connection, &args).await;
        let (mut stream, _) = timeout(LONG, listener.accept()).await.expect("it dials").unwrap();
        assert_eq!(linkspan_tests::raw::read_all(&mut stream).await, "hi\n");
        assert_eq!(code, 3);
        let args = ["/bin/vsockexec", "-o", &port, "/bin/busybox", "true"];
        drop(listener);
        assert_eq!(run(&mut connection, &args).await, 1, "nobody listens");
    });
}

/// What init leaves to those after it.
#[test]
fn a_machine_is_as_hosts_expect_it() {
    block_on(async {
        let mut builder = machine("expected", Backend::Qemu);
        let line = "-- -w /bin/gcs -v4 -core-dump-location /run/core.%p";
        for word in line.split(' ') {
            builder = builder.kernel_arg(word);
        }
        let (mut host, []) = RawHost::boot(builder, []).await;
        host.map_base().await;
        let mut connection = host.connect().await;
        connection.negotiate().await;
        let script = async |connection: &mut Connection<'_>, script: &str| {
            let script =
                format!("for c in awk cat cp; do alias $c=\"/bin/busybox $c\"; done\n{script}");
            connection.external(&["/bin/busybox", "sh", "-c", &script]).await.stdout
        };
        assert_eq!(script(&mut connection, "ulimit -Sn; ulimit -Hn").await, "1024\n1048576\n");
        assert_eq!(
            script(&mut connection, "cat /proc/sys/kernel/core_pattern").await,
            "/run/core.%p\n"
        );
        let c = "/sys/fs/cgroup/cgroup";
        let controllers = script(&mut connection, &format!("cat {c}.controllers")).await;
        assert!(controllers.contains("memory") && controllers.contains("pids"), "{controllers}");
        assert_eq!(script(&mut connection, &format!("cat {c}.subtree_control")).await, controllers);
        let mounts = script(&mut connection, "awk '{print $2, $3, $4}' /proc/mounts").await;
        for (path, kind, flags) in [
            ("/dev", "devtmpfs", "nosuid noexec"),
            ("/proc", "proc", "nosuid nodev noexec"),
            ("/sys", "sysfs", "nosuid nodev noexec"),
            ("/run", "tmpfs", "nosuid nodev noexec mode=755"),
            ("/tmp", "tmpfs", "nosuid nodev noexec"),
            ("/dev/shm", "tmpfs", "nosuid nodev noexec"),
            ("/dev/pts", "devpts", "nosuid noexec"),
            ("/etc", "overlay", "nosuid nodev noexec"),
            ("/var", "overlay", "nosuid nodev"),
            ("/run/layers/base", "ext4", "ro norecovery"),
        ] {
            let found =
                mounts.lines().find_map(|line| line.strip_prefix(&format!("{path} {kind} ")));
            let found = found.unwrap_or_else(|| panic!("no {kind} at {path}: {mounts}"));
            for flag in flags.split(' ') {
                assert!(found.split(',').any(|word| word == flag), "{path} {flag}: {found}");
            }
        }
        let tried =
            "for d in /etc /var; do cp /bin/busybox $d/true; $d/true; echo $d $?; done 2>/dev/null";
        assert_eq!(script(&mut connection, tried).await, "/etc 126\n/var 0\n");
    });
}

async fn run(connection: &mut Connection<'_>, args: &[&str]) -> u64 {
    let run = connection.run(UVM_ID, json!({"CommandArgs": args})).await;
    run.code
}

#[test]
fn a_host_switches_the_machine_off_without_an_answer() {
    block_on(async {
        for message in [MessageType::SHUTDOWN_GRACEFUL, MessageType::SHUTDOWN_FORCED] {
            let (mut host, []) = RawHost::boot(machine("off", Backend::Qemu), []).await;
            let mut connection = host.connect().await;
            connection.negotiate().await;
            let id = connection.post(message, UVM_ID, json!({})).await;
            let answered = timeout(LONG, connection.answer_or_end(id)).await.expect("an end");
            assert!(answered.is_none(), "{answered:?}");
            let exit = timeout(LONG, host.vmm().exited()).await.expect("the machine goes off");
            assert!(exit.clean, "{exit:?}");
        }
    });
}

/// The agent of the image, over pipes, as whoever debugs it runs it.
#[test]
fn the_agent_serves_a_bridge_over_pipes_and_ends_with_it() {
    block_on(async {
        use linkspan_protocol::frame::{Decoder, HOST_LIMIT};
        use linkspan_tests::raw::frame;
        use std::process::Stdio;
        use tokio::io::AsyncReadExt;

        let cgroup = format!("-cgroup=/{}", linkspan_tests::unique("pipes"));
        let mut agent = tokio::process::Command::new(linkspan_tests::agent());
        agent.arg0("gcs").args(["-v4", "-use-inouterr", "-log-format", "json", "-loglevel=info"]);
        agent.arg(&cgroup).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut agent = agent.kill_on_drop(true).spawn().unwrap();
        let (mut input, mut output) = (agent.stdin.take().unwrap(), agent.stdout.take().unwrap());
        let mut decoder = Decoder::new(HOST_LIMIT);
        for (message, body) in [
            (MessageType::NEGOTIATE_PROTOCOL, json!({"MinimumVersion": 4, "MaximumVersion": 4})),
            (MessageType::DUMP_STACKS, json!({})),
        ] {
            input.write_all(&frame(message, 7, body.to_string().as_bytes())).await.unwrap();
            let answer = loop {
                if let Some(frame) = decoder.next_frame().unwrap() {
                    break frame;
                }
                let mut buffer = [0; 4096];
                let len =
                    timeout(LONG, output.read(&mut buffer)).await.expect("an answer").unwrap();
                assert_ne!(len, 0, "the agent has ended");
                decoder.push(&buffer[..len]);
            };
            let body: Value = serde_json::from_slice(&answer.payload).unwrap();
            assert_eq!(body["Result"], 0, "{body}");
            if message == MessageType::DUMP_STACKS {
                let text = body["GuestStacks"].as_str().unwrap();
                for part in ["request DumpStacks", "reaper", "thread ", "linkspan-agent"] {
                    assert!(text.contains(part), "{part} in {text}");
                }
            }
        }
        drop(input);
        let ended = timeout(LONG, agent.wait_with_output()).await.expect("it ends").unwrap();
        assert!(ended.status.success(), "{ended:?}");
        let log = String::from_utf8(ended.stderr).unwrap();
        assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
        for directory in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let made = directory.path().join(&cgroup["-cgroup=/".len()..]);
            let _ = std::fs::remove_dir(made);
        }
    });
}
