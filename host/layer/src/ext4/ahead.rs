//! A thread that writes, so that its caller can read meanwhile.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use super::stream::{BUFFER, write_blocks};
use crate::verity::Hasher;

/// Buffers that may wait to be written.
const WAITING: usize = 2;

/// First block, the buffer, and how many of its bytes.
type Job = (u32, Vec<u8>, usize);

/// Writes buffers in the order in which they come.
pub(super) struct Ahead {
    jobs: SyncSender<Job>,
    /// Buffers that were written.
    spare: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Ahead {
    pub(super) fn new(file: &File, hasher: Option<Arc<Hasher>>) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (jobs, taken) = sync_channel(WAITING);
        let (given, spare) = channel();
        let work = move || work(&file, hasher.as_deref(), &taken, &given);
        let thread = thread::Builder::new().name("layer".to_owned()).spawn(work)?;
        Ok(Self { jobs, spare, thread })
    }

    /// Takes a buffer and puts another in its place; it waits if the thread is behind. `false` if
    /// the thread has ended, for a reason that [`Self::finish`] tells.
    pub(super) fn write(&mut self, start: u32, buffer: &mut Vec<u8>, length: usize) -> bool {
        let next = self.spare.try_recv().unwrap_or_else(|_| vec![0; BUFFER]);
        self.jobs.send((start, std::mem::replace(buffer, next), length)).is_ok()
    }

    /// Waits until all is written.
    pub(super) fn finish(self) -> io::Result<()> {
        drop(self.jobs);
        self.thread.join().map_err(|_| io::Error::other("the writing thread panicked"))?
    }
}

fn work(
    file: &File,
    hasher: Option<&Hasher>,
    jobs: &Receiver<Job>,
    spare: &Sender<Vec<u8>>,
) -> io::Result<()> {
    for (start, buffer, length) in jobs {
        write_blocks(file, start, &buffer[..length], hasher)?;
        // Nobody needs it any more where nobody takes it.
        let _ = spare.send(buffer);
    }
    Ok(())
}
