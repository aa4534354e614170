//! Tar archives as a source of entries.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use crate::collect::{Collector, Contents, no_entries};
use crate::compression;
use crate::copy::{ByteSource, CopyError};
use crate::error::{Error, Problem};
use crate::ext4::xattr::Xattr;
use crate::tar_stream::{Fault, Member, TarStream};
use crate::tree::{Attributes, Content, Node, Timestamp, Tree, split_path};

const XATTR_KEY: &[u8] = b"SCHILY.xattr.";
/// Bytes after the end mark that are read to let a decoder check its sums.
const TRAILER: u64 = 16 << 20;

/// Adds all members of an archive.
pub(crate) fn add<C: Contents>(
    collector: &mut Collector<'_, C>,
    reader: impl Read,
) -> Result<(), Error> {
    let consumed = Rc::new(Cell::new(0));
    let counted = Counted { inner: reader, consumed: Rc::clone(&consumed) };
    let decoder =
        compression::decoder(counted).map_err(|cause| collector.archive_error(0, cause))?;
    let mut stream = TarStream::new(decoder);
    let mut reported = 0;
    let mut count = |_| {
        let before = std::mem::replace(&mut reported, consumed.get());
        consumed.get() - before
    };
    loop {
        let member = stream.next().map_err(|fault| match fault {
            Fault::Archive(cause) => collector.archive_error(stream.offset(), cause),
            Fault::Member(name, problem) => collector.entry_error(&name, problem),
        })?;
        let Some(member) = member else { break };
        let path = member.path.clone();
        add_member(collector, &mut stream, member, &mut count).map_err(|error| match error {
            CopyError::Image(error) => error,
            CopyError::Content(Problem::Read(cause)) => {
                collector.archive_error(stream.offset(), cause)
            }
            CopyError::Content(problem) => collector.entry_error(&path, problem),
        })?;
        collector.count_bytes(count(0));
        collector.count_entry();
    }
    let offset = stream.offset();
    io::copy(&mut stream.into_inner().take(TRAILER), &mut io::sink())
        .map_err(|cause| collector.archive_error(offset, cause))?;
    collector.count_bytes(count(0));
    Ok(())
}

fn add_member<R: Read, C: Contents>(
    collector: &mut Collector<'_, C>,
    stream: &mut TarStream<R>,
    member: Member,
    count: &mut dyn FnMut(u64) -> u64,
) -> Result<(), CopyError> {
    let content = CopyError::Content;
    let path = split_path(&member.path).map_err(content)?;
    if member.path.is_empty() {
        return Err(content(Problem::BadName));
    }
    let kind = match member.header.as_bytes()[156] {
        // Before there was a type for directories, they had a name that ends so.
        0 | b'0' if member.path.ends_with(b"/") => b'5',
        0 | b'7' | b'S' => b'0',
        kind => kind,
    };
    let Some((name, parents)) = path.split_last() else {
        if kind != b'5' {
            return Err(content(Problem::RootNotDirectory));
        }
        let attributes = attributes(collector, &member).map_err(content)?;
        collector.tree_mut().node_mut(Tree::ROOT).attributes = attributes;
        return Ok(());
    };
    let directory = collector.tree_mut().directory(parents).map_err(content)?;
    let attributes = attributes(collector, &member).map_err(content)?;
    let node = match kind {
        b'0' => collector.copy(stream, &member.map, &attributes, count)?,
        b'1' => {
            let shown = || String::from_utf8_lossy(&member.link).into_owned();
            let target = split_path(&member.link).map_err(content)?;
            let target = collector.tree().find(&target);
            let target = target.ok_or_else(|| content(Problem::MissingLinkTarget(shown())))?;
            if matches!(collector.tree().node(target).content, Content::Directory(_)) {
                return Err(content(Problem::LinkToDirectory(shown())));
            }
            return collector.insert_link(directory, name, target).map_err(content);
        }
        b'2' => Content::Symlink(member.link.as_slice().into()),
        b'3' | b'4' => {
            let number = |field, value: io::Result<Option<u32>>| match value {
                Ok(number) => Ok(number.unwrap_or(0)),
                Err(cause) => Err(content(Problem::Header { field, cause })),
            };
            let major = number("device major", member.header.device_major())?;
            let minor = number("device minor", member.header.device_minor())?;
            match kind {
                b'3' => Content::CharDevice { major, minor },
                _ => Content::BlockDevice { major, minor },
            }
        }
        b'5' => no_entries(),
        b'6' => Content::Fifo,
        unknown => return Err(content(Problem::UnknownType(unknown.into()))),
    };
    collector.insert(directory, name, Node { attributes, content: node }).map_err(content)?;
    Ok(())
}

fn attributes<C>(collector: &mut Collector<'_, C>, member: &Member) -> Result<Attributes, Problem> {
    let Member { header, records, .. } = member;
    let field = |field| move |cause| Problem::Header { field, cause };
    // A field that was left blank is zero, as GNU tar has it.
    let blank = |at: std::ops::Range<usize>| {
        header.as_bytes()[at].iter().all(|byte| matches!(byte, 0 | b' '))
    };
    let id = |key, value: io::Result<u64>, at| match records.number(key)? {
        Some(id) => Ok(id as u32),
        None if blank(at) => Ok(0),
        None => value.map(|id| id as u32).map_err(field(key)),
    };
    let mtime = match records.time("mtime")? {
        Some(time) => time,
        None if blank(136..148) => Timestamp::default(),
        // In the binary form of large numbers, times before 1970 are two's complements.
        None => {
            Timestamp { seconds: header.mtime().map_err(field("mtime"))? as i64, nanoseconds: 0 }
        }
    };
    let mut xattrs: Vec<Xattr> = Vec::new();
    for (key, value) in records.iter() {
        let Some(name) = key.strip_prefix(XATTR_KEY) else { continue };
        match Xattr::new(name, value)? {
            Some(xattr) => {
                xattrs.retain(|earlier| !earlier.same_name(&xattr));
                xattrs.push(xattr);
            }
            None => collector.count_skipped_xattr(),
        }
    }
    Ok(Attributes {
        mode: match blank(100..108) {
            true => 0,
            false => (header.mode().map_err(field("mode"))? & 0o7777) as u16,
        },
        uid: id("uid", header.uid(), 108..116)?,
        gid: id("gid", header.gid(), 116..124)?,
        mtime,
        xattrs,
    })
}

impl<R: Read> ByteSource for TarStream<R> {
    fn read_at(&mut self, _offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_data(buffer)
    }
}

/// Counts the bytes that pass, before they are decompressed.
struct Counted<R> {
    inner: R,
    consumed: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.consumed.set(self.consumed.get() + count as u64);
        Ok(count)
    }
}
