//! Root hashes that a caller pins, and what a guest has to know to check a layer against one.
//!
//! Where the hash tree is, is read from the layer. The hash is the caller's, so that a layer that
//! lies about the rest does not hash to it.

use std::fs::File;
use std::io;

use linkspan_layer::verity;
use linkspan_protocol::resource::VerityInfo;

use crate::{Error, Result};

/// SHA-256 in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootHash(String);

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

    /// What the guest is to be told of an image.
    pub(crate) fn info(self, image: &File) -> io::Result<VerityInfo> {
        let none = || io::Error::new(io::ErrorKind::InvalidData, "it has no hash tree to pin");
        let data = linkspan_layer::file_system_size(image)?.ok_or_else(none)?;
        let tree = verity::read(image, data).map_err(io::Error::other)?.ok_or_else(none)?;
        Ok(VerityInfo {
            ext4_size_in_bytes: i64::try_from(data).unwrap_or(i64::MAX),
            version: 1,
            algorithm: "sha256".to_owned(),
            super_block: true,
            root_digest: self.0,
            salt: tree.salt_hex(),
            block_size: 4096,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_callers_and_the_rest_the_layers() {
        let file = tempfile::tempfile().unwrap();
        let options = linkspan_layer::scratch::ScratchOptions::default();
        linkspan_layer::scratch::format(&file, 4 << 20, &options).unwrap();
        let hash = || RootHash::parse(&"Ab".repeat(32)).unwrap();
        assert!(hash().info(&file).unwrap_err().to_string().contains("no hash tree"));
        let options = verity::VerityOptions { salt: vec![7; 3], uuid: None };
        verity::append(&file, 4 << 20, &options, &mut |_| {}).unwrap();
        let info = hash().info(&file).unwrap();
        assert_eq!((info.root_digest, info.salt.as_str()), ("ab".repeat(32), "070707"));
        assert_eq!((info.ext4_size_in_bytes, info.block_size), (4 << 20, 4096));
        for bad in ["", "ab", &"zz".repeat(32), &"é".repeat(32)] {
            assert!(RootHash::parse(bad).is_err(), "{bad:?}");
        }
    }
}
