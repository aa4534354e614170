//! Open directories from a root down to where one is at the moment. However deep that is, only some
//! are open at a time; those above are opened again on the way back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

/// Directories kept open at a time.
const MAX_OPEN: usize = 256;

/// The way down.
#[derive(Default)]
pub(crate) struct Descent(Vec<Level>);

struct Level {
    /// `None` while too many are open.
    directory: Option<OwnedFd>,
    identity: (u64, u64),
}

impl Descent {
    /// Goes down into a directory.
    pub(crate) fn enter(&mut self, directory: OwnedFd, stat: &Stat) {
        if let Some(far) = self.0.len().checked_sub(MAX_OPEN) {
            self.0[far].directory = None;
        }
        let identity = (stat.st_dev, stat.st_ino);
        self.0.push(Level { directory: Some(directory), identity });
    }

    /// The deepest directory.
    pub(crate) fn here(&self) -> Result<BorrowedFd<'_>, Errno> {
        let here = self.0.last().and_then(|level| level.directory.as_ref());
        here.map(AsFd::as_fd).ok_or(Errno::STALE)
    }

    /// Goes up again, out of the deepest one.
    pub(crate) fn leave(&mut self) -> Result<(), Errno> {
        let left = self.0.pop().and_then(|level| level.directory);
        if let (Some(left), Some(above)) = (left, self.0.last_mut())
            && above.directory.is_none()
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = openat(&left, c"..", flags, Mode::empty())?;
            let stat = fstat(&opened)?;
            if (stat.st_dev, stat.st_ino) != above.identity {
                // It was moved away meanwhile.
                return Err(Errno::STALE);
            }
            above.directory = Some(opened);
        }
        Ok(())
    }
}
