//! The machine's serial console: its last 256 KiB, and how far the boot has come.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// How much of the console is kept, in bytes.
const KEPT: usize = 256 << 10;

/// How many lines [`Console::tail`] gives.
const TAIL_LINES: usize = 40;

/// The longest line that is searched for a phase.
const MARK_LIMIT: usize = 512;

/// How far a boot has come. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Phase {
    /// QEMU runs; the guest has said nothing yet.
    #[default]
    Started,
    /// The console has spoken.
    Kernel,
    /// Our init runs.
    Init,
    /// Init starts the agent.
    Agent,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Started => "qemu started",
            Self::Kernel => "kernel booting",
            Self::Init => "init",
            Self::Agent => "agent",
        })
    }
}

/// Finds phases in console bytes.
#[derive(Debug, Default)]
struct PhaseTracker {
    phase: Phase,
    line: Vec<u8>,
}

impl PhaseTracker {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.phase = self.phase.max(Phase::Kernel);
            match byte {
                b'\n' => {
                    self.phase = self.phase.max(mark(&self.line).unwrap_or_default());
                    self.line.clear();
                }
                _ if self.line.len() < MARK_LIMIT => self.line.push(byte),
                _ => {}
            }
        }
    }
}

/// The phase that a line announces. The kernel may have put its own text before it.
fn mark(line: &[u8]) -> Option<Phase> {
    let line = String::from_utf8_lossy(line);
    let (_, name) = line.split_once("linkspan: phase=")?;
    match name.trim_end() {
        "init" => Some(Phase::Init),
        "agent" => Some(Phase::Agent),
        _ => None,
    }
}

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<u8>,
    /// Bytes that came before those in the ring.
    dropped: u64,
    tracker: PhaseTracker,
}

impl State {
    fn push(&mut self, bytes: &[u8]) {
        self.tracker.push(bytes);
        self.ring.extend(bytes);
        let excess = self.ring.len().saturating_sub(KEPT);
        self.ring.drain(..excess);
        self.dropped += excess as u64;
    }

    /// Bytes from `offset` on, and where they begin if those are gone.
    fn from(&self, offset: u64) -> (u64, Vec<u8>) {
        let start = offset.max(self.dropped);
        let skip = usize::try_from(start - self.dropped).unwrap_or(usize::MAX);
        (start, self.ring.iter().skip(skip).copied().collect())
    }
}

/// What the machine wrote on its console. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Console {
    state: Arc<Mutex<State>>,
    /// Bytes so far, and whether there will be more.
    progress: watch::Receiver<(u64, bool)>,
}

impl Console {
    /// Takes over our end of the console's socket.
    pub(super) fn new(socket: StdUnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let mut socket = UnixStream::from_std(socket)?;
        let state = Arc::new(Mutex::new(State::default()));
        let (sender, progress) = watch::channel((0, true));
        tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                let mut buffer = vec![0; 16 << 10];
                while let Ok(count @ 1..) = socket.read(&mut buffer).await {
                    lock(&state).push(&buffer[..count]);
                    sender.send_modify(|progress| progress.0 += count as u64);
                }
                sender.send_modify(|progress| progress.1 = false);
            }
        });
        Ok(Self { state, progress })
    }

    pub(super) fn phase(&self) -> Phase {
        lock(&self.state).tracker.phase
    }

    /// All that is kept, harmless.
    pub(super) fn text(&self) -> String {
        harmless(&lock(&self.state).from(0).1)
    }

    /// The last lines, harmless.
    pub(super) fn tail(&self) -> String {
        last_lines(&self.text(), TAIL_LINES).to_owned()
    }

    /// Waits until the kept text contains `words`; whether it came to that.
    pub(super) async fn says(&self, words: &str) -> bool {
        let mut progress = self.progress.clone();
        loop {
            let open = progress.borrow_and_update().1;
            if self.text().contains(words) {
                return true;
            }
            if !open || progress.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Waits until there will be nothing more.
    pub(super) async fn ended(&self) {
        let _ = self.progress.clone().wait_for(|(_, open)| !open).await;
    }

    pub(super) fn follow(&self) -> ConsoleFollower {
        ConsoleFollower {
            state: Arc::clone(&self.state),
            progress: self.progress.clone(),
            offset: 0,
        }
    }
}

/// Reads a console from the oldest byte that is kept, and waits for more.
#[derive(Debug, Clone)]
pub(super) struct ConsoleFollower {
    state: Arc<Mutex<State>>,
    progress: watch::Receiver<(u64, bool)>,
    offset: u64,
}

#[async_trait::async_trait]
impl crate::vmm::FollowConsole for ConsoleFollower {
    /// The next piece of text, with control characters made harmless; `None` once the machine has
    /// ended and all has been read. A reader that is more than 256 KiB behind misses some.
    ///
    /// Dropping the future loses nothing.
    async fn next(&mut self) -> Option<String> {
        loop {
            // Marked as seen before the look: what comes after it wakes us.
            let open = self.progress.borrow_and_update().1;
            let (start, mut bytes) = lock(&self.state).from(self.offset);
            if open {
                bytes.truncate(whole_characters(&bytes));
            }
            if !bytes.is_empty() {
                self.offset = start + bytes.len() as u64;
                return Some(harmless(&bytes));
            }
            if !open {
                return None;
            }
            // An error means that there will be nothing more, and the next look is the last.
            let _ = self.progress.changed().await;
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many of the bytes can be shown now: an unfinished character at the end has to wait, and so
/// has a carriage return, for a line feed may follow.
fn whole_characters(bytes: &[u8]) -> usize {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let start = bytes.len().saturating_sub(3);
    let lead = bytes[start..].iter().rposition(|&byte| byte & 0xc0 != 0x80);
    let Some(lead) = lead.map(|at| start + at) else { return bytes.len() };
    let length = match bytes[lead] {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    };
    if lead + length > bytes.len() { lead } else { bytes.len() }
}

/// Text without anything a terminal would obey: `^[` stands for escape and so on. Line ends become
/// a single line feed.
pub(super) fn harmless(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' if chars.peek().is_none_or(|&next| next == '\n' || next == '\r') => {}
            '\r' => out.push('\n'), // it would write over the line
            '\0'..='\x1f' => {
                out.push('^');
                out.push(char::from(c as u8 + b'@'));
            }
            '\x7f' => out.push_str("^?"),
            // C1 controls, and what changes the direction of text.
            '\u{80}'..='\u{9f}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => out.push(char::REPLACEMENT_CHARACTER),
            _ => out.push(c),
        }
    }
    out
}

/// The last `count` lines of `text`.
fn last_lines(text: &str, count: usize) -> &str {
    let body = text.trim_end_matches('\n');
    let start = body.rmatch_indices('\n').nth(count - 1).map_or(0, |(at, _)| at + 1);
    &body[start..]
}

#[cfg(test)]
mod tests;
