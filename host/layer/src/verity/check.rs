//! Checks an image against its tree, as the kernel would if it read every block.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::hasher::DIGEST;
use super::tree::{PER_BLOCK, levels, offsets};
use super::{Hasher, Verity, digest, hash_data, salted};
use crate::error::Error;
use crate::ext4::{BLOCK, BLOCK_U64};

/// Checks the whole tree from the root down, and then every block of data. `tick` is told how many
/// bytes of data were handed out to be hashed.
///
/// # Errors
///
/// [`Error::Verity`] names the first block that is not what its hash says; [`Error::Write`] if the
/// file cannot be read or a temporary file not be written.
pub fn verify(file: &File, verity: &Verity, tick: &mut dyn FnMut(u64)) -> Result<(), Error> {
    let unreadable = |cause| Error::Verity(format!("read the image: {cause}"));
    let levels = levels(verity.data_blocks);
    let offsets = offsets(&levels, verity.hash_offset() + BLOCK_U64);
    let salted = salted(&verity.salt);
    let mut expected = verity.root_digest.to_vec();
    for (&blocks, &offset) in levels.iter().zip(&offsets).rev() {
        let mut next = Vec::new();
        let mut block = [0; BLOCK];
        for (number, hash) in (0..blocks).zip(expected.chunks_exact(DIGEST)) {
            let at = offset + number * BLOCK_U64;
            file.read_exact_at(&mut block, at).map_err(unreadable)?;
            if digest(&salted, &block) != hash {
                let text = format!("the block of hashes at byte {at} is not what it was");
                return Err(Error::Verity(text));
            }
            // The lowest level is as long as all others are not: it is read again below.
            if blocks != levels[0] {
                next.extend_from_slice(&block);
            }
        }
        expected = next;
    }
    let hasher = Hasher::new(file, &verity.salt).map_err(Error::Write)?;
    hash_data(file, verity.hash_offset(), &hasher, tick).map_err(unreadable)?;
    let leaves = hasher.finish().map_err(unreadable)?;
    let mut stored = [0; BLOCK];
    let mut found = [0; BLOCK];
    for number in 0..levels[0] {
        let first = number * PER_BLOCK;
        let length = (verity.data_blocks - first).min(PER_BLOCK) as usize * DIGEST;
        leaves.read(first, &mut found[..length]).map_err(unreadable)?;
        file.read_exact_at(&mut stored, offsets[0] + number * BLOCK_U64).map_err(unreadable)?;
        let pairs = found[..length].chunks_exact(DIGEST).zip(stored.chunks_exact(DIGEST));
        if let Some(wrong) = pairs.into_iter().position(|(found, stored)| found != stored) {
            let block = first + wrong as u64;
            let text = format!("block {block} (byte {}) is not what it was", block * BLOCK_U64);
            return Err(Error::Verity(text));
        }
    }
    Ok(())
}
