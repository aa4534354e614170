//! The `linkspan` program.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_tests::{
    Backend, Remains, Said, User, block_on, cli, on_both_backends, pid_in, rootfs,
};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json as value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

on_both_backends!(alone:
    cli_run_relays_streams_and_the_exit_code,
    cli_run_tells_programs_that_cannot_run_by_its_exit_code,
    cli_run_passes_signals_on,
    cli_run_leaves_nothing_when_it_is_killed,
    cli_a_terminal_is_a_terminal,
    cli_control_c_at_a_terminal_ends_the_run_and_leaves_nothing,
    cli_a_terminal_that_goes_away_leaves_nothing,
    cli_a_named_machine_lives_until_it_is_stopped,
    cli_a_foreign_host_gets_the_guests_connections,
);

async fn cli_run_relays_streams_and_the_exit_code(backend: Backend) {
    let user = User::of(backend);
    let script = "cat; echo \"$A\" $(id -u) $PWD; echo err >&2; exit 3";
    let options = ["-i", "--env", "A=x y", "--user", "5:6", "--workdir", "/tmp"];
    let said = user.run(&options, &["sh", "-c", script], b"in\n").await;
    assert_eq!((said.code, said.out.as_str()), (Some(3), "in\nx y 5 /tmp\n"));
    assert_eq!(said.err, "err\n");
    assert_eq!(left_of(&user), Vec::<String>::new());
}

/// What is left of a user's runs, apart from what is known of KVM.
fn left_of(user: &User) -> Vec<String> {
    user.left().into_iter().filter(|path| !path.starts_with("tmp/linkspan-0")).collect()
}

async fn cli_run_tells_programs_that_cannot_run_by_its_exit_code(backend: Backend) {
    let user = User::of(backend);
    for (words, options, code, named) in [
        (&["no-such-program"], &[][..], 127, "no-such-program"),
        (&["/etc/passwd"], &[][..], 126, "/etc/passwd"),
        (&["true"], &["--user", "nobody-here"][..], 125, "nobody-here"),
    ] {
        let said = user.run(options, words, b"").await;
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(said.err.contains(named) && said.out.is_empty(), "{said:?}");
    }
    assert_eq!(left_of(&user), Vec::<String>::new());
}

async fn cli_run_passes_signals_on(backend: Backend) {
    let user = User::of(backend);
    let script =
        "trap 'exit 21' INT; trap 'exit 22' TERM; echo ready; while :; do sleep 0.05; done";
    for (signal, code) in [(Signal::INT, 21), (Signal::TERM, 22)] {
        let args = user.run_args(&[], &["sh", "-c", script]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = user.linkspan(&args).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = timeout(Duration::from_secs(60), lines.next_line()).await;
        assert_eq!(ready.expect("it becomes ready").unwrap().as_deref(), Some("ready"));
        kill_process(pid_of(child.id()), signal).unwrap();
        let status = timeout(Duration::from_secs(20), child.wait()).await;
        assert_eq!(status.expect("a signal ends it").unwrap().code(), Some(code));
    }
    assert_eq!(left_of(&user), Vec::<String>::new());
}

fn pid_of(id: Option<u32>) -> Pid {
    Pid::from_raw(id.expect("it runs").cast_signed()).expect("a pid")
}

async fn cli_run_leaves_nothing_when_it_is_killed(backend: Backend) {
    let user = User::of(backend);
    let args = user.run_args(&[], &["sh", "-c", "echo ready; sleep 100000"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut child = user.linkspan(&args).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = timeout(Duration::from_secs(60), lines.next_line()).await;
    assert_eq!(ready.expect("it becomes ready").unwrap().as_deref(), Some("ready"));
    let machines = Remains::children_of(child.id().unwrap());
    assert!(!machines.is_empty());
    child.kill().await.unwrap();
    for machine in machines {
        assert!(machine.processes() > 0);
        machine.gone_within(Duration::from_secs(5)).await;
    }
    assert_eq!(left_of(&user), Vec::<String>::new());
}

async fn cli_a_terminal_is_a_terminal(backend: Backend) {
    let user = User::of(backend);
    let (mut child, mut screen) = at_terminal(&user, &["-i", "-t"], &["sh"]);
    screen.expect("# ").await;
    screen.type_in("stty size; tty\n").await;
    let text = screen.expect("/dev/pts/").await;
    assert!(text.contains("37 111"), "{text:?}");
    tcsetwinsize(&screen.master, size(50, 70)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        screen.type_in("stty size; echo asked\n").await;
        let text = screen.expect("\r\nasked").await + &screen.expect("# ").await;
        if text.contains("50 70") {
            break;
        }
        assert!(Instant::now() < deadline, "no resize: {text:?}");
    }
    // The shell has left its line editor, which takes Ctrl-C for itself, when the program speaks.
    screen.type_in("sh -c 'echo begun; exec sleep 1000'\n").await;
    screen.expect("\r\nbegun\r\n").await;
    screen.type_in("\x03").await;
    screen.expect("# ").await;
    screen.type_in("exit 7\n").await;
    let status = timeout(Duration::from_secs(20), child.wait()).await;
    assert_eq!(status.expect("it ends with its shell").unwrap().code(), Some(7));
    assert_eq!(left_of(&user), Vec::<String>::new());
}

const fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Runs a container from a terminal of 37 rows and 111 columns.
fn at_terminal(user: &User, options: &[&str], words: &[&str]) -> (Child, Screen) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    tcsetwinsize(&master, size(37, 111)).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let slave = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    // A session of its own, whose terminal this is.
    let mut command = user.command(Path::new("setsid"));
    command.args(["--ctty", "--wait"]).arg(cli()).args(user.run_args(options, words));
    let copy = || slave.try_clone().unwrap();
    command.stdin(copy()).stdout(copy()).stderr(copy());
    (command.spawn().unwrap(), Screen::new(master))
}

/// What a machine of this run has on this host, once its program speaks.
async fn begun(child: &Child, screen: &mut Screen) -> Vec<Remains> {
    screen.expect("begun\r\n").await;
    let machines = Remains::children_of(child.id().unwrap());
    assert!(machines.iter().any(|machine| machine.processes() > 0));
    machines
}

async fn cli_control_c_at_a_terminal_ends_the_run_and_leaves_nothing(backend: Backend) {
    let user = User::of(backend);
    let script = "trap 'exit 23' INT; echo begun; while :; do sleep 0.05; done";
    let (mut child, mut screen) = at_terminal(&user, &[], &["sh", "-c", script]);
    let machines = begun(&child, &mut screen).await;
    screen.type_in("\x03").await;
    let status = timeout(Duration::from_secs(20), child.wait()).await;
    let status = status.expect("Ctrl-C ends it").unwrap();
    for machine in machines {
        machine.gone_within(Duration::from_secs(5)).await;
    }
    assert_eq!(status.code(), Some(23));
    assert_eq!(left_of(&user), Vec::<String>::new());
}

async fn cli_a_terminal_that_goes_away_leaves_nothing(backend: Backend) {
    let user = User::of(backend);
    let script = "echo begun; exec sleep 100000";
    let (mut child, mut screen) = at_terminal(&user, &["-i", "-t"], &["sh", "-c", script]);
    let machines = begun(&child, &mut screen).await;
    drop(screen);
    let status = timeout(Duration::from_secs(20), child.wait()).await;
    status.expect("without its terminal it ends").unwrap();
    for machine in machines {
        machine.gone_within(Duration::from_secs(5)).await;
    }
    assert_eq!(left_of(&user), Vec::<String>::new());
}

/// The other side of a terminal.
struct Screen {
    master: OwnedFd,
    /// What has come and was not asked for yet.
    seen: String,
    reader: tokio::fs::File,
    writer: tokio::fs::File,
}

impl Screen {
    fn new(master: OwnedFd) -> Self {
        let file = || tokio::fs::File::from_std(File::from(master.try_clone().unwrap()));
        Self { reader: file(), writer: file(), master, seen: String::new() }
    }

    async fn type_in(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// Reads until `text` appears; returns all up to there.
    async fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let mut buffer = [0; 1024];
            let read = timeout(Duration::from_secs(60), self.reader.read(&mut buffer)).await;
            let len = read.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.seen)).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
    }
}

async fn cli_a_named_machine_lives_until_it_is_stopped(backend: Backend) {
    let user = User::of(backend);
    let [flag, vmm] = user.vmm();
    let about = json(&user.say(&["--json", "uvm", "start", "dev", flag, vmm], b"").await);
    let machine = Remains::of(pid_in(about["machine"].as_str().unwrap()));
    assert!(machine.processes() > 0);
    let again = user.say(&["uvm", "start", "dev", flag, vmm], b"").await;
    assert!(again.code == Some(125) && again.err.contains("\"dev\""), "{again:?}");

    let root = rootfs().to_string_lossy().into_owned();
    let said = user.say(&["run", "--uvm", "dev", "-i", &root, "--", "cat"], b"through").await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "through"));
    let script = "echo out; echo err >&2; sleep 100000";
    let detached = ["run", "--uvm", "dev", "-d", "--name", "web", &root, "--", "sh", "-c", script];
    let said = user.say(&detached, b"").await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "web\n"), "{said:?}");
    let said = user.say(&["exec", "web", "--", "sh", "-c", "hostname; exit 4"], b"").await;
    assert_eq!((said.code, said.out.as_str()), (Some(4), "web\n"));
    // The monitor keeps its own files to itself; that is not to reach into containers.
    let open = ["exec", "--user", "12:34", "web", "--", "sh", "-c", "umask; cat /etc/hostname"];
    let said = user.say(&open, b"").await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "0022\nweb\n"), "{said:?}");
    let said = user.say(&["exec", "web", "no-such-program"], b"").await;
    assert_eq!(said.code, Some(127), "{said:?}");

    let list = json(&user.say(&["--json", "ps"], b"").await);
    assert_eq!((&list[0]["id"], &list[0]["state"]), (&"web".into(), &"running".into()), "{list}");
    let machines = json(&user.say(&["uvm", "list", "--json"], b"").await);
    assert_eq!((&machines[0]["name"], &machines[0]["containers"]), (&"dev".into(), &1.into()));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let said = user.say(&["logs", "web"], b"").await;
        if (said.out.as_str(), said.err.as_str()) == ("out\n", "err\n") {
            break;
        }
        assert!(Instant::now() < deadline, "{said:?}");
    }
    let said = user.say(&["logs", "--json", "web"], b"").await;
    let mut lines: Vec<Value> =
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["stream"].as_str().map(str::to_owned));
    let (err, out) = (["stderr", "err"], ["stdout", "out"]);
    let expected = [err, out].map(|[stream, text]| value!({ "stream": stream, "text": text }));
    assert_eq!(lines, expected);
    json(&user.say(&["kill", "--json", "web"], b"").await);
    let said = user.say(&["wait", "web"], b"").await;
    assert!(said.code == Some(137) || said.out.contains("137"), "{said:?}");
    let list = json(&user.say(&["--json", "ps"], b"").await);
    assert_eq!(
        (&list[0]["state"], &list[0]["exit_code"]),
        (&"exited".into(), &137.into()),
        "{list}"
    );

    let unknown = user.say(&["exec", "--uvm", "other", "web", "true"], b"").await;
    assert!(unknown.code == Some(125) && unknown.err.contains("\"other\""), "{unknown:?}");
    json(&user.say(&["uvm", "stop", "dev", "--json"], b"").await);
    machine.gone_within(Duration::from_secs(5)).await;
    assert_eq!(left_of(&user), Vec::<String>::new());
    assert_eq!(json(&user.say(&["uvm", "list", "--json"], b"").await), Value::Array(Vec::new()));
}

/// What a successful command with `--json` prints.
fn json(said: &Said) -> Value {
    assert_eq!(said.code, Some(0), "{said:?}");
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

async fn cli_a_foreign_host_gets_the_guests_connections(backend: Backend) {
    let user = User::of(backend);
    let [flag, vmm] = user.vmm();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let local = hyperv_socket::Local::HybridHost { path: path.clone() };
    let bridge = hyperv_socket::Listener::bind(&local, 0x4000_0000).unwrap();
    let path = path.to_str().unwrap();
    let start = ["--json", "uvm", "start", "theirs", flag, vmm, "--export-vsock", path];
    json(&user.say(&start, b"").await);
    let accepted = timeout(Duration::from_secs(60), bridge.accept()).await;
    accepted.expect("the guest connects to the foreign host").unwrap();
    json(&user.say(&["--json", "uvm", "stop", "theirs"], b"").await);
    drop(bridge);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn cli_bad_input_is_named_with_exit_code_125() {
    block_on(async {
        let user = User::of(Backend::Loopback);
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.to_string_lossy().into_owned()
        };
        let root = rootfs().to_string_lossy().into_owned();
        let (notes, gzip) =
            (file("notes.txt", b"notes"), file("cut.tar.gz", &[0x1f, 0x8b, 8, 0, 0]));
        let loopback = ["run", "--vmm", "loopback"];
        let mut wrong = Vec::new();
        for (args, named) in [
            (&["/no/such/rootfs", "--", "true"][..], "/no/such/rootfs"),
            (&[&notes, "--", "true"], "notes.txt"),
            (&[&gzip, "--", "true"], "cut.tar.gz"),
            (&[&root], "CMD"),
            (&[&root, "--", ""], "CMD"),
            (&["--env", "=x", &root, "--", "true"], "--env"),
            (&["--workdir", "tmp", &root, "--", "true"], "--workdir"),
            (&["--workdir", "/etc/passwd", &root, "--", "true"], "\"/etc/passwd\""),
            (&["--name", "a/b", &root, "--", "true"], "a/b"),
            (&["--scratch-mib", "1", &root, "--", "true"], "1 MiB"),
            (&["--image", "/no/such/image", &root, "--", "true"], "/no/such/image"),
            (&["--memory-mib", "many", &root, "--", "true"], "many"),
            (&["--bogus", &root, "--", "true"], "--bogus"),
            (&["--uvm", "nowhere", &root, "--", "true"], "nowhere"),
        ] {
            let args = match named {
                "nowhere" => [&["run"], args].concat(),
                _ => [&loopback, args].concat(),
            };
            let said = user.say(&args, b"").await;
            if said.code != Some(125) || !said.err.contains(named) || !said.out.is_empty() {
                wrong.push(format!("{args:?} does not name {named:?}: {said:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        for path in ["/no/such/directory/vm", &format!("/tmp/{}", "x".repeat(100))] {
            let start = ["uvm", "start", "x", "--vmm", "loopback", "--export-vsock", path];
            let said = user.say(&start, b"").await;
            assert!(said.code == Some(125) && said.err.contains(path), "{said:?}");
        }
        let qemu = ["run", "--qemu", "/no/such/qemu", &root, "--", "true"];
        let said = user.say(&qemu, b"").await;
        assert!(said.code == Some(125) && said.err.contains("/no/such/qemu"), "{said:?}");
        let said = user.say(&["--json", "run", "/no/such/rootfs", "--", "true"], b"").await;
        let report: Value = serde_json::from_str(&said.err).expect("errors are JSON, too");
        assert!(report["error"].as_str().unwrap().contains("/no/such/rootfs"), "{report}");
        assert_eq!(left_of(&user), Vec::<String>::new());
    });
}

#[test]
fn cli_no_qemu_in_the_path_is_told() {
    block_on(async {
        let user = User::of(Backend::Qemu);
        let args = user.run_args(&[], &["true"]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = user.linkspan(&args).env("PATH", "/nowhere").output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert!(text.contains("qemu-system-x86_64") && text.contains("install"), "{text}");
    });
}

#[test]
fn cli_conform_lists_statements_and_refuses_what_it_does_not_know() {
    let list = std::process::Command::new(cli())
        .args(["conform", "guest", "--list", "--only", "19-21", "--json"])
        .output()
        .expect("run linkspan");
    let rows: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let ids: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["id"].clone()).collect();
    assert_eq!(ids, [19, 20, 21]);
    for (args, said) in [
        (&["--only", "112", "--spawn", "--", "true"][..], "there is no statement 112"),
        (&["--listen", "tcp:nowhere"], "tcp:ADDRESS:PORT"),
        (&[], "--spawn"),
    ] {
        let refused = std::process::Command::new(cli())
            .args(["conform", "guest"])
            .args(args)
            .output()
            .expect("run linkspan");
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(125), "{args:?}: {text}");
        assert!(text.contains(said), "{said:?} is not in: {text}");
    }
}

#[test]
fn cli_conform_checks_a_host_that_is_none() {
    let checked = std::process::Command::new(cli())
        .args(["conform", "host", "--spawn", "--only", "1-3", "--", "true"])
        .output()
        .expect("run linkspan");
    let text = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{text}");
    assert!(text.contains("the program ends before it listens: exit status: 0"), "{text}");
    let refused =
        std::process::Command::new(cli()).args(["conform", "host"]).output().expect("run linkspan");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(125) && text.contains("--connect"), "{text}");
}

#[test]
fn cli_conform_checks_an_agent_in_a_machine_and_one_that_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let junit = directory.path().join("report.xml");
    let checked = std::process::Command::new(cli())
        .args(["conform", "guest", "--uvm", "--vmm", "loopback", "--only", "1-36,39", "--json"])
        .arg("--rootfs")
        .arg(rootfs())
        .arg("--junit")
        .arg(&junit)
        .env("LINKSPAN_IMAGE", linkspan_tests::image())
        .output()
        .expect("run linkspan");
    let report: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let outcomes = report["outcomes"].as_array().expect("outcomes");
    assert_eq!(outcomes.len(), 37);
    let bad = outcomes.iter().find(|outcome| outcome["verdict"] != "pass");
    assert!(checked.status.success() && bad.is_none(), "{bad:?}");
    assert!(std::fs::read_to_string(&junit).unwrap().contains("tests=\"37\" failures=\"0\""));
    // It takes what is said, and says nothing of the protocol's.
    let checked = std::process::Command::new(cli())
        .args(["conform", "guest", "--spawn", "--only", "20", "--answer-timeout", "1", "--", "cat"])
        .output()
        .expect("run linkspan");
    let text = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{text}");
    assert!(text.contains("-> NegotiateProtocol") && text.contains("FAIL"), "{text}");
}

#[test]
fn cli_record_writes_what_cli_decode_shows() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("hybrid:{}", directory.path().join(name).display());
    let capture = directory.path().join("run.pcapng");
    let mut recorder = std::process::Command::new(cli())
        .args(["record", "--guest", &at("guest"), "--host", &at("host")])
        .arg(&capture)
        .spawn()
        .expect("run linkspan record");
    // As a guest would, before there is a host: it sees its connection end.
    let bridge = directory.path().join("guest_1073741824");
    let begun = Instant::now();
    let stream = loop {
        match std::os::unix::net::UnixStream::connect(&bridge) {
            Ok(stream) => break stream,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(std::io::Read::read(&mut &stream, &mut [0; 1]).unwrap(), 0);
    let pid = Pid::from_raw(i32::try_from(recorder.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert!(recorder.wait().unwrap().success());
    let decoded = std::process::Command::new(cli()).arg("decode").arg(&capture).output().unwrap();
    let text = String::from_utf8_lossy(&decoded.stdout);
    assert!(decoded.status.success() && text.contains("bridge #0 connected"), "{text}");
    let bad = std::process::Command::new(cli()).arg("decode").arg("/dev/zero.pcapng").output();
    assert_eq!(bad.unwrap().status.code(), Some(125));
}

#[test]
fn cli_simulate_holds_for_a_hundred_thousand_seeds() {
    let simulated = std::process::Command::new(cli())
        .args(["simulate", "--seeds", "100000"])
        .output()
        .expect("run linkspan");
    let text = String::from_utf8_lossy(&simulated.stdout);
    println!("{text}");
    assert!(simulated.status.success(), "{text}");
    assert!(text.starts_with("100000 seeds hold"), "{text}");
}
