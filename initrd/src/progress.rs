//! What a build tells its caller while it works, for progress bars.

use std::fmt;

/// A stretch of work, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// apt downloads the kernel package.
    Download,
    /// The kernel package is read; counted in bytes of the package.
    Unpack,
    /// Modules are decompressed and slimmed; counted in bytes as put into the image.
    Modules,
    /// The uncompressed kernel is taken out; counted in bytes of it.
    Vmlinux,
    /// The archive is compressed; counted in bytes of the archive.
    Compress,
    /// The outputs are written; counted in bytes of them.
    Write,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Download => "downloading kernel",
            Self::Unpack => "reading kernel package",
            Self::Modules => "preparing modules",
            Self::Vmlinux => "extracting vmlinux",
            Self::Compress => "compressing initrd",
            Self::Write => "writing image",
        })
    }
}

/// One report of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A step begins.
    Started {
        /// Which.
        step: Step,
        /// Its whole amount in bytes, where known beforehand.
        total: Option<u64>,
    },
    /// A step got further.
    Advanced {
        /// Which.
        step: Step,
        /// Bytes since the last report.
        bytes: u64,
    },
    /// A step is done.
    Finished {
        /// Which.
        step: Step,
    },
}

/// Runs one step and reports its begin and, if it succeeds, its end.
pub(crate) fn step<T, E>(
    progress: &mut dyn FnMut(Event),
    step: Step,
    total: Option<u64>,
    work: impl FnOnce(&mut dyn FnMut(u64)) -> Result<T, E>,
) -> Result<T, E> {
    progress(Event::Started { step, total });
    let done = work(&mut |bytes| progress(Event::Advanced { step, bytes }))?;
    progress(Event::Finished { step });
    Ok(done)
}
