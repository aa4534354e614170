//! Members of a tar stream: headers in, names, attributes and positions out.
//!
//! The `tar` crate parses the header blocks. What lies between them is read here, since extended
//! headers must be split by their lengths (attribute values hold line ends), holes must stay
//! holes, a stream without its end mark must not pass, and headers must not fill the memory.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::error::Problem;
use crate::pax::Records;
use crate::sparse::{self, PaxSparse, SparseMap};

const RECORD: u64 = 512;
/// Longest extended header or long name, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why there is no next member.
pub(crate) enum Fault {
    /// The stream itself.
    Archive(io::Error),
    /// This member.
    Member(Vec<u8>, Problem),
}

/// A problem of the member at hand, whose name is put in later.
impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self::Member(Vec::new(), problem)
    }
}

/// One member: all its headers taken together.
pub(crate) struct Member {
    pub(crate) header: Header,
    pub(crate) records: Records,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Size and data parts of a regular file.
    pub(crate) map: SparseMap,
}

/// Reads members one after the other.
pub(crate) struct TarStream<R> {
    inner: R,
    offset: u64,
    /// Data of the current member still to come.
    data: u64,
    /// Bytes after them up to the next header.
    padding: u64,
}

impl<R: Read> TarStream<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, offset: 0, data: 0, padding: 0 }
    }

    /// Bytes consumed so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The stream behind the last member.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next member, `None` at the end mark. What is left of the last one is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Fault> {
        let mut path = None;
        let mut link = None;
        let mut records = Records::default();
        loop {
            self.skip_rest()?;
            let mut header = Header::new_old();
            self.read_record(header.as_mut_bytes())?;
            if header.as_bytes().iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            check_sum(&header).map_err(Fault::Archive)?;
            let name = || header.path_bytes().into_owned();
            let member = |problem| Fault::Member(name(), problem);
            let field = |field, cause| member(Problem::Header { field, cause });
            let size = || header.entry_size().map_err(|cause| field("size", cause));
            match header.as_bytes()[156] {
                b'x' | b'X' => {
                    let bytes = self.extension(size()?, name)?;
                    records = Records::parse(&bytes).map_err(member)?;
                }
                b'g' => drop(self.extension(size()?, name)?),
                b'L' => path = Some(c_string(self.extension(size()?, name)?)),
                b'K' => link = Some(c_string(self.extension(size()?, name)?)),
                kind => {
                    let owned = |key: &str| records.get(key).map(<[u8]>::to_vec);
                    let path = owned("GNU.sparse.name").or_else(|| owned("path")).or(path);
                    let path = path.unwrap_or_else(name);
                    let link = owned("linkpath").or(link).unwrap_or_else(|| {
                        header.link_name_bytes().map(Into::into).unwrap_or_default()
                    });
                    let mut map = SparseMap::dense(0);
                    if matches!(kind, 0 | b'0' | b'7' | b'S') {
                        let member = |problem| Fault::Member(path.clone(), problem);
                        let size = match records.number("size").map_err(member)? {
                            Some(size) => size,
                            None => size()?,
                        };
                        self.data = size;
                        self.padding = size.wrapping_neg() % RECORD;
                        map = self.map(&header, &records).map_err(|fault| match fault {
                            Fault::Member(_, problem) => member(problem),
                            archive => archive,
                        })?;
                    }
                    return Ok(Some(Member { header, records, path, link, map }));
                }
            }
        }
    }

    /// Some data of the current member; 0 bytes at the end of it or of the stream.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (buffer.len() as u64).min(self.data) as usize;
        let count = self.inner.read(&mut buffer[..wanted])?;
        self.data -= count as u64;
        self.offset += count as u64;
        Ok(count)
    }

    fn map(&mut self, header: &Header, records: &Records) -> Result<SparseMap, Fault> {
        let map = if header.as_bytes()[156] == b'S' {
            self.old_gnu_map(header)?
        } else {
            match PaxSparse::new(records)? {
                None => SparseMap::dense(self.data),
                Some(PaxSparse::InHeader(map)) => map,
                Some(PaxSparse::InData(size)) => sparse::read_map::<Fault>(size, || {
                    let mut record = [0; RECORD as usize];
                    if self.data < RECORD {
                        return Err(Problem::SparseMap("it is longer than the data").into());
                    }
                    self.read_record(&mut record)?;
                    self.data -= RECORD;
                    Ok(record)
                })?,
            }
        };
        if map.data_bytes() != self.data {
            return Err(Problem::SparseMap("its parts are not as long as the data").into());
        }
        Ok(map)
    }

    /// Four parts are in the header, any others in records before the data.
    fn old_gnu_map(&mut self, header: &Header) -> Result<SparseMap, Fault> {
        let number = |field: io::Result<u64>| {
            field.map_err(|cause| Problem::Header { field: "sparse map", cause })
        };
        let gnu = header.as_gnu().ok_or(Problem::SparseMap("it is not in GNU format"))?;
        let mut map = SparseMap::holes_only(number(gnu.real_size())?);
        let mut add = |parts: &[GnuSparseHeader]| {
            for part in parts.iter().filter(|part| !part.is_empty()) {
                map.push(number(part.offset())?, number(part.length())?)?;
            }
            Ok::<_, Problem>(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            self.read_record(extension.as_mut_bytes())?;
            add(extension.sparse())?;
            more = extension.is_extended();
        }
        Ok(map)
    }

    fn extension(&mut self, size: u64, name: impl Fn() -> Vec<u8>) -> Result<Vec<u8>, Fault> {
        if size > MAX_EXTENSION {
            let problem = Problem::ExtendedHeader("it is longer than 1 MiB");
            return Err(Fault::Member(name(), problem));
        }
        let mut bytes = vec![0; size as usize];
        self.inner.read_exact(&mut bytes).map_err(truncated)?;
        self.offset += size;
        self.padding = size.wrapping_neg() % RECORD;
        Ok(bytes)
    }

    fn read_record(&mut self, record: &mut [u8; RECORD as usize]) -> Result<(), Fault> {
        self.inner.read_exact(record).map_err(truncated)?;
        self.offset += RECORD;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), Fault> {
        let rest = self.data.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink());
        let skipped = skipped.map_err(Fault::Archive)?;
        self.offset += skipped;
        (self.data, self.padding) = (0, 0);
        match skipped == rest {
            true => Ok(()),
            false => Err(truncated(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

fn truncated(error: io::Error) -> Fault {
    Fault::Archive(match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(error.kind(), "the archive breaks off before its end mark")
        }
        _ => error,
    })
}

/// Some old writers summed signed bytes.
fn check_sum(header: &Header) -> io::Result<()> {
    // The field itself counts as blanks.
    const BLANKS: u32 = 8 * b' ' as u32;
    let (front, rest) = header.as_bytes().split_at(148);
    let back = &rest[8..];
    let unsigned = |part: &[u8]| part.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let signed = |part: &[u8]| part.iter().map(|&byte| i32::from(byte as i8)).sum::<i32>();
    let expected = header.cksum()?;
    if expected == unsigned(front) + unsigned(back) + BLANKS
        || i64::from(expected) == i64::from(signed(front) + signed(back) + BLANKS as i32)
    {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a header has the wrong checksum"))
}

/// Whether a block looks like the header of a member.
pub(crate) fn is_header(block: &[u8; 512]) -> bool {
    block.iter().any(|&byte| byte != 0) && check_sum(Header::from_byte_slice(block)).is_ok()
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}
