//! Tar streams in, the trees they describe out.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use linkspan_layer::{Compression, Kind, LayerBuilder, Options, Progress, build_image, detect};
use tempfile::{NamedTempFile, TempDir};

use crate::inspect::{
    FORMATS, assert_clean, assert_same, image, image_of_tar, mounted, of_format, snapshot,
};

/// Adds one member with the attributes tests do not care about.
pub(crate) fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    link: &str,
    data: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    // Past the checks of the tar crate, which would refuse hostile names.
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..path.len()].copy_from_slice(path.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

pub(crate) fn archive(members: &[(tar::EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, path, link, data) in members {
        append(&mut tar, *kind, path, link, data);
    }
    tar.into_inner().unwrap()
}

const FILE: tar::EntryType = tar::EntryType::Regular;
const DIRECTORY: tar::EntryType = tar::EntryType::Directory;

#[test]
fn archive_of_gnu_tar_gives_what_it_was_made_of_in_every_format_and_compression() {
    let tree = TempDir::new().unwrap();
    let root = tree.path();
    fs::create_dir_all(root.join("a/b").join("c".repeat(200))).unwrap();
    fs::write(root.join("a/b").join("c".repeat(200)).join("d".repeat(200)), b"long").unwrap();
    fs::write(root.join("a/file"), vec![3; 70_000]).unwrap();
    fs::hard_link(root.join("a/file"), root.join("z")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), root.join("link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(300 << 20).unwrap();
    for part in 0..60 {
        sparse.write_all_at(b"some data", part * 5_000_000 + 77).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("a/file"), "user.lines", b"a\nb=c\n\n\0", flags).unwrap();
    let expected = snapshot(root);
    let variants: [(&[&str], Compression); 5] = [
        (&["--format=posix", "--xattrs", "--sparse"], Compression::None),
        (&["--format=posix", "--xattrs", "--sparse", "--sparse-version=0.1"], Compression::Gzip),
        (&["--format=posix", "--xattrs", "--sparse", "--sparse-version=0.0"], Compression::Xz),
        (&["--format=posix", "--xattrs"], Compression::Zstd),
        (&["--format=gnu", "--sparse"], Compression::Bzip2),
    ];
    for (arguments, compression) in variants {
        let file = NamedTempFile::new().unwrap();
        let mut command = Command::new("tar");
        command.args(arguments).arg("--sort=name").arg("-C").arg(root).arg("-cf").arg("-").arg(".");
        let plain = command.output().expect("run tar");
        assert!(plain.status.success(), "{}", String::from_utf8_lossy(&plain.stderr));
        file.as_file().write_all(&compress(&plain.stdout, compression)).unwrap();
        assert_eq!(detect(file.path()).unwrap(), Kind::Tar(compression));

        let out = NamedTempFile::new().unwrap();
        let mut last = None;
        let progress = |progress| last = Some(progress);
        build_image(file.path(), out.as_file(), Options::default(), progress).unwrap();
        let bytes = file.as_file().metadata().unwrap().len();
        let Some(Progress { bytes: seen, total, entries, .. }) = last else {
            panic!("no progress was reported");
        };
        assert_eq!((seen, total, entries), (bytes, Some(bytes), expected.len() as u64));
        assert!(out.as_file().metadata().unwrap().len() < 8 << 20, "holes stay holes");
        assert_clean(out.path());
        let mut expected = expected.clone();
        if arguments[0] == "--format=gnu" {
            for facts in expected.values_mut() {
                facts.mtime.1 = 0;
                facts.xattrs.clear();
            }
        }
        assert_same(&expected, &mounted(out.path(), true, snapshot));
    }
}

fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let program = match compression {
        Compression::None => return bytes.to_vec(),
        Compression::Zstd => return zstd::encode_all(bytes, 1).unwrap(),
        Compression::Gzip => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).unwrap();
            return encoder.finish().unwrap();
        }
        Compression::Bzip2 => {
            let level = bzip2::Compression::fast();
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).unwrap();
            return encoder.finish().unwrap();
        }
        Compression::Xz => "xz",
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    Command::new(program).arg("-0c").stdin(file).output().expect("run xz").stdout
}

#[test]
fn last_of_several_members_of_one_name_wins() {
    let bytes = archive(&[
        (FILE, "file", "", b"first, and much longer than the second one"),
        (FILE, "file", "", b"second"),
        (DIRECTORY, "kept", "", b""),
        (FILE, "kept/inside", "", b"inside"),
        (DIRECTORY, "kept", "", b""),
        (DIRECTORY, "gone", "", b""),
        (FILE, "gone/inside", "", &[1; 100_000]),
        (FILE, "gone", "", b"now a file"),
    ]);
    let (out, _) = image_of_tar(&bytes, Options::default());
    assert_clean(out.path());
    mounted(out.path(), true, |root| {
        assert_eq!(fs::read(root.join("file")).unwrap(), b"second");
        assert_eq!(fs::read(root.join("kept/inside")).unwrap(), b"inside");
        assert_eq!(fs::read(root.join("gone")).unwrap(), b"now a file");
    });
}

#[test]
fn missing_parents_are_made_like_their_own_parent() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(DIRECTORY);
    header.set_mode(0o2750);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(5);
    header.set_size(0);
    tar.append_data(&mut header, "top/", &b""[..]).unwrap();
    append(&mut tar, FILE, "top/missing/file", "", b"x");
    let (out, _) = image_of_tar(&tar.into_inner().unwrap(), Options::default());
    mounted(out.path(), true, |root| {
        let made = root.join("top/missing").metadata().unwrap();
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o2750, 12, 34));
    });
}

#[test]
fn fields_left_blank_are_zero() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    tar.append_data(&mut header, "file", &b""[..]).unwrap();
    let (out, _) = image_of_tar(&tar.into_inner().unwrap(), Options::default());
    mounted(out.path(), true, |root| {
        let found = root.join("file").metadata().unwrap();
        let facts = (found.mode() & 0o7777, found.uid(), found.gid(), found.mtime());
        assert_eq!(facts, (0, 0, 0, 0));
    });
}

#[test]
fn absolute_and_dotted_names_stay_inside() {
    let bytes = archive(&[(FILE, "/etc//./passwd", "", b"root"), (FILE, "./x/", "", b"")]);
    let (out, _) = image_of_tar(&bytes, Options::default());
    mounted(out.path(), true, |root| {
        assert_eq!(fs::read(root.join("etc/passwd")).unwrap(), b"root");
        assert!(root.join("x").is_dir(), "a file with a slash at its end is an old directory");
    });
}

#[test]
fn whiteouts_become_those_of_overlayfs_when_asked_for() {
    let bytes = archive(&[
        (FILE, "dir/.wh.deleted", "", b""),
        (FILE, "dir/.wh..wh..opq", "", b""),
        (DIRECTORY, "dir", "", b""),
        (FILE, "dir/kept", "", b"kept"),
        (FILE, ".wh.replaced", "", b""),
        (DIRECTORY, "replaced", "", b""),
        (FILE, "stays", "", b"stays"),
        (FILE, ".wh.stays", "", b""),
        (FILE, ".wh..wh.plnk", "", b""),
    ]);
    let (plain, _) = image_of_tar(&bytes, Options::default());
    mounted(plain.path(), true, |root| assert!(root.join("dir/.wh..wh..opq").exists()));

    for format in FORMATS {
        let options = Options { whiteouts: true, ..of_format(format) };
        let (layer, _) = image_of_tar(&bytes, options);
        assert_clean(layer.path());
        let found = mounted(layer.path(), true, snapshot);
        let opaque =
            |path: &str| found[Path::new(path)].xattrs.get("trusted.overlay.opaque").cloned();
        assert_eq!(opaque("dir").as_deref(), Some(&b"y"[..]));
        assert_eq!(opaque("replaced").as_deref(), Some(&b"y"[..]));
        let deleted = &found[Path::new("dir/deleted")];
        assert_eq!((deleted.mode & 0o170_000, deleted.device), (0o020_000, (0, 0)));
        assert_eq!(found[Path::new("stays")].size, 5);
        let names: Vec<_> = found.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["", "dir", "dir/deleted", "dir/kept", "replaced", "stays"]);
    }
}

#[test]
fn later_source_goes_over_an_earlier_one() {
    let first = archive(&[(FILE, "a", "", b"1"), (FILE, "b", "", b"1")]);
    let second = archive(&[(FILE, "b", "", b"2")]);
    let (out, summary) = image(Options::default(), |builder| {
        builder.add_tar("first", first.as_slice())?;
        builder.add_tar("second", second.as_slice())
    })
    .unwrap();
    assert_eq!(summary.inodes, 3);
    assert_clean(out.path());
    mounted(out.path(), true, |root| {
        assert_eq!(fs::read(root.join("a")).unwrap(), b"1");
        assert_eq!(fs::read(root.join("b")).unwrap(), b"2");
    });
}

#[test]
fn attributes_without_a_place_in_ext4_are_counted() {
    let mut tar = tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 2] =
        [("SCHILY.xattr.com.vendor.thing", b"1"), ("SCHILY.xattr.user.kept", b"2")];
    tar.append_pax_extensions(records).unwrap();
    append(&mut tar, FILE, "file", "", b"x");
    let (out, summary) = image_of_tar(&tar.into_inner().unwrap(), Options::default());
    assert_eq!(summary.skipped_xattrs, 1);
    let found = mounted(out.path(), true, snapshot);
    assert_eq!(found[Path::new("file")].xattrs.keys().collect::<Vec<_>>(), ["user.kept"]);
}

#[test]
fn more_empty_files_than_the_blocks_of_an_image_suggest_are_possible() {
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..140_000 {
        append(&mut tar, FILE, &format!("{}/{number}", number / 1000), "", b"");
    }
    let (out, summary) = image_of_tar(&tar.into_inner().unwrap(), Options::default());
    assert!(summary.bytes < 48 << 20, "{summary:?}");
    assert_clean(out.path());
    let names = mounted(out.path(), true, |root| snapshot(root).len());
    assert_eq!(names as u64, summary.inodes);
}

#[test]
fn image_can_be_made_in_memory() {
    let bytes = archive(&[(FILE, "file", "", b"content")]);
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let out = fs::File::from(rustix::fs::memfd_create("image", flags).unwrap());
    let mut builder = LayerBuilder::new(&out, Options::default()).unwrap();
    builder.add_tar("test.tar", bytes.as_slice()).unwrap();
    let summary = builder.finish().unwrap();
    let (on_disk, same) = image_of_tar(&bytes, Options::default());
    assert_eq!(summary, same);
    let mut in_memory = vec![0; summary.bytes as usize];
    out.read_exact_at(&mut in_memory, 0).unwrap();
    assert!(in_memory == fs::read(on_disk.path()).unwrap());
}
