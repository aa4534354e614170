//! How the initrd is compressed, and reading what others compressed.

use std::{
    fmt,
    io::{self, Read, Write},
    str::FromStr,
};

use crate::Error;

/// How the initrd is compressed. All are single-threaded, so that output depends on input alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the quickest to boot from where reading costs nothing.
    None,
    /// gzip, level 0 to 9.
    Gzip(u32),
    /// Zstandard, level 1 to 22: the smallest.
    Zstd(i32),
    /// LZ4, level 1 to 12: larger than Zstandard by two fifths, and unpacked by the kernel in a
    /// fraction of the time.
    Lz4(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Lz4(12)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip(level) => write!(f, "gzip:{level}"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::Lz4(level) => write!(f, "lz4:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    /// Reads `none`, `gzip`, `zstd`, `lz4`, all but the first with an optional `:LEVEL`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |reason| Error::BadSetting { field: "compression", value: text.into(), reason };
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => {
                let level =
                    level.parse::<u8>().map_err(|_| bad("has a level that is no number"))?;
                (name, Some(level))
            }
            None => (text, None),
        };
        match (name, level) {
            ("none", None) => Ok(Self::None),
            ("gzip", level @ (None | Some(0..=9))) => Ok(Self::Gzip(level.unwrap_or(9).into())),
            ("zstd", level @ (None | Some(1..=22))) => Ok(Self::Zstd(level.unwrap_or(19).into())),
            ("lz4", level @ (None | Some(1..=12))) => Ok(Self::Lz4(level.unwrap_or(12).into())),
            _ => Err(bad("is not none, gzip[:0-9], zstd[:1-22] or lz4[:1-12]")),
        }
    }
}

impl Compression {
    /// Compresses `data`, reporting the bytes taken in.
    pub(crate) fn compress(
        self,
        data: &[u8],
        advance: &mut dyn FnMut(u64),
    ) -> Result<Vec<u8>, Error> {
        self.try_compress(data, advance)
            .map_err(|source| Error::Compress { compression: self.to_string(), source })
    }

    fn try_compress(self, data: &[u8], advance: &mut dyn FnMut(u64)) -> io::Result<Vec<u8>> {
        match self {
            Self::None => {
                advance(data.len() as u64);
                Ok(data.to_vec())
            }
            Self::Gzip(level) => {
                // The builder leaves date and file name out of the header.
                let mut out =
                    flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::new(level));
                feed(&mut out, data, advance)?;
                out.finish()
            }
            Self::Zstd(level) => {
                let mut out = zstd::Encoder::new(Vec::new(), level)?;
                out.set_pledged_src_size(Some(data.len() as u64))?;
                out.include_contentsize(true)?;
                feed(&mut out, data, advance)?;
                out.finish()
            }
            Self::Lz4(level) => {
                let mode = lz4::block::CompressionMode::HIGHCOMPRESSION(level);
                let mut out = LZ4_LEGACY.to_vec();
                for block in data.chunks(LZ4_BLOCK) {
                    let packed = lz4::block::compress(block, Some(mode), false)?;
                    let size = u32::try_from(packed.len()).map_err(io::Error::other)?;
                    out.extend_from_slice(&size.to_le_bytes());
                    out.extend_from_slice(&packed);
                    advance(block.len() as u64);
                }
                Ok(out)
            }
        }
    }
}

/// The kernel unpacks LZ4's old frame format: this, then blocks, each behind its packed size.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Every block but the last holds so many bytes.
const LZ4_BLOCK: usize = 8 << 20;

fn feed(out: &mut dyn Write, data: &[u8], advance: &mut dyn FnMut(u64)) -> io::Result<()> {
    for chunk in data.chunks(256 << 10) {
        out.write_all(chunk)?;
        advance(chunk.len() as u64);
    }
    Ok(())
}

/// Decompresses by what the first bytes say, whatever the file is called; plain data stays as is.
pub(crate) fn expand(data: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match data.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            liblzma::read::XzDecoder::new(data.as_slice()).read_to_end(&mut out)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::Decoder::new(data.as_slice())?.read_to_end(&mut out)?;
        }
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => {
            let mut rest = blocks;
            while let Some((size, tail)) = rest.split_first_chunk::<4>() {
                let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
                let block = tail.get(..u32::from_le_bytes(*size) as usize).ok_or_else(cut)?;
                out.extend(lz4::block::decompress(block, Some(LZ4_BLOCK as i32))?);
                rest = &tail[block.len()..];
            }
        }
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(data.as_slice()).read_to_end(&mut out)?;
        }
        _ => return Ok(data),
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compression_gives_the_data_back() {
        let data: Vec<u8> = (0..600_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let all =
            [Compression::None, Compression::Gzip(6), Compression::Zstd(3), Compression::Lz4(9)];
        for compression in all {
            let mut taken = 0;
            let packed = compression.compress(&data, &mut |bytes| taken += bytes).unwrap();
            assert_eq!(expand(packed).unwrap(), data, "{compression}");
            assert_eq!(taken, data.len() as u64);
        }
    }

    #[test]
    fn a_compression_reads_back_as_it_is_written() {
        for text in ["none", "gzip:9", "zstd:22", "lz4:1"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("lz4".parse::<Compression>().unwrap(), Compression::default());
    }

    #[test]
    fn a_compression_that_does_not_exist_is_named_in_the_error() {
        for text in ["xz", "zstd:23", "lz4:0", "gzip:10", "none:1", "zstd:x", ""] {
            let error = text.parse::<Compression>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("compression {text:?}")), "{error}");
        }
    }
}
