//! Processes of the scripted guest: what they do with their streams.
//!
//! A process with an input copies it to its output, and ends when it ends. One without writes a
//! line; an init among them then runs until it is told to end, any other ends at once.

use std::net::Shutdown;
use std::time::Duration;

use hyperv_socket::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::reach::HostAddress;
use super::record::Second;

/// The code with which a process ends that is not told to.
pub(crate) const CODE: u32 = 7;

/// How long an output stays silent at first: a host that closes it then closes it too early.
const SILENCE: Duration = Duration::from_millis(60);

/// How long a process lives on after the end of its input.
const LINGER: Duration = Duration::from_millis(40);

/// How long a port is dialled that nobody listens on yet.
const DIAL: Duration = Duration::from_secs(1);

/// How much text that is no JSON is written to a log, in bytes.
const TRAILING: usize = 1 << 20;

/// How long a host may take to read that.
const READING: Duration = Duration::from_secs(2);

/// What has happened to a process.
#[derive(Debug)]
pub(super) enum Happening {
    /// Its ports were dialled: its streams, or what refused. `late` tells of ports that nobody
    /// listened on at first.
    Dialled { request: usize, streams: Result<Box<Io>, String>, late: Vec<String> },
    /// A statement was broken.
    Broken(u32, String),
    /// An output was ended here, and whether an input was ended by the host.
    Streams { outputs: usize, inputs: usize },
    /// A second connection to a port.
    Second(u32, Second),
    /// It has ended, and its outputs are gone.
    Ended { pid: u32, code: u32 },
    /// The log port has been written to.
    Logged,
}

/// A process's streams.
#[derive(Debug, Default)]
pub(super) struct Io {
    pub(super) stdin: Option<Stream>,
    pub(super) stdout: Option<Stream>,
    pub(super) stderr: Option<Stream>,
    /// Whether a half-closed peer can be told from one that has closed.
    pub(super) tells_half_closed: bool,
}

/// Dials a process's ports in order.
pub(super) async fn dial(
    address: HostAddress,
    ports: [Option<u32>; 3],
    request: usize,
    tell: mpsc::UnboundedSender<Happening>,
) {
    let mut late = Vec::new();
    let mut streams = Vec::new();
    let mut refused = None;
    for port in ports {
        let Some(port) = port else {
            streams.push(None);
            continue;
        };
        let begun = Instant::now();
        let stream = loop {
            match address.dial(port).await {
                Ok(stream) => break Some(stream),
                Err(error) => {
                    if begun.elapsed() > DIAL {
                        refused = Some(format!("port {port:#x}: {error}"));
                        break None;
                    }
                    if late.last().is_none_or(|(at, _)| *at != port) {
                        late.push((port, error.to_string()));
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            }
        };
        streams.push(stream);
    }
    let mut streams = streams.into_iter();
    let mut next = || streams.next().flatten();
    let io = Io {
        stdin: next(),
        stdout: next(),
        stderr: next(),
        tells_half_closed: address.tells_half_closed(),
    };
    let late = late
        .into_iter()
        .map(|(port, error)| format!("nobody listens on port {port:#x} yet: {error}"))
        .collect();
    let streams = refused.map_or(Ok(Box::new(io)), Err);
    let _ = tell.send(Happening::Dialled { request, streams, late });
}

/// Dials a port once more, after it was dialled.
pub(super) async fn dial_again(
    address: HostAddress,
    port: u32,
    tell: mpsc::UnboundedSender<Happening>,
) {
    sleep(Duration::from_millis(200)).await;
    let second = second(&address, port).await;
    let _ = tell.send(Happening::Second(port, second));
}

/// What comes on a second connection to a port.
pub(super) async fn second(address: &HostAddress, port: u32) -> Second {
    let Ok(mut stream) = address.dial(port).await else { return Second::Refused };
    match timeout(Duration::from_millis(500), stream.read(&mut [0; 1024])).await {
        Err(_) => Second::Open(0),
        Ok(Ok(len @ 1..)) => Second::Open(len),
        Ok(_) => Second::Refused,
    }
}

/// Writes to the log port, and more than any buffer holds behind it.
pub(super) async fn log(
    mut stream: Stream,
    text: &'static str,
    tell: mpsc::UnboundedSender<Happening>,
) {
    let writing = async {
        stream.write_all(text.as_bytes()).await?;
        if !text.is_empty() {
            // A host that has had enough of it closes now.
            sleep(Duration::from_millis(100)).await;
            stream.write_all(&vec![b'#'; TRAILING]).await?;
        }
        std::io::Result::Ok(())
    };
    let broken = match timeout(READING, writing).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("the log cannot be written: {error}")),
        Err(_) => Some(format!("the log is not read within {READING:?}")),
    };
    if let Some(text) = broken {
        let _ = tell.send(Happening::Broken(49, text));
    }
    let _ = tell.send(Happening::Logged);
    // It stays for as long as the run.
    std::future::pending::<()>().await;
}

/// Runs a process to its end. A signal is the code that it ends with; `close` is how long the host
/// has to close outputs that have ended.
pub(super) async fn run(
    mut io: Io,
    (pid, is_init, close): (u32, bool, Duration),
    mut signals: mpsc::UnboundedReceiver<u32>,
    tell: mpsc::UnboundedSender<Happening>,
) {
    let had_input = io.stdin.is_some();
    let code = tokio::select! {
        code = work(&mut io, is_init, &tell) => code,
        Some(code) = signals.recv() => code,
    };
    let inputs = usize::from(had_input && code == CODE);
    let stdin = io.stdin.take();
    if let Some(stdin) = &stdin {
        let _ = stdin.shutdown(Shutdown::Read);
    }
    let ends = [("stdout", io.stdout.take()), ("stderr", io.stderr.take())];
    let outputs = ends.iter().filter(|(_, stream)| stream.is_some()).count();
    let [stdout, stderr] = ends.map(|(name, stream)| end(name, stream, close, &tell));
    tokio::join!(stdout, stderr);
    let _ = tell.send(Happening::Streams { outputs, inputs });
    let _ = tell.send(Happening::Ended { pid, code });
    drop(stdin);
}

async fn work(io: &mut Io, is_init: bool, tell: &mpsc::UnboundedSender<Happening>) -> u32 {
    let broken = |statement, text: String| drop(tell.send(Happening::Broken(statement, text)));
    sleep(SILENCE).await;
    for (name, stream) in [("stdout", &io.stdout), ("stderr", &io.stderr)] {
        if let Some(stream) = stream
            && io.tells_half_closed
            && has_closed(stream)
        {
            broken(32, format!("{name} is closed while the process runs"));
        }
    }
    let Some(mut stdin) = io.stdin.take() else {
        let said = say(&mut io.stdout, b"conform: said by the guest\n").await;
        if let Err(error) = said {
            broken(32, format!("stdout is closed while the process runs: {error}"));
        }
        if is_init {
            std::future::pending::<()>().await;
        }
        return CODE;
    };
    let mut buffer = vec![0; 16 << 10];
    let ended = loop {
        match stdin.read(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(len) => {
                if let Err(error) = say(&mut io.stdout, &buffer[..len]).await {
                    broken(32, format!("stdout is closed while the process runs: {error}"));
                }
            }
            Err(error) => break Err(error),
        }
    };
    sleep(LINGER).await;
    match ended {
        Err(error) => broken(33, format!("stdin breaks in place of ending: {error}")),
        Ok(()) if io.tells_half_closed && has_closed(&stdin) => {
            broken(33, "stdin is closed in full while the process runs".to_owned());
        }
        Ok(()) => {}
    }
    io.stdin = Some(stdin);
    let _ = say(&mut io.stderr, b"conform: the input has ended\n").await;
    CODE
}

async fn say(stream: &mut Option<Stream>, text: &[u8]) -> std::io::Result<()> {
    match stream {
        Some(stream) => stream.write_all(text).await,
        None => Ok(()),
    }
}

/// Ends an output, and waits for the host to close its end.
async fn end(
    name: &str,
    stream: Option<Stream>,
    limit: Duration,
    tell: &mpsc::UnboundedSender<Happening>,
) {
    let Some(mut stream) = stream else { return };
    let _ = stream.shutdown(Shutdown::Write);
    let closed = timeout(limit, async { while let Ok(1..) = stream.read(&mut [0; 256]).await {} });
    if closed.await.is_err() {
        let text = format!("{name} has ended, and the host does not close it within {limit:?}");
        let _ = tell.send(Happening::Broken(31, text));
    }
}

/// Whether the peer of a Unix socket has closed it, and not only one direction.
fn has_closed(stream: &Stream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut polled, Some(&now)), Ok(1..))
        && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
