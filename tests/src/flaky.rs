//! A machine whose connections break.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use hyperv_socket::Stream;
use linkspan_host::vmm::{Accept, Disk, FollowConsole, PortListener, ScsiAddress, VmExit, Vmm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// Numbers that are the same in every run.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

/// Passes all connections on; those to ports that take many can be cut. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Flaky {
    machine: Arc<dyn Vmm>,
    /// Counts cuts.
    cut: Arc<watch::Sender<u64>>,
    broken: Arc<AtomicU64>,
}

impl Flaky {
    /// Around a machine.
    pub fn new(machine: Arc<dyn Vmm>) -> Self {
        let (cut, broken) = Default::default();
        Self { machine, cut: Arc::new(watch::Sender::new(cut)), broken }
    }

    /// Breaks every connection that can break: at once, or in the middle of what it carries next.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// How many connections have been broken.
    pub fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }
}

/// Carries bytes both ways until both sides have ended, or until the cut.
async fn carry(guest: Stream, host: Stream, mut cut: watch::Receiver<u64>, broken: Arc<AtomicU64>) {
    let ((mut from_guest, mut to_guest), (mut from_host, mut to_host)) =
        (guest.into_split(), host.into_split());
    cut.mark_unchanged();
    let mut dice = Dice(cut.borrow().wrapping_add(broken.load(Ordering::Relaxed)));
    let (mut one, mut other) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let (mut one_open, mut other_open) = (true, true);
    let mut doomed = false;
    while one_open || other_open {
        tokio::select! {
            read = from_guest.read(&mut one), if one_open => {
                let len = read.unwrap_or(0);
                let end = if doomed { dice.below(len as u64) as usize } else { len };
                one_open = len > 0 && to_host.write_all(&one[..end]).await.is_ok();
                if doomed { break }
                if !one_open { let _ = to_host.shutdown().await; }
            }
            read = from_host.read(&mut other), if other_open => {
                let len = read.unwrap_or(0);
                let end = if doomed { dice.below(len as u64) as usize } else { len };
                other_open = len > 0 && to_guest.write_all(&other[..end]).await.is_ok();
                if doomed { break }
                if !other_open { let _ = to_guest.shutdown().await; }
            }
            _ = cut.changed() => {
                doomed = true;
                if dice.below(2) == 0 { break }
            }
        }
    }
    if doomed {
        broken.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Vmm for Flaky {
    fn backend(&self) -> &'static str {
        self.machine.backend()
    }

    fn describe(&self) -> String {
        self.machine.describe()
    }

    fn shares_directories(&self) -> bool {
        self.machine.shares_directories()
    }

    async fn listen(&self, port: u32, accept: Accept) -> linkspan_host::Result<PortListener> {
        let mut listener = self.machine.listen(port, accept).await?;
        if accept == Accept::Once {
            return Ok(listener);
        }
        let (sender, incoming) = mpsc::unbounded_channel();
        let (cut, broken) = (Arc::clone(&self.cut), Arc::clone(&self.broken));
        let task = tokio::spawn(async move {
            while let Some(guest) = listener.accept().await {
                let (theirs, ours) = Stream::pair().expect("a pair of sockets");
                tokio::spawn(carry(guest, ours, cut.subscribe(), Arc::clone(&broken)));
                if sender.send(theirs).is_err() {
                    return;
                }
            }
        });
        Ok(PortListener::new(port, incoming, AbortOnDrop(task)))
    }

    async fn attach_disk(&self, address: ScsiAddress, disk: Disk) -> linkspan_host::Result<()> {
        self.machine.attach_disk(address, disk).await
    }

    async fn detach_disk(&self, address: ScsiAddress) -> linkspan_host::Result<()> {
        self.machine.detach_disk(address).await
    }

    async fn exited(&self) -> VmExit {
        self.machine.exited().await
    }

    async fn terminate(&self) {
        self.machine.terminate().await;
    }

    fn boot_phase(&self) -> String {
        self.machine.boot_phase()
    }

    fn console_tail(&self) -> String {
        self.machine.console_tail()
    }

    fn follow_console(&self) -> Option<Box<dyn FollowConsole>> {
        self.machine.follow_console()
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
