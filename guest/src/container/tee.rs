//! Copies of an init's output in its pod's logs.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::pipe::{PipeFlags, pipe_with};
use tracing::warn;

use super::annotations::TEE_LOG_PATH;
use super::mounts::{below, reach};
use crate::error::Context;
use crate::stdio::Streams;
use crate::{Error, Result};

/// A directory for logs that everybody may write to.
pub(super) fn make_directory(logs: &Path) -> Result<()> {
    let made = fs::create_dir_all(logs)
        .and_then(|()| fs::set_permissions(logs, Permissions::from_mode(0o777)));
    made.context(|| format!("make directory {}", logs.display()))
}

/// The file of that name below `logs`; the directories on the way are made.
pub(super) fn file(logs: &Path, path: &str) -> Result<PathBuf> {
    let outside = || {
        let reason = format!("log path {path:?} is not within the sandbox's log dir");
        Error::Argument { field: TEE_LOG_PATH, reason }
    };
    let relative = below(path, path).map_err(|_| outside())?;
    let (Some(parent), Some(_)) = (relative.parent(), relative.file_name()) else {
        return Err(outside());
    };
    make_directory(logs)?;
    reach(logs, parent).context(|| format!("make the directory of {path:?}"))?;
    Ok(logs.join(relative))
}

/// Lets stdout and stderr be written to a file on their way. What cannot be written there is lost
/// to the file only.
pub(super) fn insert(streams: &mut Streams<OwnedFd>, logs: &Path, file: &Path) -> Result<()> {
    let what = || format!("open log {}", file.display());
    let file = open_below(logs, file).context(what)?;
    for slot in [&mut streams.stdout, &mut streams.stderr] {
        let Some(from) = slot.take() else { continue };
        let pipe = pipe_with(PipeFlags::CLOEXEC).and_then(|(read, write)| {
            rustix::io::ioctl_fionbio(&from, false)?;
            rustix::io::ioctl_fionbio(&read, true)?;
            Ok((read, write))
        });
        let (read, write) = pipe.context(|| "make a pipe".to_owned())?;
        let log = file.try_clone().context(what)?;
        let thread = std::thread::Builder::new().name("tee".to_owned()).stack_size(128 << 10);
        thread.spawn(move || copy(from, write, log)).context(|| "start a thread".to_owned())?;
        *slot = Some(read);
    }
    Ok(())
}

/// The logs are in the containers' hands: no link of theirs may lead out.
fn open_below(logs: &Path, file: &Path) -> std::io::Result<File> {
    let logs_fd = open(logs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let relative = file.strip_prefix(logs).map_err(std::io::Error::other)?;
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(0o666);
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = File::from(openat2(logs_fd, relative, flags, mode, resolve)?);
    match opened.metadata()?.is_file() {
        true => Ok(opened),
        false => Err(std::io::Error::other("is not a regular file")),
    }
}

fn copy(from: OwnedFd, to: OwnedFd, mut log: File) {
    let (mut from, mut to) = (File::from(from), Some(File::from(to)));
    let mut buffer = vec![0; 64 << 10];
    let mut logs = true;
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(len) => len,
        };
        if logs && let Err(error) = log.write_all(&buffer[..len]) {
            warn!(%error, "a container's log is not written any more");
            logs = false;
        }
        if to.as_mut().is_some_and(|to| to.write_all(&buffer[..len]).is_err()) {
            // Nobody reads it any more; the log goes on.
            to = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(name: &str) -> PathBuf {
        let logs = std::env::temp_dir().join(format!("linkspan-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&logs);
        logs
    }

    #[test]
    fn a_log_stays_in_the_logs() {
        let logs = logs("tee-path");
        for path in ["../x", "a/../../x", "/", "..", "a/../.."] {
            let error = file(&logs, path).unwrap_err().to_string();
            assert!(error.contains("not within"), "{path}: {error}");
        }
        assert_eq!(file(&logs, "a/b.log").unwrap(), logs.join("a/b.log"));
        assert!(logs.join("a").is_dir());
        std::os::unix::fs::symlink("/etc/passwd", logs.join("link")).unwrap();
        assert!(open_below(&logs, &logs.join("link")).is_err());
        fs::remove_dir_all(&logs).unwrap();
    }

    #[test]
    fn output_reaches_both_and_the_log_is_appended_to() {
        let logs = logs("tee-copy");
        let path = file(&logs, "out").unwrap();
        for _ in 0..2 {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let mut streams = Streams { stdout: Some(read), ..Streams::default() };
            insert(&mut streams, &logs, &path).unwrap();
            File::from(write).write_all(b"hello\n").unwrap();
            let read = streams.stdout.unwrap();
            rustix::io::ioctl_fionbio(&read, false).unwrap();
            let mut text = String::new();
            File::from(read).read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello\n");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello\nhello\n");
        fs::remove_dir_all(&logs).unwrap();
    }
}
