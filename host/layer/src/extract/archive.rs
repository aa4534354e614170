//! A tar archive as the place where entries go: POSIX headers, with extended ones for what those
//! have no room for, and GNU's form 1.0 of sparse files.

use std::io::{self, Write};

use tar::{EntryType, Header};

use super::{Entry, Target};
use crate::copy::{ByteSource, CopyError};
use crate::error::Problem;
use crate::finished::Image;
use crate::sparse::SparseMap;
use crate::tree::{Attributes, Content, Place};

const RECORD: usize = 512;
/// Bytes of a name or of a link's target in a header.
const NAME: usize = 100;
/// Larger ids and sizes than seven and eleven octal digits have.
const MAX_ID: u64 = 0o777_7777;
const MAX_SIZE: u64 = 0o777_7777_7777;
/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

pub(super) struct Archive<W> {
    out: W,
    name: String,
    left_out: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W, name: &str) -> Self {
        Self { out, name: name.to_owned(), left_out: 0, buffer: vec![0; CHUNK] }
    }

    /// Writes the headers of an entry with so many bytes of data behind them.
    fn head(&mut self, head: &Head<'_>, size: u64) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let mut records = Records::default();
        header.set_entry_type(head.kind);
        let attributes = head.attributes;
        header.set_mode(attributes.mode.into());
        let mut number = |key, value: u64, most| match value > most {
            true => {
                records.push(key, value.to_string().as_bytes());
                0
            }
            false => value,
        };
        header.set_uid(number("uid", attributes.uid.into(), MAX_ID));
        header.set_gid(number("gid", attributes.gid.into(), MAX_ID));
        header.set_size(number("size", size, MAX_SIZE));
        let mtime = attributes.mtime;
        let seconds = u64::try_from(mtime.seconds).ok().filter(|&seconds| seconds <= MAX_SIZE);
        header.set_mtime(seconds.unwrap_or(0));
        if seconds.is_none() || mtime.nanoseconds != 0 {
            records.push("mtime", mtime.decimal().as_bytes());
        }
        if let Some((major, minor)) = head.device {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        let record = header.as_ustar_mut().ok_or(io::ErrorKind::InvalidData)?;
        text(&mut record.name, &head.path, "path", &mut records);
        text(&mut record.linkname, head.link, "linkpath", &mut records);
        for (key, value) in &head.sparse {
            records.push(key, value);
        }
        for xattr in &attributes.xattrs {
            let key = xattr.key();
            // Whoever reads it takes the first of these for the end of the name.
            if key.contains(&b'=') {
                self.left_out += 1;
                continue;
            }
            records.push_bytes(&[b"SCHILY.xattr.", &*key].concat(), xattr.value());
        }
        if !records.0.is_empty() {
            let mut extended = Header::new_ustar();
            extended.set_entry_type(EntryType::XHeader);
            extended.set_path("pax")?;
            extended.set_mode(0o644);
            extended.set_uid(0);
            extended.set_gid(0);
            extended.set_mtime(0);
            extended.set_size(records.0.len() as u64);
            extended.set_cksum();
            self.out.write_all(extended.as_bytes())?;
            self.out.write_all(&records.0)?;
            self.pad(records.0.len() as u64)?;
        }
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, length: u64) -> io::Result<()> {
        let padding = (length.wrapping_neg() % RECORD as u64) as usize;
        self.out.write_all(&[0; RECORD][..padding])
    }

    fn file(
        &mut self,
        head: Head<'_>,
        number: u64,
        image: &Image,
        tick: &mut dyn FnMut(u64),
    ) -> Result<(), CopyError> {
        let write = |cause| CopyError::Content(Problem::Write(cause));
        let inode = image.inode(number)?;
        let map = inode.map().map_err(CopyError::Content)?;
        let data = map.data_bytes();
        let before = match data == map.size {
            true => {
                self.head(&head, data).map_err(write)?;
                0
            }
            false => {
                let text = sparse_map(&map);
                self.head(&sparse(head, map.size), text.len() as u64 + data).map_err(write)?;
                self.out.write_all(&text).map_err(write)?;
                text.len() as u64
            }
        };
        let mut source = image.contents(&inode);
        for range in &map.data {
            let mut at = range.start;
            while at < range.end {
                let most = (range.end - at).min(CHUNK as u64) as usize;
                let count = source.read_at(at, &mut self.buffer[..most]);
                let count = count.map_err(|cause| CopyError::Content(Problem::Read(cause)))?;
                if count == 0 {
                    let problem = Problem::Truncated { expected: map.size, got: at };
                    return Err(CopyError::Content(problem));
                }
                self.out.write_all(&self.buffer[..count]).map_err(write)?;
                at += count as u64;
                tick(count as u64);
            }
        }
        self.pad(before + data).map_err(write)
    }
}

/// What headers say.
struct Head<'e> {
    kind: EntryType,
    path: Vec<u8>,
    link: &'e [u8],
    device: Option<(u32, u32)>,
    attributes: &'e Attributes,
    sparse: Vec<(&'static str, Vec<u8>)>,
}

impl<'e> Head<'e> {
    fn new(kind: EntryType, entry: &'e Entry<'_>) -> Self {
        let attributes = &entry.node.attributes;
        let path = entry.path.to_vec();
        Self { kind, path, link: b"", device: None, attributes, sparse: Vec::new() }
    }
}

/// The head of a file with holes. Who does not know of them sees another name.
fn sparse(mut head: Head<'_>, size: u64) -> Head<'_> {
    let name = head.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let other = [b"GNUSparseFile.0/", name].concat();
    let path = std::mem::replace(&mut head.path, other);
    head.sparse = vec![
        ("GNU.sparse.major", b"1".to_vec()),
        ("GNU.sparse.minor", b"0".to_vec()),
        ("GNU.sparse.name", path),
        ("GNU.sparse.realsize", size.to_string().into_bytes()),
    ];
    head
}

/// Which parts are data: decimal lines, padded to whole records. The end is a part of its own.
fn sparse_map(map: &SparseMap) -> Vec<u8> {
    let mut lines = format!("{}\n", map.data.len() + 1);
    for part in &map.data {
        lines += &format!("{}\n{}\n", part.start, part.end - part.start);
    }
    lines += &format!("{}\n0\n", map.size);
    let mut bytes = lines.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(RECORD), 0);
    bytes
}

/// Puts a text where it fits, or into a record.
fn text(field: &mut [u8; NAME], value: &[u8], key: &str, records: &mut Records) {
    let short = value.len().min(NAME);
    field[..short].copy_from_slice(&value[..short]);
    if value.len() > NAME {
        records.push(key, value);
    }
}

/// Records of an extended header: `length key=value\n`, where the length counts itself.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn push(&mut self, key: &str, value: &[u8]) {
        self.push_bytes(key.as_bytes(), value);
    }

    fn push_bytes(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        if length.to_string().len() + rest > length {
            length += 1;
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }
}

impl<W: Write> Target for Archive<W> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn enter(&mut self, entry: &Entry<'_>) -> Result<(), Problem> {
        let mut head = Head::new(EntryType::Directory, entry);
        head.path = if entry.path.is_empty() { b".".to_vec() } else { head.path };
        head.path.push(b'/');
        self.head(&head, 0).map_err(Problem::Write)
    }

    fn leave(&mut self, _entry: &Entry<'_>) -> Result<(), Problem> {
        Ok(())
    }

    fn put(
        &mut self,
        entry: &Entry<'_>,
        image: &Image,
        tick: &mut dyn FnMut(u64),
    ) -> Result<(), CopyError> {
        let mut head = Head::new(EntryType::Regular, entry);
        match &entry.node.content {
            Content::File { place: Place::Inode(number), .. } => {
                return self.file(head, *number, image, tick);
            }
            Content::File { .. } => {}
            Content::Symlink(target) => {
                head.kind = EntryType::Symlink;
                head.link = target;
            }
            Content::CharDevice { major, minor } => {
                head.kind = EntryType::Char;
                head.device = Some((*major, *minor));
            }
            Content::BlockDevice { major, minor } => {
                head.kind = EntryType::Block;
                head.device = Some((*major, *minor));
            }
            Content::Fifo => head.kind = EntryType::Fifo,
            Content::Socket => {
                self.left_out += 1;
                return Ok(());
            }
            // They are entered.
            Content::Directory(_) => return Ok(()),
        }
        self.head(&head, 0).map_err(|cause| CopyError::Content(Problem::Write(cause)))
    }

    fn link(&mut self, entry: &Entry<'_>, first: &[u8]) -> Result<(), Problem> {
        if matches!(entry.node.content, Content::Socket) {
            self.left_out += 1;
            return Ok(());
        }
        // The attributes are told with the first name.
        let attributes = Attributes { xattrs: Vec::new(), ..entry.node.attributes.clone() };
        let mut head = Head::new(EntryType::Link, entry);
        head.link = first;
        head.attributes = &attributes;
        self.head(&head, 0).map_err(Problem::Write)
    }

    fn finish(&mut self) -> Result<(), Problem> {
        let end = self.out.write_all(&[0; 2 * RECORD]);
        end.and_then(|()| self.out.flush()).map_err(Problem::Write)
    }

    fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in [0, 1, 83, 84, 85, 86, 87, 980, 981, 982, 983, 9990] {
            let mut records = Records::default();
            records.push("key", &vec![b'v'; length]);
            let parsed = crate::pax::Records::parse(&records.0).unwrap();
            assert_eq!(parsed.get("key").map_or(0, <[u8]>::len), length);
        }
    }
}
