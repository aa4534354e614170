//! Moves bytes between a process's sockets and this process's standard streams.
//!
//! One thread for each direction, for regular files and terminals may block whatever a runtime
//! does. With a pipe on the local side, bytes never enter this process. No call blocks in a splice:
//! it would hold the pipe's lock, and the other end of the pipe could not even read what is there.

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

/// The sockets of a process's standard streams, as far as they are connected.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The output directions that still run.
#[derive(Debug)]
pub(crate) struct Outputs(Vec<oneshot::Receiver<()>>);

impl Streams {
    /// Starts to relay them to this process's own.
    pub(crate) fn relay(self) -> io::Result<Outputs> {
        for socket in [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten() {
            ioctl_fionbio(socket, true)?;
        }
        if let Some(socket) = self.stdin {
            spawn("stdin", move || input(rustix::stdio::stdin(), &socket))?;
        }
        let mut outputs = Vec::new();
        if let Some(socket) = self.stdout {
            outputs.push(spawn("stdout", move || output(&socket, rustix::stdio::stdout()))?);
        }
        if let Some(socket) = self.stderr {
            outputs.push(spawn("stderr", move || output(&socket, rustix::stdio::stderr()))?);
        }
        Ok(Outputs(outputs))
    }
}

impl Outputs {
    /// Waits until all output has been written, or cannot be any more.
    pub(crate) async fn finished(&mut self) {
        while let Some(last) = self.0.last_mut() {
            let _ = last.await;
            self.0.pop();
        }
    }
}

/// Runs `work` in a thread, which owns what `work` owns; the receiver learns when all is dropped.
fn spawn(
    name: &'static str,
    work: impl FnOnce() -> rustix::io::Result<()> + Send + 'static,
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

/// Local to process. Its end is the end of the process's input.
fn input(local: BorrowedFd<'_>, socket: &OwnedFd) -> rustix::io::Result<()> {
    let outcome = copy(local, socket.as_fd(), Some(socket.as_fd()));
    let _ = shutdown(socket, Shutdown::Write);
    outcome
}

/// Process to local. Dropping the socket tells the guest that all has arrived, or that nobody
/// reads any more.
fn output(socket: &OwnedFd, local: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // Larger pipes take fewer turns; not to be allowed to is no harm.
    if is(local, FileType::Fifo) {
        let _ = fcntl_setpipe_size(local, CHUNK);
    }
    copy(socket.as_fd(), local, None)
}

/// Copies to the end by the shortest way there is. `watched` is a socket whose hang-up ends the
/// copy while there is nothing to read.
fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    watched: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<()> {
    let pipe = is(from, FileType::Fifo) || is(to, FileType::Fifo);
    let file = is(from, FileType::RegularFile);
    if pipe || file {
        let moved = pump(from, to, watched, || match pipe {
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
    pump(from, to, watched, || {
        let len = rustix::io::read(from, &mut buffer)?;
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            match retry_on_intr(|| rustix::io::write(to, rest)) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::AGAIN) => wait(&mut [PollFd::new(&to, PollFlags::OUT)])?,
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
    watched: Option<BorrowedFd<'_>>,
    mut step: impl FnMut() -> rustix::io::Result<usize>,
) -> rustix::io::Result<()> {
    loop {
        let readable = PollFd::new(&from, PollFlags::IN);
        match &watched {
            None => wait(&mut [readable])?,
            Some(watched) => {
                let mut polled = [readable, PollFd::new(watched, PollFlags::empty())];
                wait(&mut polled)?;
                if polled[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                    return Ok(());
                }
            }
        }
        match step() {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(&mut [PollFd::new(&to, PollFlags::OUT)])?,
            Err(error) => return Err(error),
        }
    }
}

fn wait(polled: &mut [PollFd<'_>]) -> rustix::io::Result<()> {
    retry_on_intr(|| poll(polled, None)).map(drop)
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
        input(file.as_fd(), &near.into()).unwrap();
        assert!(reader.join().unwrap() == pattern());
    }

    #[test]
    fn output_to_a_pipe_arrives_whole_and_ends() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        let writer = thread::spawn(move || far.write_all(&pattern()).unwrap());
        let relay = thread::spawn(move || output(&near.into(), write.as_fd()));
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
        let relay = thread::spawn(move || output(&near.into(), write.as_fd()));
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
        output(&near.into(), file.as_fd()).unwrap();
        writer.join().unwrap();
        assert!(std::fs::read(path.path()).unwrap() == pattern());
    }

    #[test]
    fn a_closed_pipe_ends_the_output_with_a_broken_pipe() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        drop(read);
        far.write_all(b"unwanted").unwrap();
        assert_eq!(output(&near.into(), write.as_fd()), Err(Errno::PIPE));
    }

    #[test]
    fn input_ends_when_the_process_is_gone_and_nothing_was_typed() {
        let (near, far) = UnixStream::pair().unwrap();
        let (read, _write) = io::pipe().unwrap();
        drop(far);
        input(read.as_fd(), &near.into()).unwrap();
    }
}
