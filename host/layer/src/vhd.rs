//! Fixed VHDs: a raw image with a footer of 512 bytes behind it. All integers are big-endian.
//!
//! | offset | size | field                          | here                     |
//! |-------:|-----:|--------------------------------|--------------------------|
//! |      0 |    8 | cookie                         | `conectix`               |
//! |      8 |    4 | features                       | 2                        |
//! |     12 |    4 | format version                 | 1.0                      |
//! |     16 |    8 | offset of a dynamic header     | all ones: none           |
//! |     24 |    4 | seconds since 2000             | 0                        |
//! |     28 |   12 | creator, its version, its OS   | `lnsp`, 1.0, 0           |
//! |     40 |    8 | original size in bytes         | size of the payload      |
//! |     48 |    8 | current size in bytes          | size of the payload      |
//! |     56 |    4 | cylinders (2), heads, sectors  | by the VHD specification |
//! |     60 |    4 | type                           | 2: fixed                 |
//! |     64 |    4 | complement of the sum of bytes |                          |
//! |     68 |   16 | unique id                      |                          |
//! |     84 |    1 | saved state                    | 0                        |

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the footer.
pub const FOOTER_SIZE: u64 = 512;
pub(crate) const COOKIE: &[u8; 8] = b"conectix";

/// The footer of a VHD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Size of the disk in bytes. For a fixed VHD, what comes before the footer: attach so much.
    pub payload_size: u64,
    /// Identity of the disk.
    pub unique_id: [u8; 16],
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub disk_type: u32,
}

impl Footer {
    /// Type of a VHD whose payload is a raw image.
    pub const FIXED: u32 = 2;

    fn encode(&self) -> [u8; FOOTER_SIZE as usize] {
        let mut record = [0; FOOTER_SIZE as usize];
        record[..8].copy_from_slice(COOKIE);
        record[8..12].copy_from_slice(&2_u32.to_be_bytes());
        record[12..16].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
        record[16..24].fill(0xff);
        record[28..32].copy_from_slice(b"lnsp");
        record[32..36].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
        record[40..48].copy_from_slice(&self.payload_size.to_be_bytes());
        record[48..56].copy_from_slice(&self.payload_size.to_be_bytes());
        record[56..60].copy_from_slice(&geometry(self.payload_size));
        record[60..64].copy_from_slice(&self.disk_type.to_be_bytes());
        record[68..84].copy_from_slice(&self.unique_id);
        let sum = checksum(&record);
        record[64..68].copy_from_slice(&sum.to_be_bytes());
        record
    }

    fn parse(record: &[u8; FOOTER_SIZE as usize]) -> Option<Self> {
        let word = |offset: usize| {
            record[offset..offset + 4].iter().fold(0, |word, &byte| word << 8 | u32::from(byte))
        };
        if !record.starts_with(COOKIE) || word(64) != checksum(record) {
            return None;
        }
        let mut unique_id = [0; 16];
        unique_id.copy_from_slice(&record[68..84]);
        Some(Self {
            payload_size: u64::from(word(48)) << 32 | u64::from(word(52)),
            unique_id,
            disk_type: word(60),
        })
    }
}

/// Makes a fixed VHD of a raw image: pads it to 512 bytes, appends the footer, and returns the
/// size of the payload in bytes.
///
/// # Errors
///
/// The file cannot be written.
pub fn append_footer(file: &File, unique_id: [u8; 16]) -> io::Result<u64> {
    let payload_size = file.metadata()?.len().next_multiple_of(512);
    let footer = Footer { payload_size, unique_id, disk_type: Footer::FIXED };
    file.write_all_at(&footer.encode(), payload_size)?;
    Ok(payload_size)
}

/// Reads the footer at the end of a file. `None` if there is none, or none with a right checksum.
///
/// # Errors
///
/// The file cannot be read, or a fixed VHD has not the size its footer says.
pub fn read_footer(file: &File) -> io::Result<Option<Footer>> {
    let size = file.metadata()?.len();
    let Some(offset) = size.checked_sub(FOOTER_SIZE) else { return Ok(None) };
    let mut record = [0; FOOTER_SIZE as usize];
    file.read_exact_at(&mut record, offset)?;
    let footer = Footer::parse(&record);
    if let Some(Footer { payload_size, disk_type: Footer::FIXED, .. }) = footer
        && payload_size != offset
    {
        let text = format!("the VHD footer tells of {payload_size} bytes, but {offset} precede it");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(footer)
}

/// The sum leaves out the field it is kept in.
fn checksum(record: &[u8; FOOTER_SIZE as usize]) -> u32 {
    !record[..64].iter().chain(&record[68..]).map(|&byte| u32::from(byte)).sum::<u32>()
}

/// Cylinders, heads and sectors per track; at most those of a disk of about 127 GiB.
fn geometry(bytes: u64) -> [u8; 4] {
    let sectors = (bytes / 512).min(65_535 * 16 * 255) as u32;
    let (per_track, heads, rest);
    if sectors >= 65_535 * 16 * 63 {
        (per_track, heads, rest) = (255, 16, sectors / 255);
    } else {
        let tracks = sectors / 17;
        let few = tracks.div_ceil(1024).max(4);
        if tracks < few * 1024 && few <= 16 {
            (per_track, heads, rest) = (17, few, tracks);
        } else if sectors / 31 < 16 * 1024 {
            (per_track, heads, rest) = (31, 16, sectors / 31);
        } else {
            (per_track, heads, rest) = (63, 16, sectors / 63);
        }
    }
    let [high, low] = ((rest / heads) as u16).to_be_bytes();
    [high, low, heads as u8, per_track as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footer_is_read_back_and_its_checksum_matters() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096 * 3).unwrap();
        assert_eq!(read_footer(&file).unwrap(), None);
        assert_eq!(append_footer(&file, [7; 16]).unwrap(), 4096 * 3);
        let footer = read_footer(&file).unwrap().unwrap();
        assert_eq!(footer, Footer { payload_size: 4096 * 3, unique_id: [7; 16], disk_type: 2 });
        file.write_all_at(&[9], 4096 * 3 + 70).unwrap();
        assert_eq!(read_footer(&file).unwrap(), None);
    }

    #[test]
    fn footer_that_lies_about_the_size_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let footer = Footer { payload_size: 8192, unique_id: [0; 16], disk_type: Footer::FIXED };
        file.write_all_at(&footer.encode(), 4096).unwrap();
        let error = read_footer(&file).unwrap_err().to_string();
        assert!(error.contains("8192") && error.contains("4096"), "{error}");
    }

    #[test]
    fn geometry_follows_the_specification() {
        assert_eq!(geometry(0), [0, 0, 4, 17]);
        assert_eq!(geometry(1 << 30), [0x08, 0x20, 16, 63]);
        assert_eq!(geometry(1 << 40), [0xff, 0xff, 16, 255]);
    }
}
