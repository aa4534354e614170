//! What a path holds, by its bytes and never by its name.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::compression::{self, Compression};
use crate::error::Error;
use crate::ext4::superblock;
use crate::{erofs, tar_stream, vhd};

/// A usable source of a root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A directory.
    Directory,
    /// A tar archive.
    Tar(Compression),
    /// A raw ext4 image.
    Ext4 {
        /// Bytes of the file, all of which belong on the disk.
        size: u64,
    },
    /// A raw EROFS image.
    Erofs {
        /// Bytes of the file, all of which belong on the disk.
        size: u64,
    },
    /// An ext4 or EROFS image with the footer of a fixed VHD.
    Vhd {
        /// Bytes before the footer, which belong on the disk.
        payload_size: u64,
    },
}

/// Disk formats and file systems that are known but not usable, by offset and first bytes.
const FOREIGN: [(usize, &[u8], &str); 7] = [
    (0, vhd::COOKIE, "a dynamic VHD"),
    (0, b"vhdxfile", "a VHDX"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"KDMV", "a VMDK"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI"),
    (0, b"hsqs", "a squashfs image"),
    (0, b"XFSB", "an XFS image"),
];

/// Says what `path` holds.
///
/// # Errors
///
/// [`Error::Unsupported`] for a known format that must be converted first,
/// [`Error::Unrecognised`] for anything else, [`Error::Read`] if it cannot be read.
pub fn detect(path: &Path) -> Result<Kind, Error> {
    let read = |cause| Error::Read { path: path.to_owned(), cause };
    let metadata = std::fs::metadata(path).map_err(read)?;
    if metadata.is_dir() {
        return Ok(Kind::Directory);
    }
    let unsupported =
        |found, advice| Err(Error::Unsupported { path: path.to_owned(), found, advice });
    if !metadata.is_file() {
        let advice = "give a directory or a regular file".to_owned();
        return unsupported("neither a directory nor a regular file", advice);
    }
    let mut file = File::open(path).map_err(read)?;
    let mut start = Vec::new();
    (&mut file).take(4096).read_to_end(&mut start).map_err(read)?;

    let size = metadata.len();
    let erofs_size = erofs::superblock::size(&start);
    if let Some(claimed) = erofs_size.or_else(|| ext4_size(&start)) {
        let footer = vhd::read_footer(&file).map_err(read)?;
        let payload = footer.map_or(size, |footer| footer.payload_size);
        if claimed > payload {
            let text = format!("its file system has {claimed} bytes, the file only {payload}");
            return Err(read(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        return Ok(match footer {
            Some(footer) => Kind::Vhd { payload_size: footer.payload_size },
            None if erofs_size.is_some() => Kind::Erofs { size },
            None => Kind::Ext4 { size },
        });
    }
    for (offset, magic, found) in FOREIGN {
        if start.get(offset..).is_some_and(|bytes| bytes.starts_with(magic)) {
            let shown = path.display();
            let advice = match found.ends_with("image") && found != "a qcow2 image" {
                true => "unpack it to a directory or a tar archive first".to_owned(),
                false => format!("convert it first: qemu-img convert -O raw {shown} {shown}.raw"),
            };
            return unsupported(found, advice);
        }
    }
    let compression = Compression::of(&start);
    let mut inside = Vec::new();
    let decoded = compression::decoder(io::Cursor::new(&start).chain(file))
        .and_then(|decoder| decoder.take(512).read_to_end(&mut inside));
    let header = inside.first_chunk::<512>();
    // An archive without members is all zeros, and so is many another file.
    let empty = |header: &[u8; 512]| {
        header.iter().all(|&byte| byte == 0)
            && (compression != Compression::None || (1024..=10_240).contains(&size))
    };
    if header.is_some_and(|header| tar_stream::is_header(header) || empty(header)) {
        return Ok(Kind::Tar(compression));
    }
    match (compression, decoded) {
        (Compression::None, _) => {
            let start = start.iter().take(16).map(|byte| format!("{byte:02x}"));
            let start = start.collect::<Vec<_>>().join(" ");
            Err(Error::Unrecognised { path: path.to_owned(), start })
        }
        (_, Err(cause)) => Err(read(cause)),
        (_, Ok(_)) => {
            unsupported("compressed, but no tar archive", "uncompress it first".to_owned())
        }
    }
}

/// Bytes of the file system at the start of a raw image or a fixed VHD.
///
/// # Errors
///
/// The file cannot be read. `None` if it holds no ext4 or EROFS.
pub fn file_system_size(file: &File) -> io::Result<Option<u64>> {
    use std::os::unix::fs::FileExt;
    let mut start = vec![0; 4096];
    let mut filled = 0;
    while filled < start.len() {
        match file.read_at(&mut start[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    start.truncate(filled);
    Ok(erofs::superblock::size(&start).or_else(|| ext4_size(&start)))
}

/// Bytes of the ext4 file system that starts so, if it is one.
fn ext4_size(start: &[u8]) -> Option<u64> {
    let record = start.get(superblock::OFFSET as usize..)?;
    let word = |offset: usize| {
        let bytes = record.get(offset..offset + 4)?;
        Some(bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
    };
    if word(0x38)? & 0xffff != u64::from(superblock::MAGIC) || word(0x18)? > 6 {
        return None;
    }
    let high = if word(0x60)? & 0x80 != 0 { word(0x150)? } else { 0 };
    (high << 32 | word(4)?).checked_mul(1024 << word(0x18)?)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io::Write;

    use super::*;

    fn detect_bytes(bytes: &[u8]) -> Result<Kind, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        detect(file.path())
    }

    fn tar() -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path("file").unwrap();
        header.set_size(0);
        header.set_cksum();
        [header.as_bytes().as_slice(), &[0; 1024]].concat()
    }

    #[test]
    fn archives_are_known_by_their_bytes() {
        use std::io::Write as _;
        assert_eq!(detect_bytes(&tar()).unwrap(), Kind::Tar(Compression::None));
        assert_eq!(detect_bytes(&[0; 1024]).unwrap(), Kind::Tar(Compression::None));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar()).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(detect_bytes(&gzip).unwrap(), Kind::Tar(Compression::Gzip));
        let zstd = zstd::encode_all(tar().as_slice(), 1).unwrap();
        assert_eq!(detect_bytes(&zstd).unwrap(), Kind::Tar(Compression::Zstd));
        let cut = detect_bytes(&gzip[..12]).unwrap_err();
        assert!(matches!(cut, Error::Read { .. }), "{cut}: {:?}", cut.source());
    }

    #[test]
    fn foreign_formats_are_refused_with_advice() {
        for start in [&b"conectix"[..], b"vhdxfile", b"QFI\xfb", b"KDMV"] {
            let mut bytes = start.to_vec();
            bytes.resize(4096, 0);
            let error = detect_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains("qemu-img convert -O raw"), "{error}");
        }
        let error = detect_bytes(&[&b"hsqs"[..], &[0; 4096]].concat()).unwrap_err().to_string();
        assert!(error.contains("squashfs") && error.contains("unpack"), "{error}");
    }

    #[test]
    fn anything_else_is_shown_by_its_first_bytes() {
        let error = detect_bytes(b"#!/bin/sh\n").unwrap_err().to_string();
        assert!(
            error.contains("is not a directory, a tar archive or an ext4/VHD image"),
            "{error}"
        );
        assert!(error.contains("23 21 2f 62"), "{error}");
        assert!(matches!(detect_bytes(b""), Err(Error::Unrecognised { .. })));
        let error = detect_bytes(&[1; 100_000]).unwrap_err();
        assert!(matches!(error, Error::Unrecognised { .. }), "{error}");
    }
}
