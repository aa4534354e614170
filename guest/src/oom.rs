//! Containers that the kernel has taken a process from for want of memory.
//!
//! The kernel says when: on version 2 a container's `memory.events` changes, on version 1 an
//! eventfd that was registered with its cgroup becomes readable. How many it were is read then.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::{cgroup, tasks};

/// A container's count of killed processes has risen.
pub(crate) struct OomKill {
    pub(crate) container: String,
    /// Since its creation.
    pub(crate) count: u64,
}

/// Watches containers.
pub(crate) struct OomWatch {
    shared: Rc<Shared>,
}

struct Shared {
    /// Version 2: one descriptor for all.
    inotify: Option<OwnedFd>,
    watched: RefCell<HashMap<String, Watched>>,
    kills: mpsc::UnboundedSender<OomKill>,
}

struct Watched {
    cgroup: PathBuf,
    seen: u64,
    key: Key,
}

enum Key {
    /// Of the inotify descriptor.
    Watch(i32),
    /// What waits for the eventfd.
    Task(JoinHandle<()>),
    /// The kernel would not say.
    None,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Key::Task(task) = &self.key {
            task.abort();
        }
    }
}

impl OomWatch {
    /// Watches nothing yet; what comes goes to `kills`.
    pub(crate) fn new(kills: mpsc::UnboundedSender<OomKill>) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = cgroup::is_unified().then(|| inotify::init(flags).ok()).flatten();
        let shared = Rc::new(Shared { inotify, watched: RefCell::default(), kills });
        if let Some(fd) = shared.inotify.as_ref().and_then(|fd| fd.try_clone().ok()) {
            let shared = Rc::clone(&shared);
            tasks::spawn("containers out of memory", async move {
                let ended = shared.follow(fd).await;
                warn!(?ended, "containers that run out of memory are not told of any more");
            });
        }
        Self { shared }
    }

    /// Watches a container until [`forget`](Self::forget).
    pub(crate) fn watch(&self, container: &str, cgroup: &Path) {
        let key = match &self.shared.inotify {
            Some(fd) => {
                let flags = inotify::WatchFlags::MODIFY;
                inotify::add_watch(fd, cgroup::memory_events(cgroup), flags).map(Key::Watch)
            }
            None => self.follow_eventfd(container, cgroup),
        };
        let key = key.unwrap_or_else(|error| {
            debug!(%error, container, "its want of memory cannot be watched");
            Key::None
        });
        let watched = Watched { cgroup: cgroup.to_owned(), seen: 0, key };
        self.shared.watched.borrow_mut().insert(container.to_owned(), watched);
    }

    /// The container is gone. The kernel has taken the watch back with its cgroup.
    pub(crate) fn forget(&self, container: &str) {
        self.shared.watched.borrow_mut().remove(container);
    }

    fn follow_eventfd(&self, container: &str, cgroup: &Path) -> rustix::io::Result<Key> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        cgroup::notify_oom(cgroup, event.as_raw_fd())
            .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(NO_WORD))?;
        let event = linkspan_guest_sys::register(event)
            .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(NO_WORD))?;
        let (shared, container) = (Rc::clone(&self.shared), container.to_owned());
        let name = format!("memory of container {container}");
        Ok(Key::Task(tasks::spawn(name, async move {
            let mut count = [0; 8];
            while event
                .async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut count)?))
                .await
                .is_ok()
            {
                // It is said before the kernel kills: the count follows, or the process gives way.
                for _ in 0..20 {
                    if shared.look_at(&container) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        })))
    }
}

const NO_WORD: rustix::io::Errno = rustix::io::Errno::NOTSUP;

impl Shared {
    async fn follow(&self, fd: OwnedFd) -> io::Result<()> {
        let fd = linkspan_guest_sys::register(fd)?;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        loop {
            let changed: Vec<i32> = fd
                .async_io(Interest::READABLE, |fd| {
                    let mut reader = inotify::Reader::new(fd.as_fd(), &mut buffer);
                    let mut changed = vec![reader.next()?.wd()];
                    while !reader.is_buffer_empty() {
                        changed.push(reader.next()?.wd());
                    }
                    Ok(changed)
                })
                .await?;
            let named: Vec<String> = {
                let watched = self.watched.borrow();
                let hit = |watched: &&Watched| matches!(watched.key, Key::Watch(watch) if changed.contains(&watch));
                let named = watched.iter().filter(|(_, watched)| hit(watched));
                named.map(|(name, _)| name.clone()).collect()
            };
            for name in named {
                self.look_at(&name);
            }
        }
    }

    /// Whether the count has risen.
    fn look_at(&self, container: &str) -> bool {
        let mut watched = self.watched.borrow_mut();
        let Some(watched) = watched.get_mut(container) else { return true };
        let count = cgroup::oom_kills(&watched.cgroup);
        if count <= watched.seen {
            return false;
        }
        watched.seen = count;
        warn!(container, count, "a process was killed for want of memory");
        // Only a stopping agent has nobody to hear it.
        let _ = self.kills.send(OomKill { container: container.to_owned(), count });
        true
    }
}
