//! What the agent is doing: every task by name, with what it waits for.
//!
//! A diagnosis of this one thread, so it is the thread's: nothing else depends on it. A name is
//! put together only when somebody looks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_local};

use crate::{Error, Result};

thread_local! {
    static TASKS: RefCell<BTreeMap<u64, Rc<Task>>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT: Cell<u64> = const { Cell::new(0) };
    static CURRENT: RefCell<Option<Rc<Task>>> = const { RefCell::new(None) };
}

struct Task {
    name: Box<dyn fmt::Display>,
    since: Instant,
    waits: RefCell<Vec<Wait>>,
}

#[derive(Clone, Copy)]
struct Wait {
    what: &'static str,
    since: Instant,
    limit: Option<Duration>,
}

/// A future that is listed while it lives.
struct Listed<F> {
    id: u64,
    task: Rc<Task>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Listed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let outer = CURRENT.replace(Some(Rc::clone(&self.task)));
        let poll = self.future.as_mut().poll(context);
        CURRENT.set(outer);
        poll
    }
}

impl<F> Drop for Listed<F> {
    fn drop(&mut self) {
        // At the thread's end the list may be gone already.
        let _ = TASKS.try_with(|tasks| tasks.borrow_mut().remove(&self.id));
    }
}

/// Lists a future under a name.
pub(crate) fn listed<F: Future>(
    name: impl fmt::Display + 'static,
    future: F,
) -> impl Future<Output = F::Output> {
    let id = NEXT.replace(NEXT.get() + 1);
    let (since, waits) = (Instant::now(), RefCell::default());
    let task = Rc::new(Task { name: Box::new(name), since, waits });
    TASKS.with_borrow_mut(|tasks| tasks.insert(id, Rc::clone(&task)));
    Listed { id, task, future: Box::pin(future) }
}

/// Spawns a task under a name.
pub(crate) fn spawn<F: Future<Output: 'static> + 'static>(
    name: impl fmt::Display + 'static,
    future: F,
) -> JoinHandle<F::Output> {
    spawn_local(listed(name, future))
}

/// Waits under a name.
pub(crate) async fn wait<F: Future>(what: &'static str, future: F) -> F::Output {
    let _noted = Noted::new(what, None);
    future.await
}

/// Waits under a name, and not for ever.
pub(crate) async fn wait_at_most<F: Future>(
    what: &'static str,
    limit: Duration,
    future: F,
) -> Result<F::Output> {
    let _noted = Noted::new(what, Some(limit));
    tokio::time::timeout(limit, future).await.map_err(|_| Error::Late { what, limit })
}

struct Noted(Option<Rc<Task>>);

impl Noted {
    fn new(what: &'static str, limit: Option<Duration>) -> Self {
        let task = CURRENT.with_borrow(Clone::clone);
        if let Some(task) = &task {
            task.waits.borrow_mut().push(Wait { what, since: Instant::now(), limit });
        }
        Self(task)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.waits.borrow_mut().pop();
        }
    }
}

/// A line for each task, the oldest first.
pub(crate) fn describe() -> String {
    let mut text = String::new();
    TASKS.with_borrow(|tasks| {
        for (id, task) in tasks {
            let _ = write!(text, "task {id}: {}, for {:.1?}", task.name, task.since.elapsed());
            for Wait { what, since, limit } in task.waits.borrow().iter() {
                let _ = write!(text, "; waits for {what}, for {:.1?}", since.elapsed());
                if let Some(limit) = limit {
                    let _ = write!(text, " of {limit:.1?}");
                }
            }
            text.push('\n');
        }
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_listed_with_its_waits_until_it_ends() {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&executor, async {
            let (go, gone) = tokio::sync::oneshot::channel::<()>();
            let task = spawn("errand of nobody", async {
                wait("a sign", wait_at_most("the end", Duration::from_secs(60), gone)).await
            });
            tokio::task::yield_now().await;
            let text = describe();
            for part in ["errand of nobody", "waits for a sign", "waits for the end", "60.0s"] {
                assert!(text.contains(part), "{text}");
            }
            go.send(()).unwrap();
            task.await.unwrap().unwrap().unwrap();
            assert!(!describe().contains("errand"), "{}", describe());
            let limit = Duration::from_millis(1);
            let late = wait_at_most("nothing", limit, std::future::pending::<()>()).await;
            assert!(late.unwrap_err().to_string().contains("nothing"));
        });
    }
}
