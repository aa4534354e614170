//! Output files that have no name before they are complete.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};

use crate::error::{Context, Error};

/// A file to be. It is gone if nobody names it.
pub(super) struct Unnamed {
    file: File,
    path: PathBuf,
}

impl Unnamed {
    /// Makes it in the directory of its name. `option` is what the user said the name with; what has
    /// the name is replaced in the end if that is forced.
    pub(super) fn beside(path: &Path, option: &'static str, force: bool) -> Result<Self, Error> {
        if !force && path.exists() {
            let reason = format!("{} is there already; --force replaces it", path.display());
            return Err(Error::input(option, reason));
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(CWD, directory, flags, Mode::from_raw_mode(0o644));
        let file = file.context(|| format!("make a file in {}", directory.display()))?.into();
        Ok(Self { file, path: path.to_owned() })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Names it, in place of what had the name.
    pub(super) fn place(self) -> Result<(), Error> {
        let Self { file, path } = self;
        let open = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let link = |target: &Path| linkat(CWD, &open, CWD, target, AtFlags::SYMLINK_FOLLOW);
        let linked = match link(&path) {
            Err(rustix::io::Errno::EXIST) => {
                let mut aside = path.as_os_str().to_owned();
                aside.push(format!(".{}.new", std::process::id()));
                let aside = PathBuf::from(aside);
                link(&aside).map_err(io::Error::from).and_then(|()| std::fs::rename(&aside, &path))
            }
            linked => linked.map_err(io::Error::from),
        };
        linked.context(|| format!("name {}", path.display()))
    }
}
