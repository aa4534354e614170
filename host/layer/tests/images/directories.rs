//! Directories in, the same directories out.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use linkspan_layer::{Error, LayerBuilder, Options, Problem, vhd};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use tempfile::TempDir;

use crate::inspect::{
    FORMATS, assert_clean, assert_same, image, image_of_directory, mounted, of_format, snapshot,
};

/// One of everything a directory can hold.
pub(crate) fn one_of_everything() -> TempDir {
    let tree = TempDir::new().unwrap();
    let root = tree.path();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("small"), b"hello").unwrap();
    fs::write(root.join("block"), vec![b'x'; 4096]).unwrap();
    fs::write(root.join("unit"), vec![b'y'; (64 << 10) + 1]).unwrap();
    fs::write(root.join("zeros"), vec![0; 200_000]).unwrap();
    fs::write(root.join("three-megabytes"), vec![b'z'; 3_000_000]).unwrap();
    fs::set_permissions(root.join("small"), fs::Permissions::from_mode(0o6751)).unwrap();
    std::os::unix::fs::lchown(root.join("small"), Some(70_000), Some(4_000_000_000)).unwrap();
    fs::hard_link(root.join("block"), root.join("other name of block")).unwrap();
    fs::create_dir(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(root.join("block"), root.join("sticky/third name of block")).unwrap();
    symlink("small", root.join("short link")).unwrap();
    for length in [59, 60, 4095] {
        symlink("t".repeat(length), root.join(format!("link of {length}"))).unwrap();
    }
    fs::hard_link(root.join("link of 60"), root.join("second name of a link")).unwrap();
    fs::write(root.join("n".repeat(255)), b"long name").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"odd \xff\x01\n\\name")), b"odd").unwrap();
    let node = |name: &str, kind, major, minor| {
        let mode = Mode::from_raw_mode(0o640);
        mknodat(CWD, root.join(name), kind, mode, makedev(major, minor)).unwrap();
    };
    node("null", FileType::CharacterDevice, 1, 3);
    node("whiteout", FileType::CharacterDevice, 0, 0);
    node("disk", FileType::BlockDevice, 8, 300);
    node("far", FileType::BlockDevice, 4095, 0xf_ffff);
    node("fifo", FileType::Fifo, 0, 0);
    node("socket", FileType::Socket, 0, 0);
    let times = [("old", -86_401), ("new", 4_294_967_296_i64 + 5), ("last", 0x3_7fff_ffff)];
    for (name, seconds) in times {
        let file = File::create(root.join(name)).unwrap();
        let time = match u64::try_from(seconds) {
            Ok(after) => UNIX_EPOCH + Duration::new(after, 123_456_789),
            Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()),
        };
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
    let mut deep = root.join("deep");
    for _ in 0..600 {
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("f"), b"at some depth").unwrap();
        deep.push("d");
    }
    sparse_files(root);
    attributes(root);
    tree
}

fn sparse_files(root: &Path) {
    let holes = File::create(root.join("holes")).unwrap();
    holes.set_len(5 << 30).unwrap();
    holes.write_all_at(b"in the middle", (3 << 30) + 100).unwrap();
    holes.write_all_at(b"at the end", (5 << 30) - 10).unwrap();
    // More extents than the inode and one leaf per root entry can hold.
    let comb = File::create(root.join("comb")).unwrap();
    for tooth in 0..2000 {
        comb.write_all_at(b"tooth", tooth * 8192 + 50).unwrap();
    }
}

fn attributes(root: &Path) {
    let set = |name: &str, key: &str, value: &[u8]| {
        setxattr(root.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    fs::write(root.join("attributed"), b"attributed").unwrap();
    set("attributed", "user.short", b"value");
    set("attributed", "user.empty", b"");
    set("attributed", "user.a rather long name that needs room of its own in there", b"1");
    set("attributed", "user.long", &[7; 1500]);
    set("attributed", "trusted.some", b"thing");
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set("attributed", "security.capability", &capability);
    let mut acl = vec![2, 0, 0, 0];
    for (tag, rights, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(rights.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    set("attributed", "system.posix_acl_access", &acl);
    set("sticky", "system.posix_acl_default", &acl);
    set("sticky", "trusted.overlay.opaque", b"y");
    let link = root.join("short link");
    rustix::fs::lsetxattr(link, "trusted.on-a-link", b"yes", XattrFlags::empty()).unwrap();
}

#[test]
fn one_of_everything_survives_in_either_format() {
    let tree = one_of_everything();
    let expected = snapshot(tree.path());
    for format in FORMATS {
        let fill = |builder: &mut LayerBuilder<'_>| builder.add_directory(tree.path());
        let (out, summary) = image(of_format(format), fill).unwrap();
        assert!(summary.bytes < 40 << 20, "holes stay holes: {summary:?}");
        assert_clean(out.path());
        assert_same(&expected, &mounted(out.path(), true, snapshot));
    }
}

#[test]
fn empty_directory_makes_a_small_image() {
    let tree = TempDir::new().unwrap();
    let (out, summary) = image_of_directory(tree.path());
    assert!(summary.bytes <= 512 << 10, "{summary:?}");
    assert_clean(out.path());
    assert_same(&snapshot(tree.path()), &mounted(out.path(), true, snapshot));
}

#[test]
fn hundred_thousand_files_in_one_directory_survive() {
    let tree = TempDir::new().unwrap();
    for number in 0..100_000 {
        fs::write(tree.path().join(format!("file number {number}")), number.to_string()).unwrap();
    }
    for format in FORMATS {
        let fill = |builder: &mut LayerBuilder<'_>| builder.add_directory(tree.path());
        let (out, _) = image(of_format(format), fill).unwrap();
        assert_clean(out.path());
        let names = mounted(out.path(), true, |root| {
            let last = fs::read_to_string(root.join("file number 99999")).unwrap();
            assert_eq!(last, "99999");
            root.read_dir().unwrap().count()
        });
        assert_eq!(names, 100_000);
    }
}

#[test]
fn more_subdirectories_than_links_can_count_are_possible() {
    let mut bytes = tar::Builder::new(Vec::new());
    for number in 0..66_000 {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(0);
        bytes.append_data(&mut header, format!("d/{number}"), &b""[..]).unwrap();
    }
    let (out, _) = crate::inspect::image_of_tar(&bytes.into_inner().unwrap(), Options::default());
    assert_clean(out.path());
    let count = mounted(out.path(), true, |root| root.join("d").read_dir().unwrap().count());
    assert_eq!(count, 66_000);
}

#[test]
fn same_directory_gives_the_same_bytes() {
    let tree = one_of_everything();
    for format in FORMATS {
        let options = Options { verity: Some(Default::default()), ..of_format(format) };
        let fill = |builder: &mut LayerBuilder<'_>| builder.add_directory(tree.path());
        let (first, _) = image(options.clone(), fill).unwrap();
        let (second, _) = image(options, fill).unwrap();
        assert!(fs::read(first.path()).unwrap() == fs::read(second.path()).unwrap());
    }
}

#[test]
fn image_with_a_vhd_footer_is_detected_and_still_mounts() {
    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("file"), b"content").unwrap();
    let (out, summary) = image_of_directory(tree.path());
    let raw = linkspan_layer::Kind::Ext4 { size: summary.bytes };
    assert_eq!(linkspan_layer::detect(out.path()).unwrap(), raw);
    assert_eq!(vhd::append_footer(out.as_file(), summary.uuid).unwrap(), summary.bytes);
    let kind = linkspan_layer::Kind::Vhd { payload_size: summary.bytes };
    assert_eq!(linkspan_layer::detect(out.path()).unwrap(), kind);
    assert_same(&snapshot(tree.path()), &mounted(out.path(), true, snapshot));
}

#[test]
fn read_only_image_cannot_be_mounted_for_writing_unless_asked_for() {
    let tree = TempDir::new().unwrap();
    let write = |root: &Path| fs::write(root.join("new"), b"x").map_err(|error| error.kind());
    let (out, _) = image_of_directory(tree.path());
    let refused = mounted(out.path(), false, write);
    assert_eq!(refused, Err(std::io::ErrorKind::ReadOnlyFilesystem));
    let options = Options { writable: true, size_multiple: 8 << 20, ..Options::default() };
    let (out, summary) = image(options, |builder| builder.add_directory(tree.path())).unwrap();
    assert_eq!(summary.bytes, 8 << 20);
    assert_eq!(mounted(out.path(), false, write), Ok(()));
    assert_clean(out.path());
}

#[test]
fn image_that_would_exceed_its_limit_is_an_error() {
    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("file"), vec![1; 3 << 20]).unwrap();
    let options = Options { max_size: 2 << 20, ..Options::default() };
    let error = image(options, |builder| builder.add_directory(tree.path())).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 2_097_152 }), "{error}");
}

#[test]
fn attributes_that_do_not_fit_name_their_file() {
    let mut bytes = tar::Builder::new(Vec::new());
    let value = vec![1; 5000];
    bytes.append_pax_extensions([("SCHILY.xattr.user.big", value.as_slice())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_metadata(&fs::metadata("/dev/null").unwrap());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(0);
    bytes.append_data(&mut header, "dir/file", &b""[..]).unwrap();
    let bytes = bytes.into_inner().unwrap();
    let error = image(Options::default(), |builder| builder.add_tar("big.tar", bytes.as_slice()));
    let error = error.unwrap_err();
    assert!(
        matches!(&error, Error::Entry { entry, problem: Problem::XattrsTooLarge, .. } if entry == "dir/file"),
        "{error:?}"
    );
}

#[test]
fn file_that_ends_before_its_size_is_named() {
    // The files of sysfs claim 4096 bytes and hold a few.
    let error = image(Options::default(), |builder| {
        builder.add_directory(Path::new("/sys/module/kernel/parameters"))
    })
    .unwrap_err();
    let Error::Entry { origin, entry, problem: Problem::Truncated { .. } } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(origin, "/sys/module/kernel/parameters");
    assert!(Path::new(origin).join(entry).exists(), "{entry}");
}

#[test]
fn directory_that_is_not_there_is_named() {
    let missing = Path::new("/nowhere/at/all");
    let error = image(Options::default(), |builder| builder.add_directory(missing)).unwrap_err();
    assert_eq!(error.to_string(), "read /nowhere/at/all");
}
