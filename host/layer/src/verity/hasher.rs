//! Hashes blocks while others are still being written: a thread for each processor, the hashes
//! in an unnamed file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{digest, salted};
use crate::ext4::{BLOCK, BLOCK_U64};

/// Bytes that are handed to a thread at a time.
pub(crate) const CHUNK: u64 = 1 << 20;
/// Bytes of a hash.
pub(super) const DIGEST: usize = 32;

/// Hashes the blocks of one file.
#[derive(Debug)]
pub(crate) struct Hasher {
    jobs: SyncSender<Job>,
    workers: Vec<JoinHandle<io::Result<()>>>,
    leaves: Leaves,
    pending: Arc<Pending>,
}

/// How many jobs are not done yet.
#[derive(Debug, Default)]
struct Pending {
    jobs: Mutex<usize>,
    none: Condvar,
}

impl Pending {
    fn add(&self, jobs: isize) {
        let mut count = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_add_signed(jobs);
        if *count == 0 {
            self.none.notify_all();
        }
    }
}

/// The hashes of a file's blocks in their order; zeros where a block was never written.
#[derive(Debug)]
pub(crate) struct Leaves {
    pub(super) file: Arc<File>,
    pub(super) salt: Vec<u8>,
}

/// First block, and how many.
type Job = (u64, u64);

impl Hasher {
    pub(crate) fn new(file: &File, salt: &[u8]) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let (jobs, receiver) = sync_channel(4 * count);
        let receiver = Arc::new(Mutex::new(receiver));
        let data = Arc::new(file.try_clone()?);
        let leaves = Leaves { file: Arc::new(tempfile::tempfile()?), salt: salt.to_vec() };
        let pending = Arc::new(Pending::default());
        let mut workers = Vec::new();
        for _ in 0..count {
            let (receiver, data) = (Arc::clone(&receiver), Arc::clone(&data));
            let (hashes, salt) = (Arc::clone(&leaves.file), salt.to_vec());
            let pending = Arc::clone(&pending);
            let work = move || work(&receiver, &pending, &data, &hashes, &salt);
            workers.push(thread::Builder::new().name("verity".to_owned()).spawn(work)?);
        }
        Ok(Self { jobs, workers, leaves, pending })
    }

    /// These blocks are in the file, and stay as they are; it waits if the threads are behind.
    pub(crate) fn written(&self, start: u64, blocks: u64) {
        const AT_ONCE: u64 = CHUNK / BLOCK_U64;
        for first in (start..start + blocks).step_by(AT_ONCE as usize) {
            self.pending.add(1);
            if self.jobs.send((first, AT_ONCE.min(start + blocks - first))).is_err() {
                self.pending.add(-1); // no thread is left: `finish` says why
            }
        }
    }

    /// Waits until what was written so far is hashed, so that it can be written again.
    pub(crate) fn settle(&self) {
        let count = self.pending.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.pending.none.wait_while(count, |count| *count > 0));
    }

    /// Waits for all hashes.
    pub(crate) fn finish(self) -> io::Result<Leaves> {
        drop(self.jobs);
        for worker in self.workers {
            worker.join().map_err(|_| io::Error::other("a hashing thread panicked"))??;
        }
        Ok(self.leaves)
    }
}

fn work(
    jobs: &Mutex<Receiver<Job>>,
    pending: &Pending,
    data: &File,
    hashes: &File,
    salt: &[u8],
) -> io::Result<()> {
    let salted = salted(salt);
    let mut buffer = Vec::new();
    let mut found = Vec::new();
    let mut outcome = Ok(());
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((first, blocks)) = job else { return outcome };
        // After an error the jobs are taken all the same, so that nobody waits for them.
        if outcome.is_ok() {
            buffer.resize(blocks as usize * BLOCK, 0);
            outcome = data.read_exact_at(&mut buffer, first * BLOCK_U64).and_then(|()| {
                found.clear();
                for block in buffer.chunks_exact(BLOCK) {
                    found.extend_from_slice(&digest(&salted, block));
                }
                hashes.write_all_at(&found, first * DIGEST as u64)
            });
        }
        pending.add(-1);
    }
}

impl Leaves {
    /// The hashes of blocks from `start`, those of holes put in.
    pub(super) fn read(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let offset = start * DIGEST as u64 + filled as u64;
            match self.file.read_at(&mut buffer[filled..], offset)? {
                0 => break,
                count => filled += count,
            }
        }
        buffer[filled..].fill(0);
        let mut of_zeros = None;
        for hash in buffer.chunks_exact_mut(DIGEST).filter(|hash| hash.iter().all(|&b| b == 0)) {
            let zeros = || digest(&salted(&self.salt), &[0; BLOCK]);
            hash.copy_from_slice(of_zeros.get_or_insert_with(zeros));
        }
        Ok(())
    }
}
