//! dm-verity: a tree of hashes behind a file system, so that whoever knows its root's hash can
//! trust every block, and the kernel checks each one when it is read.
//!
//! What hosts and guests of the GCS bridge agree on, all of it in blocks of 4096 bytes:
//!
//! | blocks          | content                                                       |
//! |-----------------|---------------------------------------------------------------|
//! | 0 ..            | the file system                                               |
//! | then one        | the superblock: 512 bytes, the rest zero                      |
//! | then            | the hashes: the root's block first, the blocks' own hashes last |
//!
//! Superblock, little-endian:
//!
//! | offset | size | field              | here                         |
//! |-------:|-----:|--------------------|------------------------------|
//! |      0 |    8 | signature          | `verity\0\0`                 |
//! |      8 |    4 | version            | 1                            |
//! |     12 |    4 | hash type          | 1: the salt comes first      |
//! |     16 |   16 | UUID               | from the root hash           |
//! |     32 |   32 | algorithm          | `sha256`                     |
//! |     64 |    4 | data block size    | 4096                         |
//! |     68 |    4 | hash block size    | 4096                         |
//! |     72 |    8 | data blocks        |                              |
//! |     80 |    2 | length of the salt | 32                           |
//! |     88 |  256 | salt               | zeros                        |

mod check;
mod hasher;
mod tree;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

pub use check::verify;
pub(crate) use hasher::{Hasher, Leaves};

use crate::error::Error;
use crate::ext4::{BLOCK, BLOCK_U64};

const SIGNATURE: &[u8; 8] = b"verity\0\0";
const SUPERBLOCK: usize = 512;
/// Longest salt in bytes.
pub const MAX_SALT: usize = 256;

/// How a hash tree is made.
#[derive(Debug, Clone)]
pub struct VerityOptions {
    /// Hashed before every block; 32 zeros by default, 256 bytes at most.
    pub salt: Vec<u8>,
    /// UUID of the tree; by default one derived from the root hash.
    pub uuid: Option<[u8; 16]>,
}

impl Default for VerityOptions {
    fn default() -> Self {
        Self { salt: vec![0; 32], uuid: None }
    }
}

/// What a verified image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verity {
    /// SHA-256 over the salt and the first block of the tree.
    pub root_digest: [u8; 32],
    /// The salt.
    pub salt: Vec<u8>,
    /// UUID of the tree.
    pub uuid: [u8; 16],
    /// Blocks of 4096 bytes that are protected. The superblock follows them.
    pub data_blocks: u64,
    /// Blocks of the tree, the superblock not counted.
    pub hash_blocks: u64,
}

impl Verity {
    /// The root hash as tools and policies write it.
    #[must_use]
    pub fn root_hex(&self) -> String {
        hex(&self.root_digest)
    }

    /// The salt in hexadecimal.
    #[must_use]
    pub fn salt_hex(&self) -> String {
        hex(&self.salt)
    }

    /// Byte at which the superblock starts.
    #[must_use]
    pub fn hash_offset(&self) -> u64 {
        self.data_blocks * BLOCK_U64
    }

    /// Bytes of file system, superblock and tree.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        (self.data_blocks + 1 + self.hash_blocks) * BLOCK_U64
    }

    fn superblock(&self) -> [u8; BLOCK] {
        let mut record = [0; BLOCK];
        record[..8].copy_from_slice(SIGNATURE);
        record[8..12].copy_from_slice(&1_u32.to_le_bytes());
        record[12..16].copy_from_slice(&1_u32.to_le_bytes());
        record[16..32].copy_from_slice(&self.uuid);
        record[32..38].copy_from_slice(b"sha256");
        record[64..68].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        record[68..72].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        record[72..80].copy_from_slice(&self.data_blocks.to_le_bytes());
        record[80..82].copy_from_slice(&(self.salt.len() as u16).to_le_bytes());
        record[88..88 + self.salt.len()].copy_from_slice(&self.salt);
        record
    }

    /// Everything but the root hash, which is zeros. The error is what is wrong.
    fn parse(record: &[u8; SUPERBLOCK], data_blocks: u64) -> Result<Self, String> {
        let number = |offset: usize, size: usize| {
            record[offset..offset + size].iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b))
        };
        let expect = |what: &str, found: u64, wanted: u64| match found == wanted {
            true => Ok(()),
            false => Err(format!("the {what} is {found}, not {wanted}")),
        };
        if !record.starts_with(SIGNATURE) {
            return Err("there is no verity superblock behind the file system".to_owned());
        }
        expect("version of its superblock", number(8, 4), 1)?;
        expect("hash type", number(12, 4), 1)?;
        expect("size of a data block", number(64, 4), BLOCK_U64)?;
        expect("size of a hash block", number(68, 4), BLOCK_U64)?;
        expect("number of protected blocks", number(72, 8), data_blocks)?;
        let algorithm = record[32..64].split(|&byte| byte == 0).next().unwrap_or_default();
        if algorithm != b"sha256" {
            let algorithm = String::from_utf8_lossy(algorithm);
            return Err(format!("the algorithm is {algorithm:?}, not \"sha256\""));
        }
        let salt = number(80, 2) as usize;
        if salt > MAX_SALT {
            return Err(format!("the salt has {salt} bytes; {MAX_SALT} are possible"));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&record[16..32]);
        Ok(Self {
            root_digest: [0; 32],
            salt: record[88..88 + salt].to_vec(),
            uuid,
            data_blocks,
            hash_blocks: tree::levels(data_blocks).iter().sum(),
        })
    }
}

/// Reads what an image of `data_size` bytes of file system has behind it. `None` if that is no
/// verity superblock at all.
///
/// # Errors
///
/// [`Error::Verity`] for a superblock with parameters that guests do not take, or a tree that is
/// cut off; [`Error::Read`] is for the caller, who knows the path: here it is [`Error::Verity`] too.
pub fn read(file: &File, data_size: u64) -> Result<Option<Verity>, Error> {
    let damaged = |text: String| Error::Verity(text);
    let mut record = [0; SUPERBLOCK];
    match file.read_exact_at(&mut record, data_size) {
        Ok(()) => {}
        Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(cause) => return Err(damaged(format!("read its superblock: {cause}"))),
    }
    if !record.starts_with(SIGNATURE) {
        return Ok(None);
    }
    if !data_size.is_multiple_of(BLOCK_U64) {
        return Err(damaged(format!("{data_size} bytes are no whole number of blocks")));
    }
    let mut verity = Verity::parse(&record, data_size / BLOCK_U64).map_err(damaged)?;
    let length = file.metadata().map_err(|cause| damaged(cause.to_string()))?.len();
    if verity.data_blocks < 2 || length < verity.total_bytes() {
        let needed = verity.total_bytes();
        return Err(damaged(format!("the tree is cut off: {length} of {needed} bytes are there")));
    }
    let mut root = [0; BLOCK];
    let read = file.read_exact_at(&mut root, verity.hash_offset() + BLOCK_U64);
    read.map_err(|cause| damaged(format!("read the root of the tree: {cause}")))?;
    verity.root_digest = digest(&salted(&verity.salt), &root);
    Ok(Some(verity))
}

/// Appends superblock and tree to a file whose first `data_size` bytes are to be protected, and
/// cuts off what was behind them. Hashing takes all processors; memory does not grow with the file.
/// `tick` is told how many bytes were handed out.
///
/// # Errors
///
/// The size is not a multiple of 4096 of at least 8192, the salt is too long, or the file cannot
/// be read or written.
pub fn append(
    file: &File,
    data_size: u64,
    options: &VerityOptions,
    tick: &mut dyn FnMut(u64),
) -> Result<Verity, Error> {
    file.set_len(data_size).map_err(Error::Write)?;
    let hasher = Hasher::new(file, &options.salt).map_err(Error::Write)?;
    hash_data(file, data_size, &hasher, tick).map_err(Error::Write)?;
    hasher.finish().map_err(Error::Write)?.append_to(file, data_size, options)
}

/// Hands all that is not a hole to the hasher.
fn hash_data(
    file: &File,
    data_size: u64,
    hasher: &Hasher,
    tick: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut offset = 0;
    while offset < data_size {
        let start = match seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start.min(data_size) / BLOCK_U64 * BLOCK_U64,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => offset,
            Err(errno) => return Err(errno.into()),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.next_multiple_of(BLOCK_U64).min(data_size),
            Err(_) => data_size,
        };
        tick(start - offset);
        let mut at = start;
        while at < end {
            let next = end.min(at + hasher::CHUNK);
            hasher.written(at / BLOCK_U64, next.div_ceil(BLOCK_U64) - at / BLOCK_U64);
            tick(next - at);
            at = next;
        }
        if end <= offset {
            break;
        }
        offset = end;
    }
    Ok(())
}

impl Leaves {
    /// Writes superblock and tree behind `data_size` bytes.
    pub(crate) fn append_to(
        &self,
        file: &File,
        data_size: u64,
        options: &VerityOptions,
    ) -> Result<Verity, Error> {
        check_options(options)?;
        let data_blocks = data_size / BLOCK_U64;
        if !data_size.is_multiple_of(BLOCK_U64) || data_blocks < 2 {
            let text = format!("{data_size} bytes cannot be protected: not 2 or more whole blocks");
            return Err(Error::Verity(text));
        }
        let root_digest = tree::write(self, data_blocks, file, data_size + BLOCK_U64)?;
        let uuid = options.uuid.unwrap_or_else(|| {
            let mut uuid = [0; 16];
            uuid.copy_from_slice(&root_digest[..16]);
            uuid[6] = uuid[6] & 0x0f | 0x80;
            uuid[8] = uuid[8] & 0x3f | 0x80;
            uuid
        });
        let hash_blocks = tree::levels(data_blocks).iter().sum();
        let salt = options.salt.clone();
        let verity = Verity { root_digest, salt, uuid, data_blocks, hash_blocks };
        file.write_all_at(&verity.superblock(), data_size).map_err(Error::Write)?;
        file.set_len(verity.total_bytes()).map_err(Error::Write)?;
        Ok(verity)
    }
}

pub(crate) fn check_options(options: &VerityOptions) -> Result<(), Error> {
    match options.salt.len() {
        0..=MAX_SALT => Ok(()),
        many => Err(Error::Invalid(format!("the salt has {many} bytes; {MAX_SALT} are possible"))),
    }
}

/// A hash that has taken the salt already.
fn salted(salt: &[u8]) -> Sha256 {
    Sha256::new_with_prefix(salt)
}

fn digest(salted: &Sha256, block: &[u8]) -> [u8; 32] {
    salted.clone().chain_update(block).finalize().into()
}

/// Bytes in lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
