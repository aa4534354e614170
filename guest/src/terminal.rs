//! Pseudo terminals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::UnixListener;

use crate::error::Context;
use crate::{Error, Result};

/// The side of a pseudo terminal that is not the process's.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: OwnedFd,
}

impl Terminal {
    /// A new one, and the process's side of it.
    pub(crate) fn open() -> io::Result<(Rc<Self>, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let flags =
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let slave = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
        Ok((Rc::new(Self::from_master(master)?), slave))
    }

    fn from_master(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self { master })
    }

    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.master.try_clone()
    }

    /// Sets the size in characters.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.master.as_fd(), size)?)
    }
}

/// Where a container runtime delivers the terminal that it has made inside a container.
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// How long a runtime that has succeeded may take to deliver.
const DELIVERY: Duration = Duration::from_secs(10);

impl ConsoleSocket {
    pub(crate) fn bind(directory: &Path, name: &str) -> Result<Self> {
        let path = directory.join(name);
        let bound = std::fs::create_dir_all(directory).and_then(|()| UnixListener::bind(&path));
        let listener = bound.context(|| format!("listen on {}", path.display()))?;
        Ok(Self { listener, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn receive(&self) -> Result<Rc<Terminal>> {
        let what = || "receive the container's terminal".to_owned();
        let receive = async {
            let (stream, _) = self.listener.accept().await?;
            let mut name = [0; 4096];
            stream
                .async_io(tokio::io::Interest::READABLE, || {
                    linkspan_guest_sys::receive(&stream, &mut name)
                })
                .await
        };
        let received = tokio::time::timeout(DELIVERY, receive).await;
        let mut message = received.map_err(io::Error::from).and_then(|m| m).context(what)?;
        match (message.fds.pop(), message.fds.is_empty()) {
            (Some(master), true) => Ok(Rc::new(Terminal::from_master(master).context(what)?)),
            _ => Err(Error::Io { what: what(), source: io::ErrorKind::InvalidData.into() }),
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
