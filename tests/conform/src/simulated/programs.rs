//! The few programs that containers of a simulated guest have.

use std::time::Duration;

use hyperv_socket::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// A process's streams.
#[derive(Debug, Default)]
pub(super) struct Io {
    pub(super) stdin: Option<Stream>,
    pub(super) stdout: Option<Stream>,
    pub(super) stderr: Option<Stream>,
    /// Height and width of its terminal.
    pub(super) terminal: Option<watch::Receiver<(u64, u64)>>,
}

/// What differs from a right guest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) no_stdin_end: bool,
    pub(super) cut_output: bool,
    pub(super) no_stderr_on_terminal: bool,
}

impl Io {
    async fn print(&mut self, text: &str) {
        if let Some(stdout) = &mut self.stdout {
            let text = match self.terminal {
                Some(_) => text.replace('\n', "\r\n"),
                None => text.to_owned(),
            };
            let _ = stdout.write_all(text.as_bytes()).await;
        }
    }

    async fn complain(&mut self, text: &str, faults: Faults) {
        if self.terminal.is_some() {
            if !faults.no_stderr_on_terminal {
                self.print(text).await;
            }
        } else if let Some(stderr) = &mut self.stderr {
            let _ = stderr.write_all(text.as_bytes()).await;
        }
    }
}

/// Runs a program to its end. Returns its code, or the signal that ended it.
pub(super) async fn run(
    args: &[String],
    host_name: &str,
    io: &mut Io,
    signals: &mut mpsc::UnboundedReceiver<i32>,
    faults: Faults,
) -> Result<u32, i32> {
    let (mut traps, mut slow, mut code) = (false, Duration::ZERO, 0);
    let script = args.get(2).map(String::as_str).unwrap_or_default();
    if args[0] == "sh" && script.contains("trap") {
        traps = true;
        if script.contains("sleep 0.5") {
            slow = Duration::from_millis(500);
            code = 7;
        }
    }
    let program = program(args, host_name, io, faults);
    tokio::pin!(program);
    loop {
        tokio::select! {
            code = &mut program => return Ok(code),
            Some(signal) = signals.recv() => match signal {
                15 if script.contains("trap ''") => {}
                15 if traps => {
                    tokio::time::sleep(slow).await;
                    return Ok(code);
                }
                signal => return Err(signal),
            },
        }
    }
}

async fn program(args: &[String], host_name: &str, io: &mut Io, faults: Faults) -> u32 {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["true"] | ["test", ..] => 0,
        ["sleep", seconds] => {
            tokio::time::sleep(Duration::from_secs_f64(seconds.parse().unwrap_or(0.0))).await;
            0
        }
        ["echo", text] => {
            io.print(&format!("{text}\n")).await;
            0
        }
        ["hostname"] => {
            io.print(&format!("{host_name}\n")).await;
            0
        }
        ["seq", _, last] => {
            let last: u32 = last.parse().unwrap_or_default();
            let mut text: String = (1..=last).map(|number| format!("{number}\n")).collect();
            if faults.cut_output {
                text.truncate(text.len() & !0xffff);
            }
            io.print(&text).await;
            0
        }
        ["head", "-c", count, "/dev/zero"] => {
            let count: usize = count.parse().unwrap_or(0);
            zeros(io, count - usize::from(faults.cut_output && count > 0)).await
        }
        ["sh", "-c", "cat >/dev/null"] => {
            io.stdout = None;
            cat(io, faults).await
        }
        ["cat"] => cat(io, faults).await,
        ["stty", "size"] => size(io).await,
        ["sh", "-c", "read line; stty size"] => {
            if let Some(stdin) = &mut io.stdin {
                let _ = stdin.read(&mut [0; 16]).await;
            }
            size(io).await
        }
        ["sh", "-c", "echo out; echo err >&2"] => {
            io.print("out\n").await;
            io.complain("err\n", faults).await;
            0
        }
        ["sh", "-c", script] if script.starts_with("exit ") => script[5..].parse().unwrap_or(2),
        ["sh", "-c", script] if script.contains("/ns/") => {
            io.print(&format!("mnt:[{host_name}]\nuts:[{host_name}]\n")).await;
            0
        }
        // All other scripts run until they are told to end.
        ["sh", "-c", _] => std::future::pending().await,
        _ => 127,
    }
}

async fn size(io: &mut Io) -> u32 {
    let Some((height, width)) = io.terminal.as_ref().map(|size| *size.borrow()) else { return 1 };
    io.print(&format!("{height} {width}\n")).await;
    0
}

async fn zeros(io: &mut Io, mut count: usize) -> u32 {
    let Some(stdout) = &mut io.stdout else { return 0 };
    let zeros = [0; 64 << 10];
    while count > 0 {
        let len = count.min(zeros.len());
        if stdout.write_all(&zeros[..len]).await.is_err() {
            return 1;
        }
        count -= len;
    }
    0
}

async fn cat(io: &mut Io, faults: Faults) -> u32 {
    let Some(stdin) = &mut io.stdin else { return 0 };
    let mut buffer = vec![0; 16 << 10];
    while let Ok(len @ 1..) = stdin.read(&mut buffer).await {
        if let Some(stdout) = &mut io.stdout {
            let _ = stdout.write_all(&buffer[..len]).await;
        }
    }
    if faults.no_stdin_end {
        std::future::pending::<()>().await;
    }
    0
}
