//! A directory as the place where entries go, reached by open directories alone: no name that an
//! image holds is ever looked up in a path.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self as sys, AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{Entry, Target};
use crate::copy::{ByteSource, CopyError};
use crate::descent::Descent;
use crate::error::{Error, Problem};
use crate::finished::Image;
use crate::tree::{Attributes, Content, Place};

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;
const OPEN: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(super) struct Directory {
    path: PathBuf,
    root: OwnedFd,
    /// It was not there before.
    made: bool,
    descent: Descent,
    rootless: bool,
    left_out: u64,
    buffer: Vec<u8>,
}

impl Directory {
    pub(super) fn open(path: &Path, rootless: bool) -> Result<Self, Error> {
        let target = |reason: String| Error::Target { path: path.to_owned(), reason };
        let made = match sys::mkdir(path, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(target(format!("make it: {errno}"))),
        };
        // The name is the caller's, and may be a link of theirs.
        let root = sys::openat(CWD, path, OPEN.difference(OFlags::NOFOLLOW), Mode::empty());
        let root = root.map_err(|errno| target(format!("open it: {errno}")))?;
        if !made && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(target("it is not empty".to_owned()));
        }
        let (descent, buffer) = (Descent::default(), Vec::new());
        let path = path.to_owned();
        Ok(Self { path, root, made, descent, rootless, left_out: 0, buffer })
    }

    /// Takes away what was made, as far as that can be.
    pub(super) fn clear(&self) {
        if self.made {
            let _ = std::fs::remove_dir_all(&self.path);
            return;
        }
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => std::fs::remove_dir_all(path),
                false => std::fs::remove_file(path),
            };
        }
    }

    fn here(&self) -> Result<BorrowedFd<'_>, Problem> {
        self.descent.here().map_err(failed)
    }

    /// Does what may take rights. Without them it is left out, if that was asked for.
    fn privileged(&mut self, outcome: Result<(), Errno>) -> Result<bool, Problem> {
        match outcome {
            Ok(()) => Ok(true),
            Err(Errno::PERM) if self.rootless => {
                self.left_out += 1;
                Ok(false)
            }
            Err(Errno::PERM) => Err(Problem::TakesRoot),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// What has lost its owner may not run as the one that it gets.
    fn mode(&mut self, attributes: &Attributes) -> Mode {
        const SET_ID: u32 = 0o6000;
        let mode = mode(attributes);
        if !self.rootless || mode.as_raw_mode() & SET_ID == 0 {
            return mode;
        }
        self.left_out += 1;
        Mode::from_raw_mode(mode.as_raw_mode() & !SET_ID)
    }

    /// Gives an open file or directory its attributes: those that others take away come last.
    fn dress(&mut self, file: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), Problem> {
        if !self.rootless {
            self.privileged(sys::fchown(file, uid(attributes), gid(attributes)))?;
        }
        for xattr in &attributes.xattrs {
            let (key, value) = (xattr.key(), xattr.value());
            let set = sys::fsetxattr(file, &*key, value, XattrFlags::empty());
            self.privileged(set)?;
        }
        let mode = self.mode(attributes);
        sys::fchmod(file, mode).map_err(failed)?;
        sys::futimens(file, &times(attributes)).map_err(failed)
    }

    /// The same for what is not to be opened. A link has no mode.
    fn dress_named(
        &mut self,
        name: &[u8],
        attributes: &Attributes,
        is_link: bool,
    ) -> Result<(), Problem> {
        const NOFOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;
        if !self.rootless {
            let (uid, gid) = (uid(attributes), gid(attributes));
            let owned = sys::chownat(self.here()?, name, uid, gid, NOFOLLOW);
            self.privileged(owned)?;
        }
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.here()?.as_raw_fd()));
        path.push(OsStr::from_bytes(name));
        for xattr in &attributes.xattrs {
            let (key, value) = (xattr.key(), xattr.value());
            let set = sys::lsetxattr(&path, &*key, value, XattrFlags::empty());
            self.privileged(set)?;
        }
        let mode = self.mode(attributes);
        let here = self.here()?;
        if !is_link {
            sys::chmodat(here, name, mode, AtFlags::empty()).map_err(failed)?;
        }
        sys::utimensat(here, name, &times(attributes), NOFOLLOW).map_err(failed)
    }

    fn file(
        &mut self,
        entry: &Entry<'_>,
        (size, place): (u64, &Place),
        image: &Image,
        tick: &mut dyn FnMut(u64),
    ) -> Result<(), CopyError> {
        let content = CopyError::Content;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let private = Mode::from_raw_mode(0o600);
        let made = sys::openat(
            self.here().map_err(content)?,
            entry.name,
            flags | OFlags::CLOEXEC,
            private,
        );
        let file = File::from(made.map_err(|errno| content(failed(errno)))?);
        sys::ftruncate(&file, size).map_err(|errno| content(failed(errno)))?;
        if let Place::Inode(number) = place {
            self.copy(*number, image, &file, tick)?;
        }
        self.dress(file.as_fd(), &entry.node.attributes).map_err(content)
    }

    /// Copies what is data. The kernel does it where it can, and shares blocks where the file system
    /// can.
    fn copy(
        &mut self,
        number: u64,
        image: &Image,
        file: &File,
        tick: &mut dyn FnMut(u64),
    ) -> Result<(), CopyError> {
        let inode = image.inode(number)?;
        let write = |cause| CopyError::Content(Problem::Write(cause));
        let (mut by_kernel, parts) = (true, inode.parts());
        let mut source = image.contents(&inode);
        let map = inode.map().map_err(CopyError::Content)?;
        let pieces = match parts.is_empty() {
            true => {
                map.data.iter().map(|range| (range.start, 0, range.end - range.start)).collect()
            }
            false => {
                parts.iter().map(|part| (part.offset, part.place, part.length)).collect::<Vec<_>>()
            }
        };
        for (offset, place, length) in pieces {
            let mut done = 0;
            while done < length {
                let most = (length - done).min(CHUNK as u64) as usize;
                if by_kernel && !parts.is_empty() {
                    let (mut from, mut to) = (place + done, offset + done);
                    let copied = sys::copy_file_range(
                        image.file(),
                        Some(&mut from),
                        file,
                        Some(&mut to),
                        most,
                    );
                    match copied {
                        Ok(count) if count > 0 => {
                            done += count as u64;
                            tick(count as u64);
                            continue;
                        }
                        Err(Errno::INTR) => continue,
                        // Whatever keeps it from that shows when it is done by hand, if it matters.
                        _ => by_kernel = false,
                    }
                }
                self.buffer.resize(CHUNK, 0);
                let buffer = &mut self.buffer[..most];
                let count = source.read_at(offset + done, buffer);
                let count = count.map_err(|cause| CopyError::Content(Problem::Read(cause)))?;
                if count == 0 {
                    let (expected, got) = (inode.size, offset + done);
                    return Err(CopyError::Content(Problem::Truncated { expected, got }));
                }
                file.write_all_at(&buffer[..count], offset + done).map_err(write)?;
                done += count as u64;
                tick(count as u64);
            }
        }
        Ok(())
    }
}

impl Target for Directory {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn enter(&mut self, entry: &Entry<'_>) -> Result<(), Problem> {
        let opened = if entry.path.is_empty() {
            self.root.try_clone().map_err(Problem::Write)?
        } else {
            let here = self.here()?;
            sys::mkdirat(here, entry.name, Mode::from_raw_mode(0o700)).map_err(failed)?;
            sys::openat(here, entry.name, OPEN, Mode::empty()).map_err(failed)?
        };
        let stat = sys::fstat(&opened).map_err(failed)?;
        self.descent.enter(opened, &stat);
        Ok(())
    }

    fn leave(&mut self, entry: &Entry<'_>) -> Result<(), Problem> {
        let here = self.here()?.try_clone_to_owned().map_err(Problem::Write)?;
        let mut attributes = entry.node.attributes.clone();
        if self.rootless {
            // Later names and a failure have to get in again.
            attributes.mode |= 0o700;
        }
        self.dress(here.as_fd(), &attributes)?;
        self.descent.leave().map_err(failed)
    }

    fn put(
        &mut self,
        entry: &Entry<'_>,
        image: &Image,
        tick: &mut dyn FnMut(u64),
    ) -> Result<(), CopyError> {
        let content = CopyError::Content;
        let (kind, device) = match &entry.node.content {
            Content::File { size, place } => return self.file(entry, (*size, place), image, tick),
            Content::Symlink(target) => {
                let here = self.here().map_err(content)?;
                let made = sys::symlinkat(&**target, here, entry.name);
                made.map_err(|errno| content(failed(errno)))?;
                return self.dress_named(entry.name, &entry.node.attributes, true).map_err(content);
            }
            Content::CharDevice { major, minor } => {
                (FileType::CharacterDevice, sys::makedev(*major, *minor))
            }
            Content::BlockDevice { major, minor } => {
                (FileType::BlockDevice, sys::makedev(*major, *minor))
            }
            Content::Fifo => (FileType::Fifo, 0),
            Content::Socket => (FileType::Socket, 0),
            // They are entered.
            Content::Directory(_) => return Ok(()),
        };
        if self.rootless && device != 0 {
            self.left_out += 1;
            return Ok(());
        }
        let private = Mode::from_raw_mode(0o600);
        let here = self.here().map_err(content)?;
        let made = sys::mknodat(here, entry.name, kind, private, device);
        match self.privileged(made).map_err(content)? {
            true => self.dress_named(entry.name, &entry.node.attributes, false).map_err(content),
            false => Ok(()),
        }
    }

    fn link(&mut self, entry: &Entry<'_>, first: &[u8]) -> Result<(), Problem> {
        let mut parts: Vec<&[u8]> = first.split(|&byte| byte == b'/').collect();
        let name = parts.pop().unwrap_or_default();
        let mut directory = self.root.try_clone().map_err(Problem::Write)?;
        for part in parts {
            let flags = OPEN | OFlags::PATH;
            directory = sys::openat(&directory, part, flags, Mode::empty()).map_err(failed)?;
        }
        match sys::linkat(&directory, name, self.here()?, entry.name, AtFlags::empty()) {
            // It was left out itself.
            Err(Errno::NOENT) if self.left_out > 0 => {
                self.left_out += 1;
                Ok(())
            }
            linked => linked.map_err(failed),
        }
    }

    fn finish(&mut self) -> Result<(), Problem> {
        Ok(())
    }

    fn left_out(&self) -> u64 {
        self.left_out
    }
}

fn failed(errno: Errno) -> Problem {
    Problem::Write(io::Error::from(errno))
}

fn uid(attributes: &Attributes) -> Option<Uid> {
    Some(Uid::from_raw(attributes.uid))
}

fn gid(attributes: &Attributes) -> Option<Gid> {
    Some(Gid::from_raw(attributes.gid))
}

fn mode(attributes: &Attributes) -> Mode {
    Mode::from_raw_mode(attributes.mode.into())
}

fn times(attributes: &Attributes) -> Timestamps {
    let mtime = attributes.mtime;
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
