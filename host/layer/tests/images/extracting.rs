//! Images taken apart: what comes out is what the kernel shows, whoever made the image.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use linkspan_layer::{
    DiffOptions, Error, ExtractOptions, Extracted, Format, Options, Problem, Whiteouts, diff,
    extract_to_directory, extract_to_tar, vhd,
};
use proptest::prelude::*;
use tempfile::{NamedTempFile, TempDir};

use crate::archives::archive;
use crate::directories::one_of_everything;
use crate::inspect::{
    FORMATS, Snapshot, assert_same, image, image_of_tar, mounted, of_format, run, snapshot,
};

fn extracted(image: &Path, options: &ExtractOptions) -> Result<(TempDir, Extracted), Error> {
    let target = TempDir::new().unwrap();
    let told = extract_to_directory(image, target.path(), options, |_| {})?;
    Ok((target, told))
}

fn tar_of(image: &Path, options: &ExtractOptions) -> (Vec<u8>, Extracted) {
    let mut bytes = Vec::new();
    let told = extract_to_tar(image, &mut bytes, "out.tar", options, |_| {}).unwrap();
    (bytes, told)
}

/// With a hash tree and a footer behind it.
fn dressed(format: Format, tree: &Path) -> NamedTempFile {
    let options = Options { verity: Some(Default::default()), ..of_format(format) };
    let (out, summary) = image(options, |builder| builder.add_directory(tree)).unwrap();
    vhd::append_footer(out.as_file(), summary.uuid).unwrap();
    out
}

#[test]
fn one_of_everything_comes_out_as_a_directory() {
    let tree = one_of_everything();
    let expected = snapshot(tree.path());
    for format in FORMATS {
        let image = dressed(format, tree.path());
        let mut last = None;
        let target = TempDir::new().unwrap();
        let target = target.path().join("made");
        let options = ExtractOptions::default();
        let told = extract_to_directory(image.path(), &target, &options, |at| last = Some(at));
        let told = told.unwrap();
        assert_same(&expected, &snapshot(&target));
        assert_eq!(told.entries, expected.len() as u64);
        assert_eq!((told.left_out, told.skipped_xattrs), (0, 0));
        let last = last.unwrap();
        assert_eq!((last.bytes, Some(last.bytes)), (told.bytes, last.total));
        let (blocks, size) = blocks_and_size(&target);
        assert!(blocks < size / 4, "holes stay holes: {blocks} of {size} bytes are on the disk");
    }
}

fn blocks_and_size(directory: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let files = directory.read_dir().unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    let files = files.filter(|metadata| metadata.is_file());
    files.fold((0, 0), |(blocks, size), file| (blocks + file.blocks() * 512, size + file.len()))
}

fn without_sockets(mut snapshot: Snapshot) -> Snapshot {
    snapshot.retain(|_, facts| facts.mode & 0o170_000 != 0o140_000);
    snapshot
}

#[test]
fn one_of_everything_comes_out_as_an_archive_that_others_read() {
    let tree = one_of_everything();
    let expected = snapshot(tree.path());
    for format in FORMATS {
        let image = dressed(format, tree.path());
        let (bytes, told) = tar_of(image.path(), &ExtractOptions::default());
        let kept = without_sockets(expected.clone());
        assert_eq!(told.left_out, (expected.len() - kept.len()) as u64);
        assert!(bytes.len() < 40 << 20, "holes are not in it: {} bytes", bytes.len());
        let (again, _) = image_of_tar(&bytes, Options::default());
        assert_same(&kept, &mounted(again.path(), true, snapshot));

        let (file, target) = (NamedTempFile::new().unwrap(), TempDir::new().unwrap());
        fs::write(file.path(), &bytes).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--xattrs", "--xattrs-include=*", "-xpf"]).arg(file.path());
        run(tar.arg("-C").arg(target.path()));
        // GNU tar takes lists of access rights from its own records only.
        let plain = |mut snapshot: Snapshot| {
            for facts in snapshot.values_mut() {
                facts.xattrs.retain(|name, _| !name.starts_with("system.posix_acl"));
            }
            snapshot
        };
        let (kept, found) = (plain(kept.clone()), plain(snapshot(target.path())));
        let names: Vec<_> = kept.keys().collect();
        assert_eq!(names, found.keys().collect::<Vec<_>>());
        for (path, facts) in &kept {
            let other = &found[path];
            assert_eq!((&facts.content, facts.size), (&other.content, other.size), "{path:?}");
            assert_eq!((facts.owner, facts.mtime), (other.owner, other.mtime), "{path:?}");
            assert_eq!(
                (&facts.xattrs, &facts.same_as),
                (&other.xattrs, &other.same_as),
                "{path:?}"
            );
        }
    }
}

/// What others make of the same directory: small blocks, contents in inodes, short inodes, shared
/// attributes, chunks.
#[test]
fn images_of_other_programs_come_out_as_the_kernel_shows_them() {
    let (large, small) = (one_of_everything(), some_of_everything());
    // Others write its holes.
    fs::File::options()
        .write(true)
        .open(large.path().join("holes"))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let variants: [(&str, &str, &TempDir); 7] = [
        ("mke2fs", "-b 4096 -O ^has_journal", &large),
        ("mke2fs", "-b 4096 -O inline_data", &large),
        ("mke2fs", "-b 1024 -O ^metadata_csum", &small),
        ("mke2fs", "-b 2048 -O inline_data,^64bit,^flex_bg,^metadata_csum", &small),
        ("mkfs.erofs", "", &small),
        ("mkfs.erofs", "-x1 -Eforce-inode-compact", &small),
        ("mkfs.erofs", "-Eforce-inode-extended --chunksize=8192", &small),
    ];
    for (program, options, tree) in variants {
        let image = NamedTempFile::new().unwrap();
        let mut command = Command::new(program);
        command.args(options.split_whitespace());
        match program {
            "mke2fs" => {
                command.args(["-q", "-t", "ext4", "-d"]).arg(tree.path());
                command.arg(image.path()).arg("400M")
            }
            _ => command.arg(image.path()).arg(tree.path()),
        };
        run(&mut command);
        let expected = mounted(image.path(), true, snapshot);
        let (target, _) = extracted(image.path(), &ExtractOptions::default())
            .unwrap_or_else(|error| panic!("{program} {options}: {error}"));
        assert_same(&expected, &snapshot(target.path()));
    }
}

#[test]
fn a_deep_tree_comes_out() {
    let depth = 1500;
    let name = "d/".repeat(depth);
    let (out, _) = image_of_tar(&archive_of_deep(&name), Options::default());
    let (target, told) = extracted(out.path(), &ExtractOptions::default()).unwrap();
    assert_eq!(told.entries, depth as u64 + 2);
    let (bytes, _) = tar_of(out.path(), &ExtractOptions::default());
    let (again, _) = image_of_tar(&bytes, Options::default());
    assert!(diff(out.path(), again.path(), &DiffOptions::default(), |_| {}).unwrap().is_empty());
    assert!(diff(out.path(), target.path(), &DiffOptions::default(), |_| {}).unwrap().is_empty());
}

fn archive_of_deep(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(7);
    header.set_size(3);
    tar.append_data(&mut header, format!("{name}f"), &b"abc"[..]).unwrap();
    tar.into_inner().unwrap()
}

const FILE: tar::EntryType = tar::EntryType::Regular;
const DIRECTORY: tar::EntryType = tar::EntryType::Directory;

#[test]
fn whiteouts_get_the_form_that_is_asked_for() {
    let bytes = archive(&[
        (DIRECTORY, "d", "", b""),
        (FILE, "d/.wh.gone", "", b""),
        (DIRECTORY, "o", "", b""),
        (FILE, "o/.wh..wh..opq", "", b""),
        (FILE, "o/kept", "", b"kept"),
    ]);
    let with = |whiteouts| ExtractOptions { whiteouts, ..Default::default() };
    for format in FORMATS {
        let options = |whiteouts| Options { whiteouts, ..of_format(format) };
        let (overlay, _) = image_of_tar(&bytes, options(true));
        let (named, _) = image_of_tar(&bytes, options(false));
        let names = |image: &NamedTempFile, whiteouts| {
            let (target, _) = extracted(image.path(), &with(whiteouts)).unwrap();
            let found = snapshot(target.path());
            let names = found.iter().map(|(path, facts)| {
                let mark = if facts.xattrs.contains_key("trusted.overlay.opaque") {
                    " opaque"
                } else {
                    ""
                };
                let device = if facts.mode & 0o170_000 == 0o020_000 { " device" } else { "" };
                format!("{}{mark}{device}", path.display())
            });
            names.collect::<Vec<_>>()
        };
        let as_overlay = ["", "d", "d/gone device", "o opaque", "o/kept"];
        let as_oci = ["", "d", "d/.wh.gone", "o", "o/.wh..wh..opq", "o/kept"];
        assert_eq!(names(&overlay, Whiteouts::Keep), as_overlay);
        assert_eq!(names(&overlay, Whiteouts::Overlay), as_overlay);
        assert_eq!(names(&overlay, Whiteouts::Oci), as_oci);
        assert_eq!(names(&named, Whiteouts::Keep), as_oci);
        assert_eq!(names(&named, Whiteouts::Oci), as_oci);
        assert_eq!(names(&named, Whiteouts::Overlay), as_overlay);
        // There and back again.
        let (tar, _) = tar_of(overlay.path(), &with(Whiteouts::Oci));
        let (again, _) = image_of_tar(&tar, options(true));
        let same = diff(overlay.path(), again.path(), &DiffOptions::default(), |_| {}).unwrap();
        assert!(same.is_empty(), "{same:?}");
    }
}

#[test]
fn what_an_oci_layer_cannot_say_is_named() {
    let mut tar = tar::Builder::new(Vec::new());
    let redirect = [("SCHILY.xattr.trusted.overlay.redirect", &b"/elsewhere"[..])];
    tar.append_pax_extensions(redirect).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(DIRECTORY);
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, "moved", &b""[..]).unwrap();
    let (out, _) = image_of_tar(&tar.into_inner().unwrap(), Options::default());
    let options = ExtractOptions { whiteouts: Whiteouts::Oci, ..Default::default() };
    let error = extracted(out.path(), &options).unwrap_err();
    assert!(
        matches!(&error, Error::Entry { entry, problem: Problem::OnlyOverlay(key), .. }
            if entry == "moved" && key.contains("redirect")),
        "{error:?}"
    );
}

/// A tree as a directory, for those that make it with system calls.
fn image_of(fill: impl Fn(&Path)) -> NamedTempFile {
    let tree = TempDir::new().unwrap();
    fill(tree.path());
    image(Options::default(), |builder| builder.add_directory(tree.path())).unwrap().0
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn without_rights_nothing_runs_as_its_new_owner_and_links_find_their_first_name() {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let out = image_of(|root| {
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir_all(root.join("b")).unwrap();
        fs::write(root.join("a/f"), "runs").unwrap();
        set_mode(&root.join("a/f"), 0o4755);
        fs::hard_link(root.join("a/f"), root.join("b/f")).unwrap();
        set_mode(&root.join("a"), 0o600);
        let device = (FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3));
        mknodat(CWD, root.join("null"), device.0, device.1, device.2).unwrap();
    });
    let options = ExtractOptions { rootless: true, ..Default::default() };
    let (target, told) = extracted(out.path(), &options).unwrap();
    let look = |name: &str| fs::symlink_metadata(target.path().join(name)).unwrap();
    assert_eq!(look("a/f").permissions().mode() & 0o7777, 0o755);
    assert_eq!(look("a/f").ino(), look("b/f").ino());
    assert_eq!(look("a").permissions().mode() & 0o7777, 0o700);
    assert!(!target.path().join("null").exists());
    assert_eq!(told.left_out, 2, "a bit and a device");
}

#[test]
fn what_differs_in_bytes_alone_is_a_difference() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let link = |byte: u8| {
        image_of(|root| {
            let target = OsStr::from_bytes(std::slice::from_ref(&byte));
            std::os::unix::fs::symlink(target, root.join("link")).unwrap();
        })
    };
    let (first, second) = (link(0xff), link(0xfe));
    let found = diff(first.path(), second.path(), &DiffOptions::default(), |_| {}).unwrap();
    assert!(format!("{found:?}").contains("aspect: Content"), "{found:?}");
}

#[test]
fn an_attribute_that_an_archive_cannot_name_is_left_out() {
    let out = image_of(|root| {
        fs::write(root.join("f"), "").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("f"), "user.a=b", b"c", flags).unwrap();
        rustix::fs::setxattr(root.join("f"), "user.d", b"e=f", flags).unwrap();
    });
    let (bytes, told) = tar_of(out.path(), &ExtractOptions::default());
    assert_eq!(told.left_out, 1);
    let (again, _) = image_of_tar(&bytes, Options::default());
    let facts = mounted(again.path(), true, snapshot);
    let file = facts.values().find(|facts| !facts.xattrs.is_empty()).expect("the file");
    assert_eq!(file.xattrs.keys().collect::<Vec<_>>(), ["user.d"]);
}

#[test]
fn a_path_that_no_archive_could_have_is_refused() {
    let out = image_of(|root| {
        let mut here = rustix::fs::open(root, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
        for _ in 0..20 {
            let at = here.unwrap();
            let name = "n".repeat(250);
            rustix::fs::mkdirat(&at, &name, rustix::fs::Mode::RWXU).unwrap();
            let flags = rustix::fs::OFlags::PATH;
            here = rustix::fs::openat(&at, &name, flags, rustix::fs::Mode::empty());
        }
    });
    let error = extracted(out.path(), &ExtractOptions::default()).unwrap_err().to_string();
    assert!(error.contains("a path is longer than 4096 bytes"), "{error}");
}

#[test]
fn a_directory_that_holds_something_is_left_alone() {
    let (out, _) = image_of_tar(&archive(&[(FILE, "new", "", b"x")]), Options::default());
    let target = TempDir::new().unwrap();
    fs::write(target.path().join("mine"), b"mine").unwrap();
    let options = ExtractOptions::default();
    let error = extract_to_directory(out.path(), target.path(), &options, |_| {}).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(target.path().read_dir().unwrap().count(), 1);
    let nowhere = target.path().join("no/such");
    let error = extract_to_directory(out.path(), &nowhere, &options, |_| {}).unwrap_err();
    assert!(error.to_string().contains("no/such"), "{error}");
}

#[test]
fn what_is_no_image_is_named() {
    let target = TempDir::new().unwrap();
    let tar = NamedTempFile::new().unwrap();
    fs::write(tar.path(), archive(&[(FILE, "x", "", b"")])).unwrap();
    for path in [tar.path(), target.path()] {
        let error = extracted(path, &ExtractOptions::default()).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("none"), "{error}");
    }
}

#[test]
fn more_data_than_the_limit_is_not_begun_with() {
    let bytes = archive(&[(FILE, "a", "", &[7; 10_000]), (FILE, "b", "", &[8; 10_000])]);
    let (out, _) = image_of_tar(&bytes, Options::default());
    let options = ExtractOptions { max_bytes: 19_999, ..Default::default() };
    let target = TempDir::new().unwrap();
    let target = target.path().join("new");
    let error = extract_to_directory(out.path(), &target, &options, |_| {}).unwrap_err();
    assert!(error.to_string().contains("19999"), "{error}");
    assert!(!target.exists());
    let options = ExtractOptions { max_bytes: 20_000, ..Default::default() };
    extract_to_directory(out.path(), &target, &options, |_| {}).unwrap();
}

/// Changes the one place where some bytes are.
fn patch(image: &NamedTempFile, from: &[u8], to: &[u8]) {
    let bytes = fs::read(image.path()).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
    assert_eq!(places.len(), 1, "{from:?} is at {places:?}");
    image.as_file().write_all_at(to, places[0] as u64).unwrap();
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for format in FORMATS {
        for evil in [b"../../../evilx", b"/tmp/evil-evil", b"name\0of-a-file", b"name/of-a-file"] {
            let bytes = archive(&[(DIRECTORY, "d", "", b""), (FILE, "d/name-of-a-file", "", b"x")]);
            let (out, _) = image_of_tar(&bytes, of_format(format));
            patch(&out, b"name-of-a-file", evil);
            let parent = TempDir::new().unwrap();
            let target = parent.path().join("deep/er/target");
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            let options = ExtractOptions::default();
            match extract_to_directory(out.path(), &target, &options, |_| {}) {
                Err(error) => assert!(error.to_string().contains("is no name"), "{error}"),
                // A NUL byte ends a name of EROFS, if it is the last one.
                Ok(_) => assert_eq!((format, evil[4]), (Format::Erofs, 0)),
            }
            let names = snapshot(parent.path());
            let outside: Vec<_> =
                names.keys().filter(|path| !path.starts_with("deep/er/target")).collect();
            assert_eq!(outside, [Path::new(""), Path::new("deep"), Path::new("deep/er")]);
        }
    }
}

#[test]
fn a_link_is_never_followed() {
    let outside = TempDir::new().unwrap();
    let place = outside.path().to_str().unwrap();
    let link = tar::EntryType::Symlink;
    for format in FORMATS {
        // Two entries of one name would be needed to write through it: make the second one the first.
        let bytes = archive(&[
            (link, "abcdefgh", place, b""),
            (DIRECTORY, "abcdefgi", "", b""),
            (FILE, "abcdefgi/file", "", b"x"),
        ]);
        let (out, _) = image_of_tar(&bytes, of_format(format));
        patch(&out, b"abcdefgi", b"abcdefgh");
        let error = extracted(out.path(), &ExtractOptions::default()).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
        assert_eq!(outside.path().read_dir().unwrap().count(), 0);
    }
}

#[test]
fn a_directory_that_holds_itself_is_an_error() {
    for format in FORMATS {
        let bytes =
            archive(&[(DIRECTORY, "outer", "", b""), (DIRECTORY, "outer/inner-dir", "", b"")]);
        let (out, _) = image_of_tar(&bytes, of_format(format));
        let image = fs::read(out.path()).unwrap();
        let find = |name: &[u8]| image.windows(name.len()).position(|bytes| bytes == name).unwrap();
        // In a record of ext4 the number comes eight bytes before the name; in a block of EROFS the
        // records come first, `.` and `..` before any other.
        let (from, to, length) = match format {
            Format::Ext4 => (find(b"outer") - 8, find(b"inner-dir") - 8, 4),
            _ => (0, find(b"inner-dir") - 3 - 36 + 24, 8),
        };
        let number = match format {
            Format::Ext4 => image[from..from + length].to_vec(),
            _ => image[to - 24..to - 24 + length].to_vec(),
        };
        out.as_file().write_all_at(&number, to as u64).unwrap();
        let error = extracted(out.path(), &ExtractOptions::default()).unwrap_err();
        assert!(error.to_string().contains("again"), "{format:?}: {error}");
    }
}

/// A small directory with a few of the things that there are.
fn some_of_everything() -> TempDir {
    let tree = TempDir::new().unwrap();
    let root = tree.path();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/file"), vec![1; 5000]).unwrap();
    fs::write(root.join("d/short"), b"in the inode").unwrap();
    fs::hard_link(root.join("d/file"), root.join("link")).unwrap();
    std::os::unix::fs::symlink("d/file", root.join("symlink")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(2 << 20).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    for name in ["d", "d/file", "d/short", "sparse"] {
        rustix::fs::setxattr(root.join(name), "user.shared", b"value", flags).unwrap();
    }
    rustix::fs::setxattr(root.join("d"), "trusted.own", b"", flags).unwrap();
    let modified = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
    sparse.set_times(fs::FileTimes::new().set_modified(modified)).unwrap();
    std::os::unix::fs::lchown(root.join("d/short"), Some(5), Some(7_000)).unwrap();
    for number in 0..300 {
        fs::write(root.join(format!("d/one of many files, number {number}")), [7]).unwrap();
    }
    tree
}

fn seed(format: Format) -> Vec<u8> {
    let tree = some_of_everything();
    let (out, _) = image(of_format(format), |builder| builder.add_directory(tree.path())).unwrap();
    fs::read(out.path()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn damage_is_an_error_or_harmless_and_never_leads_outside(
        erofs: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
    ) {
        let format = if erofs { Format::Erofs } else { Format::Ext4 };
        let mut bytes = seed(format);
        // What is not zero is metadata for the most part; what is, near the beginning, means that
        // something is not there.
        let metadata = |&at: &usize| bytes[at] > 1 || at < 4096;
        let used: Vec<usize> = (1024..bytes.len()).filter(metadata).collect();
        for (at, value) in changes {
            bytes[used[at.index(used.len())]] = value;
        }
        let (file, parent) = (NamedTempFile::new().unwrap(), TempDir::new().unwrap());
        fs::write(file.path(), &bytes).unwrap();
        let target = parent.path().join("target");
        let options = ExtractOptions { max_bytes: 16 << 20, ..Default::default() };
        let outcome = extract_to_directory(file.path(), &target, &options, |_| {});
        let names: Vec<_> = parent.path().read_dir().unwrap().collect();
        prop_assert_eq!(names.len(), usize::from(outcome.is_ok()), "{:?}", outcome);
        let tar = extract_to_tar(file.path(), std::io::sink(), "sink", &options, |_| {});
        prop_assert!(outcome.is_err() || tar.is_ok(), "{:?}", tar);
    }
}
