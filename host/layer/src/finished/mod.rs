//! Finished images, read without a kernel and without rights.
//!
//! Nothing in an image is believed: an offset may point anywhere, a directory may hold itself, an
//! extent may be anybody's. Whatever does not add up ends the reading with what is wrong and where.

mod disk;
mod erofs;
mod ext4;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use self::disk::Disk;
use crate::collect::{Collector, no_entries};
use crate::copy::{ByteSource, CopyError, MAX_FILE};
use crate::error::{Error, Problem};
use crate::ext4::xattr::Xattr;
use crate::sparse::SparseMap;
use crate::tree::{Attributes, Content, MAX_PATH, Node, NodeId, Tree};

/// What is wrong with an image.
type Fault = String;
type Read<T> = Result<T, Fault>;

/// The file system of a finished image.
pub(crate) struct Image {
    name: String,
    disk: Disk,
    format: Format,
}

enum Format {
    Ext4(ext4::Ext4),
    Erofs(erofs::Erofs),
}

/// One inode, whatever the file system.
pub(crate) struct Inode {
    pub(crate) number: u64,
    kind: Kind,
    pub(crate) attributes: Attributes,
    pub(crate) size: u64,
    /// Attributes that no image of ours could have.
    foreign_xattrs: u64,
    contents: Contents,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Symlink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// Where contents are.
enum Contents {
    /// Parts of the image, in order.
    Parts(Vec<Part>),
    /// Here; what is not is zeros.
    Inline(Vec<u8>),
}

/// Bytes of a file that lie together in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where they begin in the file.
    pub(crate) offset: u64,
    /// Where they begin in the image.
    pub(crate) place: u64,
    pub(crate) length: u64,
}

/// More parts than any honest file has.
const MAX_PARTS: usize = 1 << 20;
/// Longest target of a symbolic link in bytes.
const MAX_TARGET: u64 = 4095;

impl Kind {
    /// By the type bits of a mode.
    fn new(mode: u16, device: impl FnOnce() -> (u32, u32)) -> Read<Self> {
        Ok(match mode >> 12 {
            0o01 => Self::Fifo,
            0o02 => {
                let (major, minor) = device();
                Self::CharDevice { major, minor }
            }
            0o04 => Self::Directory,
            0o06 => {
                let (major, minor) = device();
                Self::BlockDevice { major, minor }
            }
            0o10 => Self::File,
            0o12 => Self::Symlink,
            0o14 => Self::Socket,
            _ => return Err(format!("it has the unknown type {:#o}", mode >> 12)),
        })
    }

    fn has_contents(self) -> bool {
        matches!(self, Self::Directory | Self::File | Self::Symlink)
    }
}

/// Adds a part behind the others, joined to the last where it goes on.
fn push_part(parts: &mut Vec<Part>, part: Part) -> Read<()> {
    let full = parts.len() == MAX_PARTS;
    match parts.last_mut() {
        Some(last) if last.offset + last.length > part.offset => {
            return Err(format!("its parts overlap at byte {}", part.offset));
        }
        Some(last)
            if last.offset + last.length == part.offset
                && last.place + last.length == part.place =>
        {
            last.length += part.length;
        }
        _ if full => return Err(format!("it has more than {MAX_PARTS} parts")),
        _ => parts.push(part),
    }
    Ok(())
}

/// The two numbers of a device, as kernels write them today.
fn device_number(word: u32) -> (u32, u32) {
    ((word & 0xf_ff00) >> 8, word & 0xff | word >> 12 & 0xf_ff00)
}

impl Image {
    /// Opens an image. `size` is what of the file belongs to the disk.
    pub(crate) fn open(path: &Path, size: u64) -> Result<Self, Error> {
        let read = |cause| Error::Read { path: path.to_owned(), cause };
        let disk = Disk::new(File::open(path).map_err(read)?, size);
        let name = path.display().to_string();
        let damaged = |problem| Error::Image { image: name.clone(), problem };
        let format = match crate::erofs::superblock::size(&disk.start()) {
            Some(_) => Format::Erofs(erofs::Erofs::open(&disk).map_err(damaged)?),
            None => Format::Ext4(ext4::Ext4::open(&disk).map_err(damaged)?),
        };
        Ok(Self { name, disk, format })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file that it is in.
    pub(crate) fn file(&self) -> &File {
        self.disk.file()
    }

    fn root(&self) -> u64 {
        match &self.format {
            Format::Ext4(_) => crate::ext4::ROOT_INODE.into(),
            Format::Erofs(erofs) => erofs.root(),
        }
    }

    pub(crate) fn inode(&self, number: u64) -> Result<Inode, Error> {
        let inode = match &self.format {
            Format::Ext4(ext4) => ext4.inode(&self.disk, number),
            Format::Erofs(erofs) => erofs.inode(&self.disk, number),
        };
        let inode = inode.and_then(|inode| match inode.size {
            size if size > MAX_FILE => Err(format!("its size is {size} bytes")),
            _ => Ok(inode),
        });
        inode.map_err(|fault| self.damaged(format!("inode {number}: {fault}")))
    }

    fn damaged(&self, problem: Fault) -> Error {
        Error::Image { image: self.name.clone(), problem }
    }

    /// Names in a directory and the inodes they stand for.
    fn entries(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, u64)>, Error> {
        let mut entries = Vec::new();
        let mut push = |name: &[u8], number: u64| {
            match name {
                b"." | b".." => return Ok(()),
                b"" => return Err("an entry has no name".to_owned()),
                _ => {}
            }
            if name.len() > 255 || name.contains(&b'/') || name.contains(&0) {
                let shown = String::from_utf8_lossy(name);
                return Err(format!("{shown:?} is no name of an entry"));
            }
            entries.push((name.to_vec(), number));
            Ok(())
        };
        let mut block = vec![0; self.directory_block()];
        let mut source = self.contents(inode);
        let mut read = || -> Read<()> {
            for offset in (0..inode.size).step_by(block.len()) {
                let length = (inode.size - offset).min(block.len() as u64) as usize;
                let block = &mut block[..length];
                self.disk.charge(length as u64)?;
                source.read_exact(offset, block)?;
                match &self.format {
                    Format::Ext4(ext4) => ext4.directory(inode, block, &mut push)?,
                    Format::Erofs(_) => erofs::directory(block, &mut push)?,
                }
            }
            Ok(())
        };
        let outcome = read();
        outcome.map_err(|fault| self.damaged(format!("directory {}: {fault}", inode.number)))?;
        entries.sort_unstable();
        if let Some(twice) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let name = String::from_utf8_lossy(&twice[0].0).into_owned();
            let problem = format!("directory {}: {name:?} is in it twice", inode.number);
            return Err(self.damaged(problem));
        }
        Ok(entries)
    }

    fn directory_block(&self) -> usize {
        match &self.format {
            Format::Ext4(ext4) => ext4.block_size(),
            Format::Erofs(erofs) => erofs.block_size(),
        }
    }

    /// The contents of a file.
    pub(crate) fn contents<'i>(&'i self, inode: &'i Inode) -> InodeContents<'i> {
        InodeContents { disk: &self.disk, inode, at: 0 }
    }

    fn target(&self, inode: &Inode) -> Result<Box<[u8]>, Error> {
        let damaged = |fault| self.damaged(format!("inode {}: {fault}", inode.number));
        if !(1..=MAX_TARGET).contains(&inode.size) {
            return Err(damaged(format!("the target of a link has {} bytes", inode.size)));
        }
        self.disk.charge(inode.size).map_err(damaged)?;
        let mut target = vec![0; inode.size as usize];
        self.contents(inode).read_exact(0, &mut target).map_err(damaged)?;
        match target.contains(&0) {
            true => Err(damaged("the target of a link has a NUL byte".to_owned())),
            false => Ok(target.into()),
        }
    }
}

impl Inode {
    /// Parts of the image that the contents are, if they are any.
    pub(crate) fn parts(&self) -> &[Part] {
        match &self.contents {
            Contents::Parts(parts) => parts,
            Contents::Inline(_) => &[],
        }
    }

    /// Which parts of the file are data.
    pub(crate) fn map(&self) -> Result<SparseMap, Problem> {
        let mut map = SparseMap::holes_only(self.size);
        match &self.contents {
            Contents::Inline(bytes) => map.push(0, bytes.len() as u64)?,
            Contents::Parts(parts) => {
                let mut joined: Option<Range<u64>> = None;
                for part in parts {
                    let range = part.offset..part.offset + part.length;
                    match &mut joined {
                        Some(last) if last.end == range.start => last.end = range.end,
                        _ => {
                            if let Some(last) = joined.replace(range) {
                                map.push(last.start, last.end - last.start)?;
                            }
                        }
                    }
                }
                if let Some(last) = joined {
                    map.push(last.start, last.end - last.start)?;
                }
            }
        }
        Ok(map)
    }
}

/// The bytes of one inode; a hole reads as zeros.
pub(crate) struct InodeContents<'i> {
    disk: &'i Disk,
    inode: &'i Inode,
    /// Parts before this one lie before the last offset.
    at: usize,
}

impl InodeContents<'_> {
    fn read_exact(&mut self, offset: u64, buffer: &mut [u8]) -> Read<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let read = self.read_at(offset + filled as u64, &mut buffer[filled..]);
            match read.map_err(|error| error.to_string())? {
                0 => return Err(format!("its contents end at byte {}", offset + filled as u64)),
                count => filled += count,
            }
        }
        Ok(())
    }
}

impl ByteSource for InodeContents<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.inode.size.saturating_sub(offset);
        let most = (buffer.len() as u64).min(rest) as usize;
        let buffer = &mut buffer[..most];
        let parts = match &self.inode.contents {
            Contents::Inline(bytes) => {
                let bytes = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                let bytes = bytes.unwrap_or_default();
                let count = bytes.len().min(buffer.len());
                buffer[..count].copy_from_slice(&bytes[..count]);
                buffer[count..].fill(0);
                return Ok(most);
            }
            Contents::Parts(parts) => parts,
        };
        while parts.get(self.at).is_some_and(|part| part.offset + part.length <= offset) {
            self.at += 1;
        }
        let until = |end: u64| ((end - offset) as usize).min(most);
        match parts.get(self.at) {
            Some(part) if part.offset <= offset => {
                let count = until(part.offset + part.length);
                self.disk.read_at(part.place + (offset - part.offset), &mut buffer[..count])?;
                Ok(count)
            }
            next => {
                let count = next.map_or(most, |part| until(part.offset));
                buffer[..count].fill(0);
                Ok(count)
            }
        }
    }
}

/// Adds all that an image holds. `take` says where the contents of a file are from then on.
pub(crate) fn add<C>(
    collector: &mut Collector<'_, C>,
    image: &Image,
    mut take: impl FnMut(&mut Collector<'_, C>, &Inode) -> Result<Content, CopyError>,
) -> Result<(), Error> {
    let root = image.inode(image.root())?;
    if root.kind != Kind::Directory {
        return Err(image.damaged("its root is no directory".to_owned()));
    }
    let mut known = HashMap::from([(root.number, Tree::ROOT)]);
    collector.tree_mut().node_mut(Tree::ROOT).attributes = root.attributes.clone();
    collector.count_entry();
    // Entries that are still to be taken, the next one last.
    let mut pending: Vec<(NodeId, Vec<u8>, Vec<u8>, u64)> = Vec::new();
    let enter = |directory: &Inode, node: NodeId, path: &[u8], pending: &mut Vec<_>| {
        for (name, number) in image.entries(directory)?.into_iter().rev() {
            let path =
                if path.is_empty() { name.clone() } else { [path, &b"/"[..], &name].concat() };
            if path.len() > MAX_PATH {
                return Err(image.damaged(format!("a path is longer than {MAX_PATH} bytes")));
            }
            pending.push((node, path, name, number));
        }
        Ok::<_, Error>(())
    };
    enter(&root, Tree::ROOT, b"", &mut pending)?;
    while let Some((parent, path, name, number)) = pending.pop() {
        collector.count_entry();
        let named = |collector: &Collector<'_, C>, problem| collector.entry_error(&path, problem);
        if let Some(&node) = known.get(&number) {
            if matches!(collector.tree().node(node).content, Content::Directory(_)) {
                let shown = String::from_utf8_lossy(&path);
                return Err(image.damaged(format!("directory {number} is at {shown:?} again")));
            }
            let linked = collector.insert_link(parent, &name, node);
            linked.map_err(|problem| named(collector, problem))?;
            continue;
        }
        let inode = image.inode(number)?;
        for _ in 0..inode.foreign_xattrs {
            collector.count_skipped_xattr();
        }
        let content = match inode.kind {
            Kind::Directory => no_entries(),
            Kind::File => take(collector, &inode).map_err(|error| match error {
                CopyError::Image(error) => error,
                CopyError::Content(problem) => named(collector, problem),
            })?,
            Kind::Symlink => Content::Symlink(image.target(&inode)?),
            Kind::CharDevice { major, minor } => Content::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => Content::BlockDevice { major, minor },
            Kind::Fifo => Content::Fifo,
            Kind::Socket => Content::Socket,
        };
        let node = Node { attributes: inode.attributes.clone(), content };
        let inserted = collector.insert(parent, &name, node);
        let Some(node) = inserted.map_err(|problem| named(collector, problem))? else { continue };
        known.insert(number, node);
        if inode.kind == Kind::Directory {
            enter(&inode, node, &path, &mut pending)?;
        }
    }
    Ok(())
}

/// An attribute by its number of a prefix; the rest of the name and the value as they are stored.
/// `None` is one that no image of ours has.
fn xattr(prefix: u8, name: &[u8], value: &[u8]) -> Read<Option<Xattr>> {
    const NAMES: [(u8, &[u8]); 6] = [
        (0, b""),
        (1, b"user."),
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (4, b"trusted."),
        (6, b"security."),
    ];
    let Some((_, start)) = NAMES.iter().find(|(number, _)| *number == prefix) else {
        return Ok(None);
    };
    let whole = [start, name].concat();
    Xattr::new(&whole, value).map_err(|problem| problem.to_string())
}
