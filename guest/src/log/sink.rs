//! Where lines of the log go, without ever waiting for whoever reads them.
//!
//! A line is queued, and the queue is written as far as its reader takes it. What does not fit is
//! counted, and told in a line of its own once there is room. A line that was cut off by the end
//! of a connection is written anew, whole, on the next one: a reader that starts in the middle of
//! one would give up.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::net::SendFlags;
use tokio::sync::Notify;

/// Most bytes that wait for a reader.
const LIMIT: usize = 256 << 10;

/// A queue of lines with its way out.
pub(super) struct Sink {
    queue: Mutex<Queue>,
    /// The way out is blocked, or lost.
    pub(super) stuck: Notify,
}

struct Queue {
    lines: VecDeque<Vec<u8>>,
    /// Written of the first line.
    written: usize,
    bytes: usize,
    lost: u64,
    out: Out,
}

enum Out {
    /// A reader is still to come.
    Absent,
    /// Nobody will read again.
    Closed,
    /// A file, pipe or terminal, open so that it does not block; or one that cannot be.
    File(File),
    Socket(OwnedFd),
}

/// What keeps the queue from emptying.
pub(super) enum Obstacle {
    /// Nothing.
    None,
    /// There is nobody to read.
    Absent,
    /// The reader is slow: this becomes writable.
    Slow(OwnedFd),
}

impl Sink {
    /// Lines wait until somebody comes ([`Sink::connect`]).
    pub(super) fn unconnected() -> Self {
        Self::new(Out::Absent)
    }

    pub(super) fn file(file: File) -> Self {
        Self::new(Out::File(file))
    }

    /// To this process's standard error.
    pub(super) fn stderr() -> Self {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let out = match rustix::fs::open("/proc/self/fd/2", flags | OFlags::APPEND, Mode::empty()) {
            Ok(fd) => Out::File(fd.into()),
            // A socket cannot be opened, but told not to block with each message.
            Err(rustix::io::Errno::NXIO) => {
                rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3).map_or(Out::Closed, Out::Socket)
            }
            Err(_) => rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3)
                .map_or(Out::Closed, |fd| Out::File(fd.into())),
        };
        Self::new(out)
    }

    fn new(out: Out) -> Self {
        let queue = Queue { lines: VecDeque::new(), written: 0, bytes: 0, lost: 0, out };
        Self { queue: Mutex::new(queue), stuck: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, newline included.
    pub(super) fn write(&self, line: Vec<u8>) {
        let mut queue = self.lock();
        if matches!(queue.out, Out::Closed) {
            return;
        }
        if queue.bytes + line.len() > LIMIT {
            queue.lost += 1;
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        // One that waits already waits for the same.
        if queue.lines.len() == 1 && !queue.flush() {
            self.stuck.notify_one();
        }
    }

    /// Writes what can be written, and says what keeps the rest.
    pub(super) fn flush(&self, lost: impl FnOnce(u64) -> Vec<u8>) -> Obstacle {
        let mut queue = self.lock();
        if queue.flush() && queue.lost > 0 {
            let line = lost(std::mem::take(&mut queue.lost));
            queue.bytes += line.len();
            queue.lines.push_back(line);
            queue.flush();
        }
        match &queue.out {
            _ if queue.lines.is_empty() => Obstacle::None,
            Out::Absent => Obstacle::Absent,
            Out::Closed => Obstacle::None,
            Out::File(file) => slow(file),
            Out::Socket(socket) => slow(socket),
        }
    }

    /// A reader has come.
    pub(super) fn connect(&self, socket: OwnedFd) {
        let mut queue = self.lock();
        queue.written = 0;
        queue.out = Out::Socket(socket);
    }

    /// Nobody will come.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.out = Out::Closed;
        queue.lines.clear();
        queue.bytes = 0;
    }
}

fn slow(fd: impl AsFd) -> Obstacle {
    fd.as_fd().try_clone_to_owned().map_or(Obstacle::None, Obstacle::Slow)
}

impl Queue {
    /// Whether all has been written.
    fn flush(&mut self) -> bool {
        while let Some(line) = self.lines.front() {
            let rest = &line[self.written..];
            let written = match &mut self.out {
                Out::Absent => return false,
                Out::Closed => return true,
                Out::File(file) => file.write(rest),
                Out::Socket(socket) => {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    rustix::net::send(socket, rest, flags).map_err(io::Error::from)
                }
            };
            match written {
                Ok(len) if len < rest.len() && len > 0 => self.written += len,
                Ok(_) => {
                    self.bytes -= line.len();
                    self.lines.pop_front();
                    self.written = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.out = Out::Absent;
                    self.written = 0;
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn lines(count: usize) -> impl Iterator<Item = Vec<u8>> {
        (0..count).map(|n| format!("{n:06} {}\n", "x".repeat(1000)).into_bytes())
    }

    #[test]
    fn a_reader_that_does_not_read_is_not_waited_for_and_told_what_it_has_missed() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sink = Sink::unconnected();
        sink.connect(ours.into());
        lines(2000).for_each(|line| sink.write(line));
        let told = |count: u64| format!("lost {count}\n").into_bytes();
        assert!(matches!(sink.flush(told), Obstacle::Slow(_)));
        theirs.set_nonblocking(true).unwrap();
        let (mut text, mut buffer) = (Vec::new(), [0; 8192]);
        loop {
            match theirs.read(&mut buffer) {
                Ok(len) => text.extend_from_slice(&buffer[..len]),
                Err(_) if matches!(sink.flush(told), Obstacle::None) && theirs.peek_none() => break,
                Err(_) => {}
            }
        }
        let text = String::from_utf8(text).unwrap();
        let whole = text.lines().filter(|line| line.len() == 1007).count();
        let lost: usize =
            text.lines().last().unwrap().strip_prefix("lost ").unwrap().parse().unwrap();
        assert!(lost > 0);
        assert_eq!(whole + lost, 2000);
        assert_eq!(text.lines().count(), whole + 1, "every line is whole");
    }

    trait PeekNone {
        fn peek_none(&mut self) -> bool;
    }

    impl PeekNone for UnixStream {
        fn peek_none(&mut self) -> bool {
            rustix::net::recv(&*self, &mut [0; 1], rustix::net::RecvFlags::PEEK).is_err()
        }
    }

    #[test]
    fn a_line_that_was_cut_off_is_written_again_whole() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sink = Sink::unconnected();
        sink.connect(ours.into());
        sink.write(vec![b'x'; 4 << 20]);
        assert!(matches!(sink.flush(|_| Vec::new()), Obstacle::None), "too long for the queue");
        lines(250).for_each(|line| sink.write(line));
        let mut first = [0; 1500];
        theirs.read_exact(&mut first).unwrap();
        drop(theirs);
        assert!(matches!(sink.flush(|_| Vec::new()), Obstacle::Absent));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        sink.connect(ours.into());
        while !matches!(sink.flush(|_| Vec::new()), Obstacle::None) {
            let mut buffer = [0; 7];
            theirs.read_exact(&mut buffer).unwrap();
            assert!(buffer[..6].iter().all(u8::is_ascii_digit), "{buffer:?}");
            theirs.read_exact(&mut [0; 1001]).unwrap();
        }
    }
}
