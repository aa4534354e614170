//! Scratch disks: clean when new, and usable to the last block.

use std::fs;
use std::io::Write;

use linkspan_layer::scratch::{ScratchOptions, format};
use tempfile::NamedTempFile;

use crate::inspect::{assert_clean, mounted};

fn scratch(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    format(file.as_file(), size, &ScratchOptions::default()).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), size);
    file
}

#[test]
fn scratch_of_any_size_is_clean_and_writable() {
    const MIB: u64 = 1 << 20;
    // One group, a full group, a last group too short to keep, one just long enough, several
    // families of groups, and a size that is no multiple of a block.
    let block = 4096;
    let sizes = [
        256 << 10,
        MIB,
        128 * MIB,
        128 * MIB + 40 * block,
        256 * MIB + 60 * block,
        2048 * MIB,
        2048 * MIB + 600 * block,
        2048 * MIB + 3000 * block,
        20_480 * MIB,
        1_000_000_007,
        (1 << 40) + 5 * MIB,
    ];
    for size in sizes {
        let file = scratch(size);
        assert_clean(file.path());
        mounted(file.path(), false, |root| {
            fs::create_dir(root.join("directory")).unwrap();
            fs::write(root.join("directory/file"), vec![1; 30_000]).unwrap();
        });
        assert_clean(file.path());
    }
}

#[test]
fn scratch_can_be_filled_to_its_size_and_stays_clean() {
    const SIZE: u64 = 400 << 20;
    let file = scratch(SIZE);
    let written = mounted(file.path(), false, |root| {
        let mut file = fs::File::create(root.join("all of it")).unwrap();
        let chunk = vec![0x5a; 1 << 20];
        let mut written = 0;
        loop {
            match file.write(&chunk) {
                Ok(count) => written += count as u64,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
                    break written;
                }
            }
        }
    });
    assert!(written > SIZE * 90 / 100, "{written} of {SIZE} bytes");
    assert_clean(file.path());
}

#[test]
fn scratch_takes_many_files_in_all_its_groups() {
    let file = scratch(300 << 20);
    mounted(file.path(), false, |root| {
        for directory in 0..40 {
            let directory = root.join(directory.to_string());
            fs::create_dir(&directory).unwrap();
            for number in 0..500 {
                fs::write(directory.join(number.to_string()), b"content").unwrap();
            }
        }
    });
    assert_clean(file.path());
}

#[test]
fn scratch_of_an_absurd_size_is_refused() {
    let file = tempfile::tempfile().unwrap();
    for size in [0, 100_000, 1 << 60] {
        let error = format(&file, size, &ScratchOptions::default()).unwrap_err().to_string();
        assert!(error.contains(&size.to_string()), "{error}");
    }
}
