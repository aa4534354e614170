//! What is run with both runtimes: a few commands, and what a user sees of them.

use std::fmt::Write as _;
use std::io::BufRead;

use anyhow::{Result, bail, ensure};

use crate::ctr::{Ctr, Outcome};

/// Something that a user does.
pub(crate) struct Step {
    /// What is held to be true.
    pub(crate) name: &'static str,
    /// Does it, and returns what is to be seen.
    pub(crate) run: fn(&Ctr) -> Result<String>,
}

pub(crate) const STEPS: &[Step] = &[
    Step { name: "a container's output, errors and exit code are its own", run: outputs },
    Step { name: "input arrives and ends", run: input },
    Step { name: "a root is the image's layers, put together", run: layers },
    Step { name: "environment, directory and host name are as asked", run: process },
    Step { name: "16 MiB of output arrive whole", run: large_output },
    Step { name: "a terminal has a size, takes lines and gives an exit code", run: terminal },
    Step { name: "a container that stays takes further processes", run: exec },
    Step { name: "a paused container stands still, and goes on", run: pause },
    Step { name: "signals end a container, or are handled by it", run: signals },
    Step { name: "what has ended refuses what it cannot do", run: refusals },
    Step { name: "a read-only root refuses writes", run: read_only },
    Step { name: "a container that wants more memory than it may have is killed", run: limits },
    Step { name: "a program that is missing fails the start", run: missing_program },
    Step { name: "a directory of this host is shared", run: shared },
    Step { name: "events come in their order", run: events },
];

/// Waits for the terminal's size, which a client sets when the process runs already, and shows it.
const SIZE: &str = "until stty size 2> /dev/null | grep -v '^0 0'; do sleep 0.05; done";

fn shell(ctr: &Ctr, flags: &[&str], script: &str) -> Result<Outcome> {
    let flags: Vec<&str> = ["--rm"].iter().chain(flags).copied().collect();
    ctr.container(&flags, "one", &["sh", "-c", script])
}

fn outputs(ctr: &Ctr) -> Result<String> {
    let outcome = shell(ctr, &[], "echo out; echo err >&2; exit 7")?;
    ensure!(outcome.code == Some(7), "{outcome}");
    Ok(outcome.to_string())
}

fn input(ctr: &Ctr) -> Result<String> {
    let script = "cat; echo over";
    let outcome = ctr.container_with(&["--rm"], "one", &["sh", "-c", script], "hello\n")?;
    ensure!(outcome.stdout == "hello\nover\n", "{outcome}");
    Ok(outcome.to_string())
}

fn layers(ctr: &Ctr) -> Result<String> {
    let script = "cd /srv && for f in *; do echo $f $(cat $f); done; ls /opt; cat /proc/1/comm; \
                  echo x > /srv/written && cat /srv/written; id; pwd";
    let outcome = shell(ctr, &[], script)?;
    ensure!(outcome.code == Some(0) && outcome.stdout.contains("changed upper"), "{outcome}");
    Ok(outcome.to_string())
}

fn process(ctr: &Ctr) -> Result<String> {
    let flags = ["--env", "A=x y", "--cwd", "/tmp"];
    let script = "echo $A $OF; pwd; id -u; id -g; hostname; tr '\\0' ' ' < /proc/1/cmdline";
    let outcome = shell(ctr, &flags, script)?;
    ensure!(outcome.stdout.starts_with("x y image\n/tmp\n0\n0\n"), "{outcome}");
    Ok(outcome.to_string())
}

fn large_output(ctr: &Ctr) -> Result<String> {
    let script = "i=0; while [ $i -lt 256 ]; do printf '%065535d\\n' $i; i=$((i+1)); done";
    let outcome = shell(ctr, &[], script)?;
    let (len, lines) = (outcome.stdout.len(), outcome.stdout.lines().count());
    ensure!(len == 16 << 20, "{len} bytes, code {:?}, {:?}", outcome.code, outcome.stderr);
    let ordered = outcome
        .stdout
        .lines()
        .enumerate()
        .all(|(number, line)| line.trim_start_matches('0').parse().unwrap_or(0) == number);
    Ok(format!("{len} bytes, {lines} lines, in order: {ordered}, code {:?}", outcome.code))
}

fn terminal(ctr: &Ctr) -> Result<String> {
    let script = format!("printf '# '; read line; {SIZE}; test -t 2 && echo all $line; exit 5");
    let args = ctr.container_args(&["--rm", "-t"], "one", &["sh", "-c", &script]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = ctr.on_terminal(&args, (31, 97), "three\n")?;
    ensure!(outcome.code == Some(5) && outcome.stdout.contains("31 97"), "{outcome}");
    Ok(outcome.to_string())
}

fn exec(ctr: &Ctr) -> Result<String> {
    let mut seen = String::new();
    ctr.detached(&[], "stays", &["sleep", "1000"])?;
    writeln!(seen, "{}", ctr.state("stays")?)?;
    let script = "echo in $(cat /proc/1/comm); echo err >&2; exit 3";
    writeln!(seen, "{}", ctr.exec(&["--exec-id", "a"], "stays", &["sh", "-c", script])?)?;
    let more = ["--exec-id", "b", "--cwd", "/tmp", "--user", "1000"];
    writeln!(seen, "{}", ctr.exec(&more, "stays", &["sh", "-c", "pwd; id -u"])?)?;
    let taken = ["task", "exec", "--exec-id", "c", "stays", "cat"];
    writeln!(seen, "{}", ctr.run_with(&taken, "typed\n")?)?;
    let script = format!("printf '# '; read line; {SIZE}; exit $line");
    let args = ["task", "exec", "-t", "--exec-id", "d", "stays", "sh", "-c", &script];
    let shown = ctr.on_terminal(&args, (25, 81), "4\n")?;
    writeln!(seen, "{shown}")?;
    let missing = ctr.exec(&["--exec-id", "e"], "stays", &["no-such-program"])?;
    writeln!(seen, "a missing program: {}", missing.code != Some(0))?;
    let listed = ctr.run(&["task", "ps", "stays"])?.succeeded()?;
    writeln!(seen, "{} processes", listed.lines().count() - 1)?;
    let metrics = ctr.run(&["task", "metrics", "stays"])?.succeeded()?;
    writeln!(seen, "metrics of memory: {}", metrics.contains("memory"))?;
    writeln!(seen, "{:?}", ctr.end("stays", "SIGKILL")?)?;
    Ok(seen)
}

fn pause(ctr: &Ctr) -> Result<String> {
    let mut seen = String::new();
    let script = "while :; do echo x >> /tmp/ticks; sleep 0.02; done";
    ctr.detached(&[], "stays", &["sh", "-c", script])?;
    // A quick exec's output can be lost under the stock runtime: it is asked again then.
    let count = |id: &str| -> Result<u64> {
        for attempt in 0..5 {
            let (id, script) = (format!("{id}{attempt}"), "wc -l < /tmp/ticks");
            let counted = ctr.exec(&["--exec-id", &id], "stays", &["sh", "-c", script])?;
            if let Ok(count) = counted.succeeded()?.trim().parse() {
                return Ok(count);
            }
        }
        bail!("nobody counts")
    };
    ctr.run(&["task", "pause", "stays"])?.succeeded()?;
    writeln!(seen, "{}", ctr.state("stays")?)?;
    let refused = ctr.exec(&["--exec-id", "p"], "stays", &["true"])?;
    writeln!(seen, "exec while paused: {:?}", refused.code)?;
    ctr.run(&["task", "resume", "stays"])?.succeeded()?;
    writeln!(seen, "{}", ctr.state("stays")?)?;
    let before = count("a")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let after = count("b")?;
    writeln!(seen, "goes on: {}", after > before)?;
    ctr.run(&["task", "pause", "stays"])?.succeeded()?;
    writeln!(seen, "killed while paused: {:?}", ctr.end("stays", "SIGKILL")?)?;
    Ok(seen)
}

fn signals(ctr: &Ctr) -> Result<String> {
    let mut seen = String::new();
    let script = "trap 'exit 9' TERM; echo ready > /tmp/ready; while :; do sleep 0.05; done";
    ctr.detached(&[], "handles", &["sh", "-c", script])?;
    let ready = "until [ -e /tmp/ready ]; do sleep 0.05; done";
    ctr.exec(&["--exec-id", "w"], "handles", &["sh", "-c", ready])?.succeeded()?;
    writeln!(seen, "{:?}", ctr.end("handles", "SIGTERM")?)?;
    ctr.detached(&[], "ignores", &["sleep", "1000"])?;
    ctr.run(&["task", "kill", "-s", "SIGUSR1", "ignores"])?.succeeded()?;
    writeln!(seen, "{}", ctr.state("ignores")?)?;
    writeln!(seen, "{:?}", ctr.end("ignores", "SIGKILL")?)?;
    Ok(seen)
}

fn refusals(ctr: &Ctr) -> Result<String> {
    let mut seen = String::new();
    let mut tried = |what: &str, outcome: Outcome| writeln!(seen, "{what}: {:?}", outcome.code);
    ctr.detached(&[], "stays", &["sleep", "1000"])?;
    tried("delete what runs", ctr.run(&["task", "delete", "stays"])?)?;
    tried("the same id", ctr.container(&["-d"], "stays", &["true"])?)?;
    tried("resume what is not paused", ctr.run(&["task", "resume", "stays"])?)?;
    ctr.run(&["task", "kill", "-s", "SIGKILL", "stays"])?.succeeded()?;
    ctr.reaches("stays", "STOPPED")?;
    tried("exec", ctr.exec(&["--exec-id", "a"], "stays", &["true"])?)?;
    tried("pause", ctr.run(&["task", "pause", "stays"])?)?;
    let killed = ctr.run(&["task", "kill", "-s", "SIGKILL", "stays"])?;
    tried("kill", killed.clone())?;
    ensure!(killed.stderr.contains("not found"), "{killed}");
    tried("start again", ctr.run(&["task", "start", "-d", "stays"])?)?;
    tried("delete", ctr.run(&["task", "delete", "stays"])?)?;
    tried("delete again", ctr.run(&["task", "delete", "stays"])?)?;
    tried("kill what is not there", ctr.run(&["task", "kill", "stays"])?)?;
    ctr.run(&["container", "delete", "stays"])?.succeeded()?;
    Ok(seen)
}

fn read_only(ctr: &Ctr) -> Result<String> {
    let outcome = shell(ctr, &["--read-only"], "echo x > /srv/x; cat /srv/kept")?;
    ensure!(outcome.stderr.contains("Read-only"), "{outcome}");
    Ok(outcome.to_string())
}

fn limits(ctr: &Ctr) -> Result<String> {
    let flags = ["--rm", "--memory-limit", "67108864"];
    let outcome = ctr.container(&flags, "one", &["tail", "/dev/zero"])?;
    ensure!(outcome.code == Some(137), "{outcome}");
    Ok(outcome.to_string())
}

fn missing_program(ctr: &Ctr) -> Result<String> {
    let outcome = ctr.container(&["--rm"], "one", &["no-such-program"])?;
    ensure!(outcome.stderr.contains("no-such-program"), "{outcome}");
    Ok(format!("{:?}", outcome.code))
}

fn shared(ctr: &Ctr) -> Result<String> {
    let place = tempfile::tempdir()?;
    std::fs::write(place.path().join("here"), "of this host\n")?;
    let (source, file) = (place.path().display(), place.path().join("here"));
    let mount = |source: &dyn std::fmt::Display, target: &str, access: &str| {
        format!("type=bind,src={source},dst={target},options=rbind:{access}")
    };
    let (writable, fixed) = (mount(&source, "/rw", "rw"), mount(&file.display(), "/file", "ro"));
    let flags = ["--mount", &writable, "--mount", &fixed];
    let script = "cat /rw/here /file; echo back > /rw/there; echo x > /file; ls /rw; ls -A /file";
    let outcome = shell(ctr, &flags, script)?;
    ensure!(outcome.stdout.starts_with("of this host\nof this host\n"), "{outcome}");
    let written = std::fs::read_to_string(place.path().join("there")).unwrap_or_default();
    Ok(format!("{outcome}\nwritten {written:?}"))
}

fn events(ctr: &Ctr) -> Result<String> {
    let mut watcher = ctr
        .command(&["events"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    // It says nothing of when it listens: a namespace's label is an event that we can wait for.
    let stdout = watcher.stdout.take().map(std::io::BufReader::new);
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in stdout.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let wait = std::time::Duration::from_millis(200);
    for attempt in 0.. {
        ensure!(attempt < 100, "ctr events says nothing");
        let label = format!("events={attempt}");
        ctr.run(&["namespaces", "label", ctr.namespace(), &label])?.succeeded()?;
        if lines.recv_timeout(wait).is_ok() {
            break;
        }
    }
    ctr.detached(&[], "told", &["sleep", "1000"])?;
    ctr.exec(&["--exec-id", "more"], "told", &["true"])?.succeeded()?;
    ctr.run(&["task", "pause", "told"])?.succeeded()?;
    ctr.run(&["task", "resume", "told"])?.succeeded()?;
    ctr.end("told", "SIGKILL")?;
    let mut seen = String::new();
    while let Ok(line) = lines.recv_timeout(std::time::Duration::from_secs(20)) {
        let Some(at) = line.find("/tasks/") else { continue };
        let (topic, body) = line[at..].split_once(' ').unwrap_or((&line[at..], ""));
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let of = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        let status = body["exit_status"].as_u64();
        writeln!(seen, "{topic} {} {}{} {status:?}", of("container_id"), of("exec_id"), of("id"))?;
        if topic == "/tasks/delete" {
            break;
        }
    }
    watcher.kill()?;
    watcher.wait()?;
    ensure!(seen.contains("/tasks/delete"), "no deletion was told:\n{seen}");
    Ok(seen)
}
