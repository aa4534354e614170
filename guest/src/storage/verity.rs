//! Devices whose every block is checked against a root hash that the host has pinned.
//!
//! ```text
//! data (ext4, EROFS …) │ superblock, one block, if there is one │ hash tree, the root's level first
//! ```
//!
//! A block that does not hash to what the tree says, or a tree that does not hash to the root, is an
//! I/O error to whoever reads it, and a line in the kernel's log. It is never wrong data.

use std::path::Path;

use linkspan_protocol::resource::VerityInfo;

use super::mapping::{Mapping, Table, device_size};
use crate::{Error, Result};

/// A device's hash tree, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verity {
    data_bytes: u64,
    block: u64,
    version: u32,
    algorithm: String,
    superblock: bool,
    root: String,
    salt: String,
}

/// Digests of a tree, and how many hexadecimal digits a root has.
const ALGORITHMS: [(&str, usize); 2] = [("sha256", 64), ("sha512", 128)];

impl Verity {
    /// Takes what a host says; nothing in it is believed.
    pub(crate) fn parse(info: &VerityInfo) -> Result<Self> {
        let bad = |field, value: &dyn std::fmt::Display, why: &str| {
            Err(Error::Argument { field, reason: format!("{value} {why}") })
        };
        let algorithm = match info.algorithm.as_str() {
            "" => "sha256",
            name => name,
        };
        let Some(&(algorithm, digits)) = ALGORITHMS.iter().find(|(name, _)| *name == algorithm)
        else {
            return bad("VerityInfo.Algorithm", &info.algorithm, "is not sha256 or sha512");
        };
        let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let root = info.root_digest.to_ascii_lowercase();
        if root.len() != digits || !hex(&root) {
            let why = format!("is not {digits} hexadecimal digits");
            return bad("VerityInfo.RootDigest", &format!("{root:?}"), &why);
        }
        let salt = info.salt.to_ascii_lowercase();
        if salt.len() > 512 || !salt.len().is_multiple_of(2) || !hex(&salt) {
            let why = "is not up to 256 bytes in hexadecimal";
            return bad("VerityInfo.Salt", &format!("{salt:?}"), why);
        }
        if !(0..=1).contains(&info.version) {
            return bad("VerityInfo.Version", &info.version, "is not 0 or 1");
        }
        let block = u64::try_from(info.block_size).unwrap_or_default();
        if !(512..=4096).contains(&block) || !block.is_power_of_two() {
            return bad("VerityInfo.BlockSize", &info.block_size, "is not 512, 1024, 2048 or 4096");
        }
        let data_bytes = u64::try_from(info.ext4_size_in_bytes).unwrap_or_default();
        if data_bytes == 0 || !data_bytes.is_multiple_of(block) {
            let why = format!("is not a multiple of {block} above 0");
            return bad("VerityInfo.Ext4SizeInBytes", &info.ext4_size_in_bytes, &why);
        }
        Ok(Self {
            data_bytes,
            block,
            version: info.version.unsigned_abs(),
            algorithm: algorithm.to_owned(),
            superblock: info.super_block,
            root,
            salt: if salt.is_empty() { "-".to_owned() } else { salt },
        })
    }

    /// Puts the check between a device and its reader. `prefix` says which device it is.
    pub(crate) fn open(&self, prefix: &str, device: &Path) -> Result<Mapping> {
        let size = device_size(device)?;
        // The tree has at least one block.
        if size < self.data_bytes.saturating_add(self.block) {
            let reason = format!(
                "{} bytes of data and a hash tree do not fit {}, which has {size}",
                self.data_bytes,
                device.display()
            );
            return Err(Error::Argument { field: "VerityInfo.Ext4SizeInBytes", reason });
        }
        Mapping::new(Table {
            name: self.name(prefix),
            kind: "verity",
            modules: "verity",
            size: self.data_bytes,
            parameters: &self.parameters(device),
            read_only: true,
        })
    }

    /// A name has room for 127 bytes, which a long hash does not leave.
    fn name(&self, prefix: &str) -> String {
        format!("dm-verity-{prefix}-{}", &self.root[..self.root.len().min(64)])
    }

    fn parameters(&self, device: &Path) -> String {
        let Self { data_bytes, block, version, algorithm, superblock, root, salt } = self;
        let (device, blocks) = (device.display(), data_bytes / block);
        let tree = blocks + u64::from(*superblock);
        format!(
            "{version} {device} {device} {block} {block} {blocks} {tree} {algorithm} {root} {salt}"
        )
    }

    /// Makes of a failure what it means, if the check has failed.
    pub(crate) fn explain(&self, mapping: &Mapping, what: &str, error: Error) -> Error {
        match mapping.status().as_str() {
            "C" => Error::Corrupt { what: what.to_owned(), root: self.root.clone() },
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> VerityInfo {
        VerityInfo {
            ext4_size_in_bytes: 8 << 20,
            version: 1,
            algorithm: "sha256".into(),
            super_block: true,
            root_digest: "AB".repeat(32),
            salt: "00".repeat(32),
            block_size: 4096,
        }
    }

    #[test]
    fn the_kernel_gets_what_the_host_has_pinned() {
        let verity = Verity::parse(&info()).unwrap();
        let (root, salt) = ("ab".repeat(32), "00".repeat(32));
        let expected = format!("1 /dev/sda /dev/sda 4096 4096 2048 2049 sha256 {root} {salt}");
        assert_eq!(verity.parameters(Path::new("/dev/sda")), expected);
        assert_eq!(
            verity.name("scsi-contr0-lun1-p0"),
            format!("dm-verity-scsi-contr0-lun1-p0-{root}")
        );

        let bare = VerityInfo { super_block: false, salt: String::new(), ..info() };
        let parameters = Verity::parse(&bare).unwrap().parameters(Path::new("/dev/sda"));
        assert!(
            parameters.contains(" 2048 2048 sha256 ") && parameters.ends_with(" -"),
            "{parameters}"
        );
        let long =
            VerityInfo { algorithm: "sha512".into(), root_digest: "0".repeat(128), ..info() };
        assert!(Verity::parse(&long).unwrap().name("scsi-contr3-lun63-p128").len() < 128);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field_and_value() {
        let cases = [
            (VerityInfo { algorithm: "md5 x".into(), ..info() }, "Algorithm: md5 x"),
            (VerityInfo { root_digest: String::new(), ..info() }, "RootDigest: \"\""),
            (VerityInfo { root_digest: "zz".repeat(32), ..info() }, "RootDigest"),
            (VerityInfo { root_digest: "é".repeat(32), ..info() }, "RootDigest"),
            (VerityInfo { salt: "0".into(), ..info() }, "Salt: \"0\""),
            (VerityInfo { salt: "00".repeat(257), ..info() }, "Salt"),
            (VerityInfo { version: 2, ..info() }, "Version: 2"),
            (VerityInfo { version: -1, ..info() }, "Version: -1"),
            (VerityInfo { block_size: 0, ..info() }, "BlockSize: 0"),
            (VerityInfo { block_size: 1000, ..info() }, "BlockSize: 1000"),
            (VerityInfo { ext4_size_in_bytes: -4096, ..info() }, "Ext4SizeInBytes: -4096"),
            (VerityInfo { ext4_size_in_bytes: 100, ..info() }, "Ext4SizeInBytes: 100"),
        ];
        for (info, part) in cases {
            let text = Verity::parse(&info).unwrap_err().to_string();
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }
}
