//! Moves bytes between a process's sockets and files of this process's.
//!
//! Each direction takes a thread of its own, for regular files and terminals may block whatever a
//! runtime does. With a pipe on the local side, bytes never enter this process. No call blocks in a
//! splice: it would hold the pipe's lock, and the other end of the pipe could not even read what is
//! there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat, sendfile};
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr};
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};
use tokio::sync::oneshot;
use tracing::debug;

/// What one call moves at most.
const CHUNK: usize = 1 << 20;

/// What is copied at a time where bytes have to come through here.
const BUFFER: usize = 256 << 10;

/// The descriptors whose hang-up ends a direction before its source does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends<'fd> {
    /// Nothing more is moved.
    pub stop: Option<BorrowedFd<'fd>>,
    /// What is there already is moved still.
    pub drain: Option<BorrowedFd<'fd>>,
}

/// Runs one direction in a thread, which owns what `work` owns. The receiver learns when all of it
/// has been dropped.
///
/// # Errors
/// When there can be no thread.
pub fn spawn(
    name: &'static str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<oneshot::Receiver<()>> {
    let (done, finished) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(error) = work() {
            debug!(name, %error, "relay");
        }
        drop(done);
    })?;
    Ok(finished)
}

/// Local to process, until one of the two ends, or something in `ends` does (which has `stop` from
/// the socket itself). Its end is the end of the process's input.
///
/// # Errors
/// When a side breaks.
pub fn input(
    local: BorrowedFd<'_>,
    socket: &OwnedFd,
    drain: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    ioctl_fionbio(socket, true)?;
    let outcome = copy(local, socket.as_fd(), Ends { stop: Some(socket.as_fd()), drain });
    let _ = shutdown(socket, Shutdown::Write);
    Ok(outcome?)
}

/// Process to local, to the end. Dropping the socket then tells the guest that all has arrived, or
/// that nobody reads any more.
///
/// # Errors
/// When a side breaks.
pub fn output(socket: &OwnedFd, local: BorrowedFd<'_>, ends: Ends<'_>) -> io::Result<()> {
    ioctl_fionbio(socket, true)?;
    // Larger pipes take fewer turns; not to be allowed to is no harm.
    if is(local, FileType::Fifo) {
        let _ = fcntl_setpipe_size(local, CHUNK);
    }
    Ok(copy(socket.as_fd(), local, ends)?)
}

/// Copies to the end by the shortest way there is.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, ends: Ends<'_>) -> rustix::io::Result<()> {
    let pipe = is(from, FileType::Fifo) || is(to, FileType::Fifo);
    let file = is(from, FileType::RegularFile);
    if pipe || file {
        let moved = pump(from, to, ends, || match pipe {
            true => splice(from, None, to, None, CHUNK, SpliceFlags::NONBLOCK),
            false => sendfile(to, from, None, CHUNK),
        });
        match moved {
            // This pair of files cannot do it; nothing has been moved then.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            other => return other,
        }
    }
    let mut buffer = vec![0; BUFFER];
    pump(from, to, ends, || {
        let len = rustix::io::read(from, &mut buffer)?;
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            match retry_on_intr(|| rustix::io::write(to, rest)) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::AGAIN) if wait(to, PollFlags::OUT, ends)? == Wait::Stop => return Ok(0),
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(len)
    })
}

/// Repeats `step` until it has nothing more, waiting before each for something to read.
fn pump(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    ends: Ends<'_>,
    mut step: impl FnMut() -> rustix::io::Result<usize>,
) -> rustix::io::Result<()> {
    let writing = Ends { drain: None, ..ends };
    loop {
        if wait(from, PollFlags::IN, ends)? == Wait::Stop {
            return Ok(());
        }
        match step() {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if wait(to, PollFlags::OUT, writing)? == Wait::Stop {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Wait {
    Ready,
    Stop,
}

fn wait(on: BorrowedFd<'_>, what: PollFlags, ends: Ends<'_>) -> rustix::io::Result<Wait> {
    let mut polled = vec![PollFd::from_borrowed_fd(on, what)];
    let others = [ends.stop, ends.drain].into_iter().flatten();
    polled.extend(others.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::empty())));
    retry_on_intr(|| poll(&mut polled, None))?;
    let gone = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR);
    let stopped = ends.stop.is_some() && gone(&polled[1]);
    // Something else has hung up, and there is nothing more on this side.
    let drained = ends.drain.is_some() && polled[0].revents().is_empty();
    Ok(if stopped || drained { Wait::Stop } else { Wait::Ready })
}

fn is(fd: BorrowedFd<'_>, kind: FileType) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pattern() -> Vec<u8> {
        (0..3_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    #[test]
    fn input_from_a_file_arrives_whole_and_ends() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&pattern()).unwrap();
        file.rewind().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            far.read_to_end(&mut got).map(|_| got).unwrap()
        });
        input(file.as_fd(), &near.into(), None).unwrap();
        assert!(reader.join().unwrap() == pattern());
    }

    #[test]
    fn output_to_a_pipe_arrives_whole_and_ends() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        let writer = thread::spawn(move || far.write_all(&pattern()).unwrap());
        let relay = thread::spawn(move || output(&near.into(), write.as_fd(), Ends::default()));
        let mut got = Vec::new();
        File::from(OwnedFd::from(read)).read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        relay.join().unwrap().unwrap();
        assert!(got == pattern());
    }

    #[test]
    fn output_can_be_read_from_a_pipe_while_the_process_goes_on() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let relay = thread::spawn(move || output(&near.into(), write.as_fd(), Ends::default()));
        for word in [b"early", b"later"] {
            far.write_all(word).unwrap();
            let mut got = [0; 5];
            read.read_exact(&mut got).unwrap();
            assert_eq!(&got, word);
        }
        drop(far);
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn output_to_a_file_arrives_whole_even_if_it_is_appended() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let file = File::options().append(true).open(path.path()).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let writer = thread::spawn(move || far.write_all(&pattern()).unwrap());
        output(&near.into(), file.as_fd(), Ends::default()).unwrap();
        writer.join().unwrap();
        assert!(std::fs::read(path.path()).unwrap() == pattern());
    }

    #[test]
    fn a_closed_pipe_ends_the_output_with_a_broken_pipe() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        drop(read);
        far.write_all(b"unwanted").unwrap();
        let broken = output(&near.into(), write.as_fd(), Ends::default()).unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn input_ends_when_the_process_is_gone_and_nothing_was_typed() {
        let (near, far) = UnixStream::pair().unwrap();
        let (read, _write) = io::pipe().unwrap();
        drop(far);
        input(read.as_fd(), &near.into(), None).unwrap();
    }

    #[test]
    fn input_that_is_closed_ends_with_what_was_written_before_though_the_writer_stays() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (read, mut write) = io::pipe().unwrap();
        let (closed, close) = io::pipe().unwrap();
        write.write_all(b"all of it").unwrap();
        drop(close);
        input(read.as_fd(), &near.into(), Some(closed.as_fd())).unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"all of it");
        write.write_all(b"too late").unwrap();
    }

    #[test]
    fn output_that_nobody_takes_ends_when_it_is_stopped() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (_read, write) = io::pipe().unwrap();
        let (stopped, stop) = io::pipe().unwrap();
        let relay = thread::spawn(move || {
            let ends = Ends { stop: Some(stopped.as_fd()), drain: None };
            output(&near.into(), write.as_fd(), ends)
        });
        // More than all buffers between hold: the writer is stuck until the relay lets go.
        let flood = thread::spawn(move || while far.write_all(&pattern()).is_ok() {});
        drop(stop);
        relay.join().unwrap().unwrap();
        flood.join().unwrap();
    }
}
