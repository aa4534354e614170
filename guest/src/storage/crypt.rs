//! Scratch disks that nobody outside of the guest can read or change unnoticed.
//!
//! ```text
//! file system
//!   dm-crypt       aes-xts, and hmac(sha256) over each sector of 4096 bytes
//!   dm-integrity   where the hmacs lie
//! disk
//! ```
//!
//! The key is made for the mount and is nowhere but in the kernel: what was written is gone with
//! it. Nothing is wiped, so a block that was never written is an error to read; a file system that
//! is made here reads none.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::mapping::{Mapping, SECTOR, Table, device_size};
use crate::error::Context;
use crate::{Error, Result};

const CIPHER: &str = "capi:authenc(hmac(sha256),xts(aes))-plain64";
/// Bytes: two of aes-256, one of hmac.
const KEY: usize = 64 + 32;
/// Bytes of an hmac.
const TAG: usize = 32;
/// Bytes that are read or written at once.
const BLOCK: u64 = 4096;

/// Puts encryption on top of a disk whose contents are lost. The upper device is the first.
pub(crate) fn open(prefix: &str, device: &Path) -> Result<[Mapping; 2]> {
    let size = device_size(device)? / BLOCK * BLOCK;
    // Without a superblock of its own, dm-integrity makes a new one.
    write_zeros(device)?;
    let integrity = integrity(prefix, device, size)?;
    let size = device_size(integrity.device())?;
    let mut key = Key::new()?;
    let name = format!("dm-crypt-{prefix}");
    let lower = integrity.device().display();
    let parameters = key.within(|key| {
        format!("{CIPHER} {key} 0 {lower} 0 2 integrity:{TAG}:aead sector_size:{BLOCK}")
    });
    let table = Table { name, kind: "crypt", modules: "crypt", size, parameters, read_only: false };
    let crypt = Mapping::new(table)?;
    // Whoever looks for a file system finds none, instead of an error.
    write_zeros(crypt.device())?;
    Ok([crypt, integrity])
}

/// How much room the hmacs leave is known only once they have theirs, so it is made twice.
fn integrity(prefix: &str, device: &Path, size: u64) -> Result<Mapping> {
    let parameters =
        format!("{} 0 {TAG} D 2 block_size:{BLOCK} journal_sectors:1", device.display());
    let of_size = |size| {
        Mapping::new(Table {
            name: format!("dm-integrity-{prefix}"),
            kind: "integrity",
            modules: "crypt",
            size,
            parameters: &parameters,
            read_only: false,
        })
    };
    let trial = of_size(BLOCK)?;
    let status = trial.status();
    let sectors = status.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let room = sectors.map(|sectors| sectors * SECTOR / BLOCK * BLOCK);
    let room = room.filter(|room| (BLOCK..size).contains(room)).ok_or_else(|| {
        let what = format!("find room for integrity on {}: {status:?}", device.display());
        Error::Io { what, source: io::ErrorKind::InvalidData.into() }
    })?;
    trial.remove()?;
    of_size(room)
}

fn write_zeros(device: &Path) -> Result<()> {
    let written = File::options().write(true).open(device).and_then(|file| {
        file.write_all_at(&[0; BLOCK as usize], 0)?;
        file.sync_data()
    });
    written.context(|| format!("write to {}", device.display()))
}

/// A key, and the text with it. Both are wiped.
struct Key {
    bytes: [u8; KEY],
    text: String,
}

impl Key {
    fn new() -> Result<Self> {
        let mut bytes = [0; KEY];
        let read = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes));
        read.context(|| "read /dev/urandom".to_owned())?;
        Ok(Self { bytes, text: String::new() })
    }

    fn within(&mut self, text: impl FnOnce(&str) -> String) -> &str {
        let mut digits: Vec<u8> = Vec::with_capacity(2 * KEY);
        for byte in self.bytes {
            let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default() as u8;
            digits.extend([digit(byte >> 4), digit(byte & 15)]);
        }
        self.text = text(std::str::from_utf8(&digits).unwrap_or_default());
        wipe(&mut digits);
        &self.text
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
        wipe(&mut std::mem::take(&mut self.text).into_bytes());
    }
}

fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Nobody reads them again, and yet they are to be written.
    std::hint::black_box(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_as_long_as_the_cipher_wants_and_never_the_same() {
        let mut one = Key::new().unwrap();
        let one = one.within(str::to_owned).to_owned();
        assert_eq!(one.len(), 2 * KEY);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(one, Key::new().unwrap().within(str::to_owned));
    }
}
