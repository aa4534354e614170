//! Layers with a hash tree, made here so that the tests do not believe the tools under test.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const BLOCK: usize = 4096;
const SALT: [u8; 32] = [0; 32];

/// Appends a superblock and a hash tree to an image. Returns the `VerityInfo` that pins it.
///
/// # Panics
/// When the file cannot be read or written, or is no whole number of blocks.
pub fn append_tree(file: &File) -> Value {
    let size = file.metadata().expect("look at the image").len() as usize;
    assert!(size.is_multiple_of(BLOCK) && size > 0, "{size} bytes are no image");
    let mut data = vec![0; size];
    file.read_exact_at(&mut data, 0).expect("read the image");
    let mut levels = vec![level(&data)];
    while levels.last().is_some_and(|level| level.len() > BLOCK) {
        levels.push(level(levels.last().expect("there is one")));
    }
    let root = hash(levels.last().expect("there is one"));
    // The root's level comes first.
    let tree: Vec<u8> = levels.into_iter().rev().flatten().collect();
    file.write_all_at(&superblock(size), size as u64).expect("write the superblock");
    file.write_all_at(&tree, (size + BLOCK) as u64).expect("write the tree");
    json!({
        "Ext4SizeInBytes": size,
        "Version": 1,
        "Algorithm": "sha256",
        "SuperBlock": true,
        "RootDigest": root.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "Salt": "00".repeat(SALT.len()),
        "BlockSize": BLOCK,
    })
}

fn superblock(size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(b"verity\0\0");
    for (at, number) in [(8, 1), (12, 1), (64, BLOCK), (68, BLOCK), (72, size / BLOCK), (80, 32)] {
        block[at..at + 4].copy_from_slice(&(number as u32).to_le_bytes());
    }
    block[32..38].copy_from_slice(b"sha256");
    block
}

fn level(below: &[u8]) -> Vec<u8> {
    let mut level: Vec<u8> = below.chunks(BLOCK).flat_map(hash).collect();
    level.resize(level.len().next_multiple_of(BLOCK), 0);
    level
}

fn hash(block: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(SALT).chain_update(block).finalize().into()
}
