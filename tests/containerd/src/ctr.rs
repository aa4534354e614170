//! `ctr`, as a user runs it.

use std::fmt;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::daemon::Daemon;
use crate::image::NAME;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(900);

/// A client of one containerd, with one runtime.
pub(crate) struct Ctr {
    program: PathBuf,
    address: PathBuf,
    namespace: String,
    options: PathBuf,
    runtime: String,
}

/// What a command has left for its user to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// What it has written, if it did what it was to.
    pub(crate) fn succeeded(self) -> Result<String> {
        match self.code {
            Some(0) => Ok(self.stdout),
            _ => bail!("{self}"),
        }
    }

    /// What it says, if it did not do what it was to.
    pub(crate) fn failed(self) -> Result<String> {
        match self.code {
            Some(0) => bail!("it was to fail: {self}"),
            _ => Ok(self.stderr),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, stdout, stderr } = self;
        write!(f, "code {code:?}\nstdout {stdout:?}\nstderr {stderr:?}")
    }
}

impl Ctr {
    pub(crate) fn new(daemon: &Daemon) -> Self {
        Self {
            program: daemon.program("ctr").get_program().into(),
            address: daemon.directory().join("sock"),
            namespace: daemon.name(),
            options: daemon.directory().join("shim.toml"),
            runtime: String::new(),
        }
    }

    /// The same with a runtime.
    pub(crate) fn with(&self, runtime: &str) -> Self {
        Self {
            program: self.program.clone(),
            address: self.address.clone(),
            namespace: self.namespace.clone(),
            options: self.options.clone(),
            runtime: runtime.to_owned(),
        }
    }

    /// The namespace of all that it does; the name of its containerd.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The same in another namespace.
    pub(crate) fn within(&self, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..self.with(&self.runtime) }
    }

    /// A command, not run yet.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--address")
            .arg(&self.address)
            .args(["--namespace", &self.namespace])
            .args(args);
        command
    }

    /// Runs a command to its end, without input.
    pub(crate) fn run(&self, args: &[&str]) -> Result<Outcome> {
        self.run_with(args, "")
    }

    /// Runs a command to its end, with input. The input ends when there is output: a `ctr` whose
    /// input ends before it has made the container never tells the container.
    pub(crate) fn run_with(&self, args: &[&str], input: &str) -> Result<Outcome> {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run ctr")?;
        let mut stdin = child.stdin.take();
        // It may end before it reads.
        let _ = stdin.as_mut().map(|stdin| stdin.write_all(input.as_bytes()));
        if input.is_empty() {
            stdin = None;
        }
        finish(child, args, stdin)
    }

    /// `ctr run` of the image with more flags, an id and a command, to its end.
    pub(crate) fn container(&self, flags: &[&str], id: &str, command: &[&str]) -> Result<Outcome> {
        self.container_with(flags, id, command, "")
    }

    /// The same with input.
    pub(crate) fn container_with(
        &self,
        flags: &[&str],
        id: &str,
        command: &[&str],
        input: &str,
    ) -> Result<Outcome> {
        let args = self.container_args(flags, id, command);
        self.run_with(&args.iter().map(String::as_str).collect::<Vec<_>>(), input)
    }

    /// The arguments of `ctr run`.
    pub(crate) fn container_args(&self, flags: &[&str], id: &str, command: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = vec!["run".into(), "--runtime".into(), self.runtime.clone()];
        if self.runtime == crate::OURS {
            args.extend(["--runtime-config-path".into(), self.options.display().to_string()]);
        }
        args.extend(flags.iter().map(|&flag| flag.to_owned()));
        args.extend([NAME.to_owned(), id.to_owned()]);
        args.extend(command.iter().map(|&word| word.to_owned()));
        args
    }

    /// Runs a command on a terminal of this size, types, and collects what the terminal shows.
    pub(crate) fn on_terminal(
        &self,
        args: &[&str],
        (rows, columns): (u16, u16),
        typed: &str,
    ) -> Result<Outcome> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = std::fs::File::options().read(true).write(true).open(name.to_str()?)?;
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size)?;
        let mut command = self.command(args);
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let child = command.spawn().context("run ctr")?;
        drop(command); // and our copies of the terminal's other side
        let mut reading = std::fs::File::from(master.try_clone()?);
        let (mut typing, text) = (std::fs::File::from(master), typed.to_owned());
        let reader = thread::spawn(move || {
            let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
            let mut text = Some(text);
            while let Ok(len @ 1..) = reading.read(&mut buffer) {
                shown.extend_from_slice(&buffer[..len]);
                // The shell's first prompt: it reads from here on.
                if shown.windows(2).any(|two| two == b"# ")
                    && let Some(text) = text.take()
                {
                    let _ = typing.write_all(text.as_bytes());
                }
            }
            shown
        });
        let ended = finish(child, args, None)?;
        let shown = reader.join().map_err(|_| anyhow::anyhow!("the reader broke"))?;
        Ok(Outcome { stdout: String::from_utf8_lossy(&shown).into_owned(), ..ended })
    }

    /// Starts a container that stays.
    pub(crate) fn detached(&self, flags: &[&str], id: &str, command: &[&str]) -> Result<()> {
        let flags: Vec<&str> = ["-d"].iter().chain(flags).copied().collect();
        self.container(&flags, id, command)?.succeeded().map(drop)
    }

    /// Runs a further process.
    pub(crate) fn exec(&self, flags: &[&str], id: &str, command: &[&str]) -> Result<Outcome> {
        let mut args = vec!["task", "exec"];
        args.extend(flags);
        args.push(id);
        args.extend(command);
        self.run(&args)
    }

    /// What `ctr task ls` calls a task's state; empty where there is none.
    pub(crate) fn state(&self, id: &str) -> Result<String> {
        let listed = self.run(&["task", "ls"])?.succeeded()?;
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(id));
        let state = line.and_then(|line| line.split_whitespace().nth(2));
        Ok(state.unwrap_or_default().to_owned())
    }

    /// Waits for a task's state.
    pub(crate) fn reaches(&self, id: &str, state: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let now = self.state(id)?;
            if now == state {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(60) {
                bail!("{id} is {now:?}, not {state}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills, waits and deletes; returns the exit status that `ctr` tells of.
    pub(crate) fn end(&self, id: &str, signal: &str) -> Result<u32> {
        self.run(&["task", "kill", "-s", signal, id])?.succeeded()?;
        self.reaches(id, "STOPPED")?;
        self.delete(id)
    }

    /// Deletes what has ended; returns the exit status that `ctr` tells of, which it warns of if it
    /// is not 0.
    pub(crate) fn delete(&self, id: &str) -> Result<u32> {
        let deleted = self.run(&["task", "delete", id])?;
        self.run(&["container", "delete", id])?.succeeded()?;
        match (deleted.stderr.split_once("exit code "), deleted.code) {
            (Some((_, after)), _) => {
                let digits = after.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                Ok(digits.parse()?)
            }
            (None, Some(0)) => Ok(0),
            (None, _) => bail!("{deleted}"),
        }
    }

    /// Removes all containers, and says which there were.
    pub(crate) fn remove_all(&self) -> Result<Vec<String>> {
        let listed = self.run(&["container", "ls", "-q"])?.succeeded()?;
        let left: Vec<String> = listed.lines().map(str::to_owned).collect();
        for id in &left {
            self.run(&["task", "delete", "-f", id])?;
            self.run(&["container", "delete", id])?;
        }
        Ok(left)
    }
}

/// Waits for a command's end and collects what it has written.
fn finish(mut child: Child, args: &[&str], stdin: Option<ChildStdin>) -> Result<Outcome> {
    let stdout = collect(child.stdout.take().map(OwnedFd::from), stdin);
    let stderr = collect(child.stderr.take().map(OwnedFd::from), None);
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("ctr {} does not end", args.join(" "));
        }
        thread::sleep(Duration::from_millis(10));
    };
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    Ok(Outcome { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

/// Reads to the end; what is held goes with the first that comes.
fn collect(from: Option<OwnedFd>, mut held: Option<ChildStdin>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        if let Some(mut from) = from.map(std::fs::File::from) {
            while let Ok(len @ 1..) = from.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..len]);
                held = None;
            }
        }
        drop(held);
        bytes
    })
}
