//! The superblock.

use super::{ROOT_BLOCK, SLOT};
use crate::ext4::{BLOCK, put16, put32};

/// Byte of the image at which it starts.
pub(crate) const OFFSET: u64 = 1024;
/// Its first four bytes.
pub(crate) const MAGIC: u32 = 0xe0f5_e1e2;
/// What its checksum covers: the rest of its block.
const SIZE: usize = BLOCK - OFFSET as usize;

const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;

/// What differs between images.
pub(crate) struct Superblock {
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) label: [u8; 16],
    /// Some file has a map of chunks.
    pub(crate) chunked: bool,
}

impl Superblock {
    pub(crate) fn encode(&self) -> [u8; SIZE] {
        let mut record = [0; SIZE];
        put32(&mut record, 0, MAGIC);
        put32(&mut record, 8, COMPAT_CHECKSUM | COMPAT_MTIME);
        record[12] = BLOCK.ilog2() as u8;
        put16(&mut record, 14, (ROOT_BLOCK as usize * BLOCK / SLOT) as u16);
        record[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        put32(&mut record, 36, self.blocks);
        record[48..64].copy_from_slice(&self.uuid);
        record[64..80].copy_from_slice(&self.label);
        put32(&mut record, 80, if self.chunked { INCOMPAT_CHUNKED_FILE } else { 0 });
        let sum = crc32c(u32::MAX, &record);
        put32(&mut record, 4, sum);
        record
    }
}

/// Bytes of the file system that starts so, if it is one.
pub(crate) fn size(start: &[u8]) -> Option<u64> {
    let record = start.get(OFFSET as usize..OFFSET as usize + 128)?;
    let word = |offset: usize| {
        record[offset..offset + 4]
            .iter()
            .rev()
            .fold(0_u32, |word, &byte| word << 8 | u32::from(byte))
    };
    let bits = record[12];
    (word(0) == MAGIC && (9..=16).contains(&bits)).then(|| u64::from(word(36)) << bits)
}

/// Without the inversion at the end that others give it.
fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |mut sum, &byte| {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_follows_its_check_value() {
        assert_eq!(!crc32c(u32::MAX, b"123456789"), 0xe306_9283);
    }
}
