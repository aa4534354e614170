//! Takes the uncompressed kernel out of a bzImage, for a monitor that can enter it directly.
//!
//! The kernel then neither decompresses nor relocates itself, which under emulation is a good part
//! of a boot.
//!
//! | offset | size | field of the bzImage                                            |
//! |-------:|-----:|-----------------------------------------------------------------|
//! |  0x1f1 |    1 | `setup_sects`: 512-byte sectors before the protected-mode part, less one; 0 means 4 |
//! |  0x202 |    4 | `HdrS`, 0x206: version, at least 0x0208 for what follows        |
//! |  0x248 |    4 | `payload_offset`, from the protected-mode part                  |
//! |  0x24c |    4 | `payload_length`, the 4-byte size appended to the payload included |

use std::io::{self, Read};

use crate::{Error, compression, elf};

/// The uncompressed kernel in `image`, checked to have a PVH entry.
pub(crate) fn extract(image: &[u8], release: &str) -> Result<Vec<u8>, Error> {
    let failed = |reason: String| Error::NoVmlinux { release: release.into(), reason };
    let payload = payload(image).ok_or_else(|| failed("it is not an x86 bzImage".into()))?;
    let kernel = decompress(payload).map_err(|error| failed(error.to_string()))?;
    match elf::has_pvh_entry(&kernel) {
        Ok(true) => Ok(kernel),
        Ok(false) => Err(failed("it was built without CONFIG_PVH".into())),
        Err(reason) => Err(failed(format!("its payload cannot be read: {reason}"))),
    }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    let version = u32_at(0x206)? & 0xffff;
    if image.get(0x202..0x206)? != b"HdrS" || version < 0x0208 {
        return None;
    }
    let setup_sectors = match image.get(0x1f1)? {
        0 => 4,
        n => usize::from(*n),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(0x248)?;
    image.get(start..start.checked_add(u32_at(0x24c)?)?)
}

fn decompress(payload: &[u8]) -> io::Result<Vec<u8>> {
    let (body, size) = payload
        .split_last_chunk::<4>()
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    let size = u32::from_le_bytes(*size);
    let kernel = match body {
        [0x02, 0x21, 0x4c, 0x18, ..] => {
            let mut out = Vec::new();
            lz4_flex::frame::FrameDecoder::new(body).read_to_end(&mut out)?;
            out
        }
        // gzip ends with the size itself, so the kernel's build appends none.
        [0x1f, 0x8b, ..] => compression::expand(payload.to_vec())?,
        _ => compression::expand(body.to_vec())?,
    };
    if kernel.len() as u64 != u64::from(size) {
        let message = format!("it unpacks to {} bytes instead of {size}", kernel.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An ELF executable with one note segment holding one note.
    fn kernel(owner: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        elf.resize(16, 0);
        elf.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend_from_slice(&[0; 8]);
        elf.extend_from_slice(&64_u64.to_le_bytes());
        elf.resize(52, 0);
        elf.extend_from_slice(&[64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let note: Vec<u8> = [4, 4, kind]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .chain(*owner)
            .chain([0; 4])
            .collect();
        for word in [4, 120, 0, 0, note.len() as u64, note.len() as u64, 4_u64] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        elf.extend_from_slice(&note);
        elf
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 32];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
        image[0x248..0x24c].copy_from_slice(&32_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn with_size(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
        packed.extend_from_slice(&(size as u32).to_le_bytes());
        packed
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(data);
        [&[0x02, 0x21, 0x4c, 0x18], (block.len() as u32).to_le_bytes().as_slice(), &block].concat()
    }

    #[test]
    fn a_kernel_comes_out_of_every_packing() {
        let kernel = kernel(b"Xen\0", 18);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        gzip.write_all(&kernel).unwrap();
        for payload in [
            with_size(lz4(&kernel), kernel.len()),
            with_size(zstd::encode_all(kernel.as_slice(), 3).unwrap(), kernel.len()),
            gzip.finish().unwrap(),
        ] {
            assert_eq!(extract(&bzimage(&payload), "6.1").unwrap(), kernel);
        }
    }

    #[test]
    fn a_kernel_without_the_pvh_note_is_refused() {
        for kernel in [kernel(b"Xen\0", 17), kernel(b"GNU\0", 18)] {
            let image = bzimage(&with_size(lz4(&kernel), kernel.len()));
            let error = extract(&image, "6.1").unwrap_err().to_string();
            assert!(error.ends_with("kernel 6.1: it was built without CONFIG_PVH"), "{error}");
        }
    }

    #[test]
    fn a_damaged_kernel_image_is_refused_wherever_it_is_cut() {
        let kernel = kernel(b"Xen\0", 18);
        let image = bzimage(&with_size(lz4(&kernel), kernel.len()));
        for len in 0..image.len() {
            assert!(extract(&image[..len], "6.1").is_err(), "cut at {len}");
        }
        let image = bzimage(&with_size(lz4(&kernel), kernel.len() + 1));
        let error = extract(&image, "6.1").unwrap_err().to_string();
        assert!(error.contains("instead of"), "{error}");
    }
}
