//! A directory as a source of entries, read relative to open directories, so that nothing that is
//! renamed meanwhile can lead elsewhere.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::collect::{Collector, Contents, no_entries};
use crate::copy::{ByteSource, CopyError};
use crate::descent::Descent;
use crate::error::{Error, Problem};
use crate::ext4::xattr::Xattr;
use crate::sparse::SparseMap;
use crate::tree::{Attributes, Content, Node, NodeId, Timestamp, Tree};

/// A directory whose entries are being taken.
struct Level {
    node: NodeId,
    /// Length of its path in [`Walk::path`].
    path_length: usize,
    /// Sorted backwards.
    names: Vec<CString>,
}

struct Walk<'w, 'a, C> {
    collector: &'w mut Collector<'a, C>,
    root: PathBuf,
    /// Path of the current entry below the root.
    path: Vec<u8>,
    levels: Vec<Level>,
    directories: Descent,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
}

/// Adds everything below `root`.
pub(crate) fn add<C: Contents>(collector: &mut Collector<'_, C>, root: &Path) -> Result<(), Error> {
    let (levels, directories, linked) = (Vec::new(), Descent::default(), HashMap::new());
    let (root_path, path) = (root.to_owned(), Vec::new());
    let mut walk = Walk { collector, root: root_path, path, levels, directories, linked };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        sys::open(root, flags, Mode::empty()).map_err(|errno| walk.read_error(errno))?;
    let stat = sys::fstat(&directory).map_err(|errno| walk.read_error(errno))?;
    let attributes = walk.attributes(&stat, &Attributed::Open(&directory))?;
    walk.collector.tree_mut().node_mut(Tree::ROOT).attributes = attributes;
    walk.enter(directory, &stat, Tree::ROOT)?;
    while let Some(level) = walk.levels.last_mut() {
        let name = level.names.pop();
        walk.path.truncate(level.path_length);
        match name {
            Some(name) => walk.take(&name)?,
            None => walk.leave()?,
        }
    }
    Ok(())
}

/// What attributes are read from.
enum Attributed<'f> {
    Open(&'f OwnedFd),
    /// A link, device or the like, which is not to be opened.
    Named(PathBuf),
}

impl<C: Contents> Walk<'_, '_, C> {
    fn read_error(&self, errno: Errno) -> Error {
        let below = std::ffi::OsStr::from_bytes(&self.path);
        let path = if below.is_empty() { self.root.clone() } else { self.root.join(below) };
        Error::Read { path, cause: errno.into() }
    }

    fn entry_error(&self, problem: Problem) -> Error {
        match problem {
            Problem::Read(cause) => {
                let path = self.root.join(std::ffi::OsStr::from_bytes(&self.path));
                Error::Read { path, cause }
            }
            problem => self.collector.entry_error(&self.path, problem),
        }
    }

    fn enter(&mut self, directory: OwnedFd, stat: &Stat, node: NodeId) -> Result<(), Error> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(|errno| self.read_error(errno))? {
            let entry = entry.map_err(|errno| self.read_error(errno))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.directories.enter(directory, stat);
        self.levels.push(Level { node, path_length: self.path.len(), names });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.levels.pop();
        self.directories.leave().map_err(|errno| self.read_error(errno))
    }

    /// Takes one entry of the deepest level.
    fn take(&mut self, name: &CStr) -> Result<(), Error> {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
        let directory = self.directories.here().map_err(|errno| self.read_error(errno))?;
        let parent = self.levels.last().map_or(Tree::ROOT, |level| level.node);
        let stat = sys::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|errno| self.read_error(errno))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.collector.count_entry();
        let identity = (stat.st_dev, stat.st_ino);
        if kind != FileType::Directory
            && stat.st_nlink > 1
            && let Some(&known) = self.linked.get(&identity)
        {
            let linked = self.collector.insert_link(parent, name.to_bytes(), known);
            return linked.map_err(|problem| self.entry_error(problem));
        }
        let kept = match kind {
            FileType::RegularFile | FileType::Directory => {
                let mut flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                flags |= match kind {
                    FileType::Directory => OFlags::DIRECTORY,
                    _ => OFlags::NONBLOCK | OFlags::NOCTTY,
                };
                let opened = sys::openat(directory, name, flags, Mode::empty());
                let opened = opened.and_then(|fd| sys::fstat(&fd).map(|stat| (fd, stat)));
                let (fd, stat) = opened.map_err(|errno| self.read_error(errno))?;
                if FileType::from_raw_mode(stat.st_mode) != kind {
                    return Err(self.read_error(Errno::STALE));
                }
                let attributes = self.attributes(&stat, &Attributed::Open(&fd))?;
                if kind == FileType::Directory {
                    let node = Node { attributes, content: no_entries() };
                    if let Some(node) = self.insert(parent, name, node)? {
                        self.enter(fd, &stat, node)?;
                    }
                    return Ok(());
                }
                let content = self.file(fd, &stat, &attributes)?;
                self.insert(parent, name, Node { attributes, content })?
            }
            _ => {
                let content = match kind {
                    FileType::Symlink => {
                        let target = sys::readlinkat(directory, name, Vec::new());
                        let target = target.map_err(|errno| self.read_error(errno))?;
                        Content::Symlink(target.as_bytes().into())
                    }
                    FileType::CharacterDevice => Content::CharDevice {
                        major: sys::major(stat.st_rdev),
                        minor: sys::minor(stat.st_rdev),
                    },
                    FileType::BlockDevice => Content::BlockDevice {
                        major: sys::major(stat.st_rdev),
                        minor: sys::minor(stat.st_rdev),
                    },
                    FileType::Fifo => Content::Fifo,
                    FileType::Socket => Content::Socket,
                    _ => return Err(self.entry_error(Problem::UnknownType('?'))),
                };
                let mut path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
                path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
                let attributes = self.attributes(&stat, &Attributed::Named(path))?;
                self.insert(parent, name, Node { attributes, content })?
            }
        };
        if let Some(node) = kept
            && stat.st_nlink > 1
        {
            self.linked.insert(identity, node);
        }
        Ok(())
    }

    fn insert(&mut self, parent: NodeId, name: &CStr, node: Node) -> Result<Option<NodeId>, Error> {
        let inserted = self.collector.insert(parent, name.to_bytes(), node);
        inserted.map_err(|problem| self.entry_error(problem))
    }

    /// Copies the contents of a regular file.
    fn file(
        &mut self,
        fd: OwnedFd,
        stat: &Stat,
        attributes: &Attributes,
    ) -> Result<Content, Error> {
        let size = stat.st_size as u64;
        let mut file = File::from(fd);
        let map = data_parts(&file, size).map_err(|errno| self.read_error(errno))?;
        let copied = self.collector.copy(&mut file, &map, attributes, &mut |bytes| bytes);
        let after = sys::fstat(&file).map_err(|errno| self.read_error(errno))?.st_size as u64;
        if after != size {
            return Err(self.entry_error(Problem::Changed { before: size, after }));
        }
        copied.map_err(|error| match error {
            CopyError::Image(error) => error,
            CopyError::Content(problem) => self.entry_error(problem),
        })
    }

    fn attributes(&mut self, stat: &Stat, from: &Attributed<'_>) -> Result<Attributes, Error> {
        let mut xattrs = Vec::new();
        let list = xattr_call(|buffer| match from {
            Attributed::Open(fd) => sys::flistxattr(fd, buffer),
            Attributed::Named(path) => sys::llistxattr(path, buffer),
        });
        let list = match list {
            // A file system without attributes.
            Err(Errno::NOTSUP) => Vec::new(),
            other => other.map_err(|errno| self.read_error(errno))?,
        };
        for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let value = xattr_call(|buffer| match from {
                Attributed::Open(fd) => sys::fgetxattr(fd, name, buffer),
                Attributed::Named(path) => sys::lgetxattr(path, name, buffer),
            });
            let value = match value {
                // Removed since it was listed.
                Err(Errno::NODATA) => continue,
                other => other.map_err(|errno| self.read_error(errno))?,
            };
            match Xattr::new(name, &value).map_err(|problem| self.entry_error(problem))? {
                Some(xattr) => xattrs.push(xattr),
                None => self.collector.count_skipped_xattr(),
            }
        }
        Ok(Attributes {
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
            xattrs,
        })
    }
}

/// Calls with a growing buffer until the answer fits.
fn xattr_call(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 512];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// Asks the file system where the holes are.
fn data_parts(file: &File, size: u64) -> Result<SparseMap, Errno> {
    let mut map = SparseMap::holes_only(size);
    let mut offset = 0;
    while offset < size {
        let start = match sys::seek(file, sys::SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => return Ok(SparseMap::dense(size)),
            Err(errno) => return Err(errno),
        };
        let end = sys::seek(file, sys::SeekFrom::Hole(start))?.min(size);
        if end <= start || map.push(start, end - start).is_err() {
            break;
        }
        offset = end;
    }
    Ok(map)
}

impl ByteSource for File {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}
