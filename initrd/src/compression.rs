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
    /// Zstandard, level 1 to 22.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(19)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip(level) => write!(f, "gzip:{level}"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    /// Reads `none`, `gzip`, `zstd`, the latter two with an optional `:LEVEL`.
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
            _ => Err(bad("is not none, gzip[:0-9] or zstd[:1-22]")),
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
        }
    }
}

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
        for compression in [Compression::None, Compression::Gzip(6), Compression::Zstd(3)] {
            let mut taken = 0;
            let packed = compression.compress(&data, &mut |bytes| taken += bytes).unwrap();
            assert_eq!(expand(packed).unwrap(), data, "{compression}");
            assert_eq!(taken, data.len() as u64);
        }
    }

    #[test]
    fn a_compression_reads_back_as_it_is_written() {
        for text in ["none", "gzip:9", "zstd:22"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::default());
    }

    #[test]
    fn a_compression_that_does_not_exist_is_named_in_the_error() {
        for text in ["xz", "zstd:23", "gzip:10", "none:1", "zstd:x", ""] {
            let error = text.parse::<Compression>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("compression {text:?}")), "{error}");
        }
    }
}
