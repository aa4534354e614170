//! Where a process's standard streams go on this host.
//!
//! | written as             | is                                                              |
//! |------------------------|-----------------------------------------------------------------|
//! | a path                 | a FIFO that a client has made; or a file, which is appended to  |
//! | `file:///path`         | a file, which is made if it is missing                          |
//! | `binary:///path?k=v`   | a program that is run with `k v` and reads both outputs         |
//! | nothing                | nothing: an empty input, an output that refuses                 |
//!
//! A FIFO is held open on both sides. So a client that goes takes nothing with it: output waits in
//! the FIFO for the next one, and input comes from whoever writes next, until containerd closes it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Inherit};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use linkspan_host::relay::{self, Ends};
use linkspan_host::{Child, Stdio, Stream};
use rustix::fs::{Mode, OFlags, open};
use tokio::sync::oneshot;
use tracing::warn;

use crate::error::Error;

/// How long a client may take to open its side, and a logging program to be ready.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the streams go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Who a logging program is told it logs for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) id: &'a str,
    pub(crate) namespace: &'a str,
}

/// This host's sides of the streams, open.
#[derive(Debug, Default)]
pub(crate) struct Local {
    stdin: Option<OwnedFd>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
}

/// Where an output goes.
#[derive(Debug)]
struct Sink {
    write: OwnedFd,
    /// Keeps a FIFO whole while it has no reader.
    _read: Option<OwnedFd>,
}

/// What one string means.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Path(PathBuf),
    File(PathBuf),
    Program { path: PathBuf, args: Vec<String> },
}

impl Target {
    fn parse(text: &str) -> Result<Self, Error> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Path(text.into()));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        match scheme {
            "file" => Ok(Self::File(path.into())),
            "fifo" => Ok(Self::Path(path.into())),
            "binary" => {
                let words = query.split('&').filter(|pair| !pair.is_empty());
                let words = words.flat_map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    [name, value]
                });
                let args = words.filter(|word| !word.is_empty()).map(decoded).collect();
                Ok(Self::Program { path: path.into(), args })
            }
            other => {
                let reason = format!("{text:?}: {other:?} is neither file, fifo nor binary");
                Err(Error::input("stdio", reason))
            }
        }
    }
}

/// Undoes the percent-encoding of a URI's part.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Paths {
    /// Which streams the guest is to connect.
    pub(crate) fn wanted(&self) -> Stdio {
        Stdio {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && !self.terminal,
        }
    }

    /// Opens them. Waits for a FIFO's reader, and for a logging program.
    pub(crate) async fn open(&self, owner: Owner<'_>) -> Result<Local, Error> {
        let wanted = self.wanted();
        let mut local = Local::default();
        if wanted.stdin {
            local.stdin = Some(open_input(Path::new(&self.stdin))?);
        }
        let target = |text: &String, wanted: bool| match wanted {
            true => Target::parse(text).map(Some),
            false => Ok(None),
        };
        let stdout = target(&self.stdout, wanted.stdout)?;
        if let Some(Target::Program { path, args }) = stdout {
            (local.stdout, local.stderr) = log_with(&path, &args, owner).await?;
            return Ok(local);
        }
        let stderr = target(&self.stderr, wanted.stderr)?;
        for (sink, target) in [(&mut local.stdout, stdout), (&mut local.stderr, stderr)] {
            if let Some(target) = target {
                *sink = Some(open_output(target).await?);
            }
        }
        Ok(local)
    }
}

fn open_input(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(Error::io(format!("open stdin {}", path.display())))
}

async fn open_output(target: Target) -> Result<Sink, Error> {
    let (path, make) = match target {
        Target::File(path) => (path, true),
        Target::Path(path) => (path, false),
        Target::Program { path, .. } => {
            let reason = format!("{}: stderr goes where stdout goes", path.display());
            return Err(Error::input("stderr", reason));
        }
    };
    let what = format!("open output {}", path.display());
    let is_fifo = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    if !is_fifo {
        let file = OpenOptions::new().append(true).create(make).open(&path);
        return Ok(Sink { write: file.map_err(Error::io(what))?.into(), _read: None });
    }
    // The reader has to be there first: what is written to nobody is gone with our own side.
    let waiting = path.clone();
    let opened = tokio::task::spawn_blocking(move || {
        open(&waiting, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    });
    let read = || open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    match tokio::time::timeout(LIMIT, opened).await {
        Ok(Ok(write)) => {
            let write = write.map_err(Error::io(what.clone()))?;
            Ok(Sink { write, _read: Some(read().map_err(Error::io(what))?) })
        }
        _ => {
            // Lets go of the thread that waits for a reader.
            drop(read());
            Err(Error::io(what)(io::Error::new(io::ErrorKind::TimedOut, "nobody reads it")))
        }
    }
}

/// Runs a logging program: it reads stdout at descriptor 3, stderr at 4, and closes 5 when it is
/// ready. It ends by itself when both outputs have.
async fn log_with(
    path: &Path,
    args: &[String],
    owner: Owner<'_>,
) -> Result<(Option<Sink>, Option<Sink>), Error> {
    let what = || format!("run the logging program {}", path.display());
    let pipe = || io::pipe().map_err(Error::io(what()));
    let ((stdout, to_stdout), (stderr, to_stderr)) = (pipe()?, pipe()?);
    let (ready, readied) = pipe()?;
    let mut command = Command::new(path);
    command
        .args(args)
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .stdin(Inherit::null())
        .stdout(Inherit::null())
        .stderr(Inherit::null());
    let mapped = [OwnedFd::from(stdout), stderr.into(), readied.into()];
    let mappings = (3..).zip(mapped).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    let mapped = command.fd_mappings(mappings.collect());
    mapped.map_err(|error| Error::input("stdio", error.to_string()))?;
    let mut child = command.spawn().map_err(Error::io(what()))?;
    drop(command); // and our copies of its descriptors
    let is_ready = tokio::task::spawn_blocking(move || {
        let mut ready = File::from(OwnedFd::from(ready));
        io::copy(&mut ready, &mut io::sink()).is_ok()
    });
    let is_ready = tokio::time::timeout(LIMIT, is_ready).await;
    if !matches!(is_ready, Ok(Ok(true))) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::Machine(format!("{}: it is not ready", what())));
    }
    if let Ok(Some(status)) = child.try_wait() {
        return Err(Error::Machine(format!("{}: {status}", what())));
    }
    std::thread::spawn(move || child.wait());
    let sink = |write: io::PipeWriter| Some(Sink { write: write.into(), _read: None });
    Ok((sink(to_stdout), sink(to_stderr)))
}

/// Streams that are being relayed.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Gone when the input is to end.
    stdin: Mutex<Option<OwnedFd>>,
    /// Gone when output that nobody takes is to hold up nothing any more.
    stop: Mutex<Option<OwnedFd>>,
    outputs: tokio::sync::Mutex<Vec<oneshot::Receiver<()>>>,
}

impl Local {
    /// Relays a process's streams.
    pub(crate) fn relay(self, child: &mut Child) -> Result<Relay, Error> {
        let failed = || Error::io("relay standard streams");
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(Error::io("make a pipe"))?;
        let stopped = Arc::new(stopped);
        let mut stdin = None;
        if let (Some(local), Some(stream)) = (self.stdin, child.stdin.take()) {
            let (closed, close) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(Error::io("make a pipe"))?;
            let socket = stream.into_fd();
            let work = move || relay::input(local.as_fd(), &socket, Some(closed.as_fd()));
            relay::spawn("stdin", work).map_err(failed())?;
            stdin = Some(close);
        }
        let mut outputs = Vec::new();
        let output = |name, sink: Option<Sink>, stream: Option<Stream>| {
            let (Some(sink), Some(stream)) = (sink, stream) else { return Ok(None) };
            let (socket, stopped) = (stream.into_fd(), Arc::clone(&stopped));
            let work = move || {
                let ends = Ends { stop: Some(stopped.as_fd()), drain: None };
                relay::output(&socket, sink.write.as_fd(), ends)
            };
            relay::spawn(name, work).map(Some)
        };
        outputs.extend(output("stdout", self.stdout, child.stdout.take()).map_err(failed())?);
        outputs.extend(output("stderr", self.stderr, child.stderr.take()).map_err(failed())?);
        let (stdin, stop) = (Mutex::new(stdin), Mutex::new(Some(stop)));
        Ok(Relay { stdin, stop, outputs: tokio::sync::Mutex::new(outputs) })
    }
}

impl Relay {
    /// Ends the input, after what has been written so far.
    pub(crate) fn close_stdin(&self) {
        drop(self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Gives up output that has not been taken.
    pub(crate) fn stop(&self) {
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Waits until all output has been written, or cannot be any more.
    pub(crate) async fn finished(&self) {
        for output in self.outputs.lock().await.drain(..) {
            if output.await.is_ok() {
                warn!("an output ended in an unknown way");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn targets_are_paths_files_and_programs_with_decoded_arguments() {
        assert_eq!(Target::parse("/run/f").unwrap(), Target::Path("/run/f".into()));
        assert_eq!(Target::parse("file:///l").unwrap(), Target::File("/l".into()));
        let program = Target::parse("binary:///bin/log?--dir=%2Fvar&x=a+b&quiet").unwrap();
        let args = ["--dir", "/var", "x", "a b", "quiet"].map(str::to_owned).to_vec();
        assert_eq!(program, Target::Program { path: "/bin/log".into(), args });
        let error = Target::parse("tcp://x").unwrap_err().to_string();
        assert!(error.contains("tcp"), "{error}");
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        let paths = Paths { stdout: "o".into(), stderr: "e".into(), ..Paths::default() };
        assert_eq!(paths.wanted(), Stdio { stdin: false, stdout: true, stderr: true });
        let terminal = Paths { terminal: true, ..paths };
        assert!(!terminal.wanted().stderr);
    }

    #[tokio::test]
    async fn a_logging_program_gets_both_outputs_and_its_names() {
        let place = tempfile::tempdir().unwrap();
        let (program, log) = (place.path().join("logger"), place.path().join("log"));
        let script = "#!/bin/sh\nexec 5>&-\n\
                      { echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID $1\"; cat <&3; cat <&4; } > $2\n";
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let owner = Owner { id: "web", namespace: "ns" };
        let args = ["word".to_owned(), log.display().to_string()];
        let (stdout, stderr) = log_with(&program, &args, owner).await.unwrap();
        for (sink, text) in [(stdout, "out\n"), (stderr, "err\n")] {
            rustix::io::write(&sink.unwrap().write, text.as_bytes()).unwrap();
        }
        let mut text = String::new();
        for _ in 0..500 {
            text.clear();
            let _ = File::open(&log).map(|mut file| file.read_to_string(&mut text));
            if text.contains("err") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(text, "ns/web word\nout\nerr\n");
    }
}
