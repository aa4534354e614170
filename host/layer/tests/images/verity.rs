//! Hash trees: those of veritysetup, and no flipped byte goes unseen.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use linkspan_layer::verity::{self, VerityOptions};
use linkspan_layer::{Format, Options, file_system_size};
use tempfile::NamedTempFile;

use crate::archives::archive;
use crate::inspect::{FORMATS, assert_clean, image, image_of_tar, of_format, run};

const FILE: tar::EntryType = tar::EntryType::Regular;

/// A tar with a file of `size` bytes, most of which are not zero, and one with a hole.
fn tar_of(size: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..size).map(|at| (at / 61 % 251) as u8).collect();
    archive(&[(FILE, "file", "", &content), (FILE, "zeros", "", &vec![0; 500_000])])
}

/// What veritysetup makes of the first `size` bytes of a file.
fn root_of_veritysetup(image: &Path, size: u64, salt: &str) -> String {
    let hashes = NamedTempFile::new().unwrap();
    let mut command = Command::new("veritysetup");
    command.arg("format").arg(image).arg(hashes.path());
    command.args(["--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096"]);
    command.arg(format!("--data-blocks={}", size / 4096)).arg(format!("--salt={salt}"));
    let text = run(&mut command);
    let line = text.lines().find_map(|line| line.strip_prefix("Root hash:"));
    line.expect("a root hash").trim().to_owned()
}

#[test]
fn root_hash_is_that_of_veritysetup_and_it_accepts_the_tree() {
    let salts = [vec![0; 32], Vec::new(), (1..=255).collect()];
    // One block of hashes, two levels, three levels.
    for (size, salt) in [100_000, 3_000_000, 70_000_000].into_iter().zip(salts) {
        for format in FORMATS {
            let verity = VerityOptions { salt: salt.clone(), uuid: None };
            let options = Options { verity: Some(verity), ..of_format(format) };
            let (out, summary) = image_of_tar(&tar_of(size), options);
            let made = summary.verity.unwrap();
            assert_eq!(made.hash_offset(), summary.file_system_bytes);
            let size = file_system_size(out.as_file()).unwrap();
            assert_eq!(size, Some(summary.file_system_bytes));
            let salt = if salt.is_empty() { "-".to_owned() } else { made.salt_hex() };
            let expected = root_of_veritysetup(out.path(), summary.file_system_bytes, &salt);
            assert_eq!(made.root_hex(), expected, "{format:?} of {size:?}");
            assert_eq!(verity::read(out.as_file(), made.hash_offset()).unwrap().unwrap(), made);
            let mut command = Command::new("veritysetup");
            command.arg("verify").arg(out.path()).arg(out.path()).arg(&expected);
            run(command.arg(format!("--hash-offset={}", made.hash_offset())));
            verity::verify(out.as_file(), &made, &mut |_| {}).unwrap();
            assert_clean(out.path());
        }
    }
}

#[test]
fn tree_appended_later_is_the_same_as_one_made_meanwhile() {
    for format in FORMATS {
        let (plain, summary) = image_of_tar(&tar_of(3_000_000), of_format(format));
        let mut ticked = 0;
        let options = VerityOptions::default();
        let size = summary.bytes;
        verity::append(plain.as_file(), size, &options, &mut |bytes| ticked += bytes).unwrap();
        assert_eq!(ticked, size);
        let options = Options { verity: Some(options), ..of_format(format) };
        let (whole, _) = image_of_tar(&tar_of(3_000_000), options);
        assert!(std::fs::read(plain.path()).unwrap() == std::fs::read(whole.path()).unwrap());
    }
}

#[test]
fn any_flipped_byte_is_found_and_named() {
    let options = Options { verity: Some(VerityOptions::default()), ..of_format(Format::Ext4) };
    let (out, summary) = image_of_tar(&tar_of(3_000_000), options);
    let made = summary.verity.unwrap();
    let flip = |at: u64| {
        let mut byte = [0];
        out.as_file().read_exact_at(&mut byte, at).unwrap();
        out.as_file().write_all_at(&[!byte[0]], at).unwrap();
    };
    let verify = || verity::verify(out.as_file(), &made, &mut |_| {});
    let tree = made.hash_offset() + 4096;
    // The superblock, a file's contents, a block of zeros, the root and a leaf of the tree.
    let last = made.hash_offset() - 1;
    for at in [1030, 1_000_000, last, tree + 5, made.total_bytes() - 4000] {
        flip(at);
        let error = verify().expect_err("not seen").to_string();
        let block = if at < tree {
            format!("block {} ", at / 4096)
        } else {
            (at / 4096 * 4096).to_string()
        };
        assert!(error.contains(&block), "byte {at}: {error}");
        flip(at);
        verify().unwrap();
    }
}

#[test]
fn superblocks_that_guests_do_not_take_are_refused() {
    let options = Options { verity: Some(VerityOptions::default()), ..Options::default() };
    let (out, summary) = image_of_tar(&tar_of(100_000), options);
    let at = summary.verity.unwrap().hash_offset();
    let mut superblock = [0; 512];
    out.as_file().read_exact_at(&mut superblock, at).unwrap();
    let changes = [
        (8, "version"),
        (12, "hash type"),
        (33, "algorithm"),
        (65, "data block"),
        (69, "hash block"),
        (72, "protected blocks"),
        (81, "salt"),
    ];
    for (offset, word) in changes {
        out.as_file().write_all_at(&[superblock[offset] ^ 0x10], at + offset as u64).unwrap();
        let error = verity::read(out.as_file(), at).unwrap_err().to_string();
        assert!(error.contains(word), "{offset}: {error}");
        out.as_file().write_all_at(&superblock, at).unwrap();
    }
    out.as_file().set_len(at + 4096 + 100).unwrap();
    let error = verity::read(out.as_file(), at).unwrap_err().to_string();
    assert!(error.contains("cut off"), "{error}");
    out.as_file().set_len(at).unwrap();
    assert!(verity::read(out.as_file(), at).unwrap().is_none());
}

#[test]
fn what_cannot_be_protected_is_an_error() {
    let file: File = tempfile::tempfile().unwrap();
    for size in [0, 4096, 10_000] {
        let error = verity::append(&file, size, &VerityOptions::default(), &mut |_| {});
        assert!(error.unwrap_err().to_string().contains(&size.to_string()));
    }
    let long = VerityOptions { salt: vec![1; 257], uuid: None };
    let options = Options { verity: Some(long), ..Options::default() };
    let error = image(options, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("257"), "{error}");
}
