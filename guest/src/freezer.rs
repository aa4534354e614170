//! Holds all processes of a container still, and lets them go on.
//!
//! Hosts say it as runtimes take it: `"cgroup.freeze": "1"` or `"0"` in the `unified` of an OCI
//! resources object. It is carried out here on both versions of cgroups, and the answer waits until
//! the processes have come to rest, which a write alone does not say.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use serde_json::Value;
use tokio::io::Interest;

use crate::error::Context;
use crate::{Error, Result, cgroup, tasks};

const KEY: &str = "cgroup.freeze";

/// How long processes may take to come to rest: one that the kernel works for does so later.
const REST: Duration = Duration::from_secs(10);

/// How soon version 1, which tells nobody, is asked again.
const AGAIN: Duration = Duration::from_millis(5);

/// Takes the word about freezing out of an OCI resources object.
pub(crate) fn take(resources: &mut Value) -> Result<Option<bool>> {
    let Some(unified) = resources.get_mut("unified").and_then(Value::as_object_mut) else {
        return Ok(None);
    };
    let Some(state) = unified.remove(KEY) else { return Ok(None) };
    if unified.is_empty()
        && let Some(resources) = resources.as_object_mut()
    {
        resources.remove("unified");
    }
    match state.as_str() {
        Some("1") => Ok(Some(true)),
        Some("0") => Ok(Some(false)),
        _ => {
            let reason = format!("{state} is neither \"0\" nor \"1\"");
            Err(Error::Document { field: "Linux.unified.cgroup.freeze", reason })
        }
    }
}

/// Freezes or thaws a cgroup with all below it. One that does not come to rest is let go again.
pub(crate) async fn set(path: &Path, frozen: bool) -> Result<()> {
    let limit = tasks::wait_at_most("processes to come to rest", REST, reach(path, frozen));
    match limit.await {
        Ok(reached) => reached.context(|| format!("freeze or thaw {}", path.display())),
        Err(late) => {
            let _ = write(path, !frozen);
            Err(late)
        }
    }
}

/// Lets what is to be killed be killed: version 1 keeps even that from frozen processes.
pub(crate) fn let_die(path: &Path) {
    if !cgroup::is_unified() {
        let _ = write(path, false);
    }
}

fn file(path: &Path) -> PathBuf {
    let name = if cgroup::is_unified() { KEY } else { "freezer.state" };
    cgroup::directory("freezer", path).join(name)
}

fn write(path: &Path, frozen: bool) -> io::Result<()> {
    let state = match (cgroup::is_unified(), frozen) {
        (true, true) => "1",
        (true, false) => "0",
        (false, true) => "FROZEN",
        (false, false) => "THAWED",
    };
    std::fs::write(file(path), state)
}

async fn reach(path: &Path, frozen: bool) -> io::Result<()> {
    if !cgroup::is_unified() {
        write(path, frozen)?;
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        while std::fs::read_to_string(file(path))?.trim() != wanted {
            tokio::time::sleep(AGAIN).await;
        }
        return Ok(());
    }
    let events = cgroup::directory("", path).join("cgroup.events");
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let changes = inotify::init(flags)?;
    inotify::add_watch(&changes, &events, inotify::WatchFlags::MODIFY)?;
    let changes = linkspan_guest_sys::register(changes)?;
    write(path, frozen)?;
    let wanted = if frozen { "frozen 1" } else { "frozen 0" };
    let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
    while !std::fs::read_to_string(&events)?.lines().any(|line| line == wanted) {
        changes
            .async_io(Interest::READABLE, |fd| {
                Ok(inotify::Reader::new(fd, &mut buffer).next().map(drop)?)
            })
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_word_about_freezing_is_taken_out_and_the_rest_stays() {
        let mut resources = json!({"unified": {"cgroup.freeze": "1"}});
        assert_eq!(take(&mut resources).unwrap(), Some(true));
        assert_eq!(resources, json!({}));
        let mut resources = json!({
            "memory": {"limit": 1}, "unified": {"cgroup.freeze": "0", "cpu.weight": "7"},
        });
        assert_eq!(take(&mut resources).unwrap(), Some(false));
        assert_eq!(resources, json!({"memory": {"limit": 1}, "unified": {"cpu.weight": "7"}}));
        assert_eq!(take(&mut resources).unwrap(), None);
        assert_eq!(take(&mut Value::Null).unwrap(), None);
    }

    #[test]
    fn what_is_neither_frozen_nor_thawed_is_refused_with_its_value() {
        let error = take(&mut json!({"unified": {"cgroup.freeze": "2"}})).unwrap_err().to_string();
        assert!(error.contains("cgroup.freeze") && error.contains("\"2\""), "{error}");
    }
}
