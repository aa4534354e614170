//! Extended attributes behind their inode: a header of 12 bytes, then entries of length of the
//! name (1), prefix (1), length of the value (2), name, value, padded to 4 bytes.

use crate::error::Problem;
use crate::ext4::put16;
use crate::ext4::xattr::Xattr;

const HEADER: usize = 12;
/// The inode counts them in units of four bytes with 16 bits.
const MOST: usize = HEADER + 4 * (u16::MAX as usize - 1);

pub(super) fn encode(xattrs: &[Xattr]) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    if xattrs.is_empty() {
        return Ok(bytes);
    }
    bytes.resize(HEADER, 0);
    let mut sorted: Vec<&Xattr> = xattrs.iter().collect();
    sorted.sort_by_key(|xattr| (xattr.prefix(), xattr.name()));
    for xattr in sorted {
        let start = bytes.len();
        bytes.resize(start + 4, 0);
        let length = u16::try_from(xattr.value().len()).map_err(|_| Problem::XattrsTooLarge)?;
        bytes[start] = xattr.name().len() as u8;
        bytes[start + 1] = xattr.prefix();
        put16(&mut bytes, start + 2, length);
        bytes.extend_from_slice(xattr.name());
        bytes.extend_from_slice(xattr.value());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if bytes.len() > MOST { Err(Problem::XattrsTooLarge) } else { Ok(bytes) }
}

/// How an inode says that so many bytes of attributes are behind it.
pub(super) fn count(encoded: &[u8]) -> u16 {
    match encoded.len().checked_sub(HEADER) {
        Some(entries) => (entries / 4 + 1) as u16,
        None => 0,
    }
}
