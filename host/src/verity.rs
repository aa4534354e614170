//! Root hashes that a caller pins, and what a guest has to know to check a layer against one.
//!
//! ```text
//! file system │ superblock, one block │ hash tree, the root's level first
//! ```
//!
//! Where the tree is, is read from the layer. The hash is the caller's, so that a layer that lies
//! about the rest does not hash to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linkspan_protocol::resource::VerityInfo;

use crate::{Error, Result};

/// SHA-256 in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootHash(String);

const SUPERBLOCK: usize = 512;

impl RootHash {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            true => Ok(Self(text.to_ascii_lowercase())),
            false => {
                let reason = format!("{text:?} is not 64 hexadecimal digits");
                Err(Error::Option { option: "root hash", reason })
            }
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What the guest is to be told of an image of so many bytes.
    pub(crate) fn info(self, image: &File, size: u64) -> io::Result<VerityInfo> {
        let data = filesystem_size(image)?;
        let mut block = [0; SUPERBLOCK];
        if data.checked_add(SUPERBLOCK as u64).is_none_or(|end| end > size) {
            return Err(invalid("it ends with its file system: there is no hash tree"));
        }
        image.read_exact_at(&mut block, data)?;
        self.read(&block, data)
    }

    /// `block` is the tree's superblock, `data` the bytes before it.
    fn read(self, block: &[u8; SUPERBLOCK], data: u64) -> io::Result<VerityInfo> {
        if &block[..8] != b"verity\0\0" {
            return Err(invalid("there is no hash tree behind its file system"));
        }
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| block[at + byte]));
        let name = block[32..64].split(|&byte| byte == 0).next().unwrap_or_default();
        if name != b"sha256" {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(invalid(&format!("its hash tree is made with {name:?}, not sha256")));
        }
        let (data_block, hash_block) = (number(64), number(68));
        if data_block != hash_block || !(512..=4096).contains(&data_block) {
            let text = format!("its hash tree has blocks of {data_block} and {hash_block} bytes");
            return Err(invalid(&text));
        }
        let salt = usize::from(u16::from_le_bytes([block[80], block[81]]));
        let salt = block[88..344].get(..salt).ok_or_else(|| invalid("its salt is too long"))?;
        let as_signed = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        Ok(VerityInfo {
            ext4_size_in_bytes: i64::try_from(data).unwrap_or(i64::MAX),
            version: as_signed(number(12)),
            algorithm: "sha256".to_owned(),
            super_block: true,
            root_digest: self.0,
            salt: salt.iter().map(|byte| format!("{byte:02x}")).collect(),
            block_size: as_signed(data_block),
        })
    }
}

/// Bytes of the file system that an image begins with, ext4 or EROFS.
fn filesystem_size(image: &File) -> io::Result<u64> {
    let mut block = [0; 1024];
    image.read_exact_at(&mut block, 1024)?;
    let number =
        |at: usize| u64::from(u32::from_le_bytes([0, 1, 2, 3].map(|byte| block[at + byte])));
    let size = if block[56..58] == [0x53, 0xef] {
        1024_u64.checked_shl(number(24) as u32).map(|block| block.saturating_mul(number(4)))
    } else if block[..4] == [0xe2, 0xe1, 0xf5, 0xe0] {
        1_u64.checked_shl(block[12].into()).map(|block| block.saturating_mul(number(36)))
    } else {
        None
    };
    size.filter(|&size| size > 0).ok_or_else(|| invalid("it is neither ext4 nor EROFS"))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> [u8; SUPERBLOCK] {
        let mut block = [0; SUPERBLOCK];
        block[..8].copy_from_slice(b"verity\0\0");
        block[8] = 1;
        block[12] = 1;
        block[32..38].copy_from_slice(b"sha256");
        block[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        block[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        block[80] = 32;
        block
    }

    fn hash() -> RootHash {
        RootHash::parse(&"Ab".repeat(32)).unwrap()
    }

    #[test]
    fn the_hash_is_the_callers_and_the_rest_the_layers() {
        let info = hash().read(&superblock(), 8 << 20).unwrap();
        assert_eq!(info.root_digest, "ab".repeat(32));
        assert_eq!((info.ext4_size_in_bytes, info.block_size, info.version), (8 << 20, 4096, 1));
        assert_eq!(info.salt, "00".repeat(32));
    }

    #[test]
    fn a_superblock_that_lies_is_refused() {
        type Lie = fn(&mut [u8; SUPERBLOCK]);
        let lies: [(Lie, &str); 5] = [
            (|block| block[0] = 0, "no hash tree"),
            (|block| block[32] = b'm', "not sha256"),
            (|block| block[65] = 0, "blocks of"),
            (|block| block[68..72].fill(0xff), "blocks of"),
            (|block| block[81] = 2, "salt"),
        ];
        for (lie, part) in lies {
            let mut block = superblock();
            lie(&mut block);
            let text = hash().read(&block, 4096).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
        for bad in ["", "ab", &"zz".repeat(32), &"é".repeat(32)] {
            assert!(RootHash::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_image_without_a_tree_cannot_be_pinned() {
        let file = tempfile::tempfile().unwrap();
        let options = linkspan_layer::scratch::ScratchOptions::default();
        linkspan_layer::scratch::format(&file, 4 << 20, &options).unwrap();
        assert_eq!(filesystem_size(&file).unwrap(), 4 << 20);
        assert!(hash().info(&file, 4 << 20).unwrap_err().to_string().contains("no hash tree"));
        file.set_len(8 << 20).unwrap();
        assert!(hash().info(&file, 8 << 20).unwrap_err().to_string().contains("no hash tree"));
        file.write_all_at(&superblock(), 4 << 20).unwrap();
        assert_eq!(hash().info(&file, 8 << 20).unwrap().ext4_size_in_bytes, 4 << 20);
        file.write_all_at(&[0xff; 4], 1024 + 24).unwrap();
        assert!(filesystem_size(&file).is_err(), "a block size beyond all bounds");
    }
}
