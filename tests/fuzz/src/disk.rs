//! Any disk: it is told what it holds or refused, and nothing is said to lie outside of it; what it
//! holds is taken apart.
//!
//! | bytes      | what they are                                                        |
//! |------------|----------------------------------------------------------------------|
//! | 0          | bit 0: the last 512 bytes of the rest are the end of the disk        |
//! | 1          | how many pieces of 64 KiB the disk has at least                      |
//! | the others | the beginning of the disk                                            |

use std::fs::File;
use std::os::unix::fs::FileExt;

use linkspan_layer::vhd::{FOOTER_SIZE, Footer};
use linkspan_layer::{ExtractOptions, Kind, detect, extract_to_tar, file_system_size, verity, vhd};

/// Tries an input.
pub fn run(input: &[u8]) {
    let [how, pieces, rest @ ..] = input else { return };
    let split =
        if how & 1 == 1 { rest.len().saturating_sub(FOOTER_SIZE as usize) } else { rest.len() };
    let (start, end) = rest.split_at(split);
    let file = tempfile::NamedTempFile::new().expect("make a file");
    let disk = file.as_file();
    let size = (u64::from(*pieces) << 16).max(start.len() as u64);
    disk.write_all_at(start, 0).expect("write a file");
    disk.set_len(size).expect("make it longer");
    disk.write_all_at(end, size).expect("write its end");
    let len = size + end.len() as u64;
    look(disk, len);
    match detect(file.path()) {
        Ok(Kind::Ext4 { size } | Kind::Erofs { size }) => assert_eq!(size, len),
        Ok(Kind::Vhd { payload_size }) => assert!(payload_size < len),
        _ => {}
    }
    // Whatever file system it says it is, it is read to the end or refused.
    let options = ExtractOptions { max_bytes: 16 << 20, ..ExtractOptions::default() };
    let _ = extract_to_tar(file.path(), std::io::sink(), "sink", &options, |_| {});
}

fn look(disk: &File, len: u64) {
    if let Ok(Some(footer)) = vhd::read_footer(disk)
        && footer.disk_type == Footer::FIXED
    {
        assert_eq!(footer.payload_size + FOOTER_SIZE, len);
    }
    let Ok(Some(data)) = file_system_size(disk) else { return };
    if let Ok(Some(tree)) = verity::read(disk, data)
        && tree.total_bytes() <= 64 << 20
    {
        let _ = verity::verify(disk, &tree, &mut |_| {});
    }
}
