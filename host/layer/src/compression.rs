//! Compressed streams, told apart by their first bytes.

use std::io::{self, BufRead, BufReader, Read};

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or more members.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
}

impl Compression {
    /// By the first bytes of a stream, of which six suffice.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        const MAGICS: [(&[u8], Compression); 5] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            // A frame to be skipped, which some writers put first.
            (&[0x50, 0x2a, 0x4d, 0x18], Compression::Zstd),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (b"BZh", Compression::Bzip2),
        ];
        let found = MAGICS.iter().find(|(magic, _)| start.starts_with(magic));
        found.map_or(Self::None, |(_, compression)| *compression)
    }

    /// Its usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }
}

/// Decompresses what is compressed and passes on what is not.
///
/// # Errors
///
/// The first bytes cannot be read, or are of a form that cannot be.
pub fn decompress<'r>(reader: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    decoder(reader)
}

pub(crate) fn decoder<'r>(reader: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut start = Vec::new();
    let mut reader = reader;
    (&mut reader).take(6).read_to_end(&mut start)?;
    let compression = Compression::of(&start);
    let whole = BufReader::with_capacity(256 << 10, io::Cursor::new(start).chain(reader));
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(buffered(flate2::bufread::MultiGzDecoder::new(whole))),
        Compression::Zstd => Box::new(buffered(zstd::Decoder::with_buffer(whole)?)),
        Compression::Xz => Box::new(buffered(lzma_rust2::XzReader::new(whole, true))),
        Compression::Bzip2 => Box::new(buffered(bzip2::bufread::MultiBzDecoder::new(whole))),
    })
}

/// Headers are read 512 bytes at a time, which decoders do not like.
fn buffered(decoder: impl Read) -> impl BufRead {
    BufReader::with_capacity(64 << 10, decoder)
}
