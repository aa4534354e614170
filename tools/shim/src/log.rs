//! The server's log: into containerd's, by the FIFO that it made in the bundle.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Logs to `<bundle>/log` from now on. A server without a log serves all the same.
pub(crate) fn to_containerd(bundle: &Path, debug: bool) {
    // Both ways, so that it neither waits for a reader nor breaks with one.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fifo) = rustix::fs::open(bundle.join("log"), flags, Mode::empty()) else { return };
    let level = if debug { "debug" } else { "info" };
    let filter = EnvFilter::try_from_env("LINKSPAN_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Fifo(fifo))
        .with_ansi(false)
        .init();
}

struct Fifo(OwnedFd);

impl<'a> MakeWriter<'a> for Fifo {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// One line. It is lost if nobody reads: the log holds nothing up.
struct Line<'a>(&'a OwnedFd);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = rustix::io::write(self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
