//! Layers compared: the same whatever they are kept in, and each difference told.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use linkspan_layer::{
    Aspect, Change, DiffOptions, Difference, ExtractOptions, Options, diff, extract_to_tar,
};
use tempfile::{NamedTempFile, TempDir};

use crate::archives::archive;
use crate::directories::one_of_everything;
use crate::inspect::{FORMATS, image, image_of_tar, of_format};

fn compared(first: &Path, second: &Path) -> Vec<Difference> {
    diff(first, second, &DiffOptions::default(), |_| {}).unwrap()
}

#[test]
fn the_same_tree_is_the_same_in_every_form() {
    let tree = one_of_everything();
    let images = FORMATS.map(|format| {
        image(of_format(format), |builder| builder.add_directory(tree.path())).unwrap().0
    });
    for image in &images {
        assert_eq!(compared(tree.path(), image.path()), []);
    }
    assert_eq!(compared(images[0].path(), images[1].path()), []);
    let tar = NamedTempFile::new().unwrap();
    let options = ExtractOptions::default();
    extract_to_tar(images[0].path(), tar.as_file(), "tar", &options, |_| {}).unwrap();
    let sockets = compared(images[1].path(), tar.path());
    assert!(sockets.iter().all(|one| one.change == Change::Removed(1)), "{sockets:?}");
}

/// A tree of one file, which is then changed.
fn pair(change: impl FnOnce(&Path)) -> Vec<Difference> {
    let trees = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let paths = trees.each_ref().map(TempDir::path);
    for path in paths {
        fs::create_dir(path.join("d")).unwrap();
        fs::write(path.join("d/file"), b"content").unwrap();
        fs::write(path.join("d/other"), b"content").unwrap();
    }
    change(paths[1]);
    for tree in paths {
        for name in ["d/file", "d/other", "d", ""] {
            let Ok(file) = File::open(tree.join(name)) else { continue };
            let modified = file.metadata().unwrap().modified().unwrap();
            if modified > UNIX_EPOCH + Duration::from_secs(9) {
                let time = UNIX_EPOCH + Duration::from_secs(9);
                file.set_times(FileTimes::new().set_modified(time)).unwrap();
            }
        }
    }
    compared(paths[0], paths[1])
}

fn told(differences: &[Difference]) -> Vec<String> {
    let one = |difference: &Difference| {
        let path = String::from_utf8_lossy(&difference.path);
        match &difference.change {
            Change::Removed(count) => format!("- {path} {count}"),
            Change::Added(count) => format!("+ {path} {count}"),
            Change::Changed(fields) => {
                let field = fields.iter().map(|f| format!("{} {}>{}", f.aspect, f.before, f.after));
                format!("~ {path} {}", field.collect::<Vec<_>>().join(", "))
            }
            _ => String::new(),
        }
    };
    differences.iter().map(one).collect()
}

#[test]
fn every_aspect_is_told_with_both_sides() {
    assert_eq!(pair(|_| {}), []);
    let file = |tree: &Path| tree.join("d/file");
    let mode = pair(|tree| {
        fs::set_permissions(file(tree), fs::Permissions::from_mode(0o4755)).unwrap();
    });
    assert_eq!(told(&mode), ["~ d/file mode 0644>4755"]);
    let owner = pair(|tree| std::os::unix::fs::lchown(file(tree), Some(5), Some(6)).unwrap());
    assert_eq!(told(&owner), ["~ d/file owner 0:0>5:6"]);
    let time = pair(|tree| {
        let early = UNIX_EPOCH + Duration::new(8, 500_000_000);
        let file = File::open(file(tree)).unwrap();
        file.set_times(FileTimes::new().set_modified(early)).unwrap();
    });
    assert_eq!(told(&time), ["~ d/file time 9>8.5"]);
    let xattr = pair(|tree| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(file(tree), "user.a", b"new\n", flags).unwrap();
        rustix::fs::setxattr(file(tree), "user.b", b"plain", flags).unwrap();
    });
    assert_eq!(
        told(&xattr),
        ["~ d/file xattrs no user.a>user.a=0x6e65770a, xattrs no user.b>user.b=\"plain\""]
    );
    let size = pair(|tree| fs::write(file(tree), b"longer content").unwrap());
    assert_eq!(told(&size), ["~ d/file content 7 bytes>14 bytes"]);
    let bytes = pair(|tree| fs::write(file(tree), b"contenT").unwrap());
    assert_eq!(told(&bytes), ["~ d/file content 7 bytes>7 bytes, others"]);
    let links = pair(|tree| {
        fs::remove_file(tree.join("d/other")).unwrap();
        fs::hard_link(file(tree), tree.join("d/other")).unwrap();
    });
    let same = "links one name>the same as d/file";
    assert_eq!(told(&links), [format!("~ d/file {same}"), format!("~ d/other {same}")]);
    let kind = pair(|tree| {
        fs::remove_dir_all(tree.join("d")).unwrap();
        std::os::unix::fs::symlink("x", tree.join("d")).unwrap();
        rustix::fs::utimensat(
            rustix::fs::CWD,
            tree.join("d"),
            &rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec { tv_sec: 9, tv_nsec: 0 },
                last_modification: rustix::fs::Timespec { tv_sec: 9, tv_nsec: 0 },
            },
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
    });
    assert_eq!(told(&kind), ["~ d type directory>symbolic link", "- d/file 1", "- d/other 1"]);
    let names = pair(|tree| {
        fs::remove_dir_all(tree.join("d")).unwrap();
        fs::create_dir(tree.join("e")).unwrap();
    });
    assert_eq!(told(&names), ["- d 3", "+ e 1"]);
}

#[test]
fn what_is_to_be_ignored_does_not_count() {
    let trees = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    for (at, tree) in trees.iter().enumerate() {
        fs::write(tree.path().join("file"), format!("{at}")).unwrap();
    }
    let options =
        |ignored: &[Aspect]| DiffOptions { ignored: ignored.to_vec(), ..Default::default() };
    let found =
        |ignored| diff(trees[0].path(), trees[1].path(), &options(ignored), |_| {}).unwrap();
    let left = found(&[Aspect::Time]);
    assert_eq!(told(&left), ["~ file content 1 bytes>1 bytes, others"]);
    assert_eq!(found(&[Aspect::Time, Aspect::Content]), []);
}

#[test]
fn holes_and_zeros_are_the_same() {
    let trees = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let [sparse, dense] = trees.each_ref().map(|tree| File::create(tree.path().join("f")).unwrap());
    sparse.set_len(1 << 20).unwrap();
    dense.write_all_at(&[0; 1 << 20], 0).unwrap();
    for file in [&sparse, &dense] {
        file.write_all_at(b"data", 700_001).unwrap();
    }
    let options = DiffOptions { ignored: vec![Aspect::Time], ..Default::default() };
    assert_eq!(diff(trees[0].path(), trees[1].path(), &options, |_| {}).unwrap(), []);
}

#[test]
fn whiteouts_of_an_archive_are_those_of_its_image() {
    let file = tar::EntryType::Regular;
    let bytes = archive(&[(file, "d/.wh.gone", "", b""), (file, "d/.wh..wh..opq", "", b"")]);
    let tar = NamedTempFile::new().unwrap();
    fs::write(tar.path(), &bytes).unwrap();
    for format in FORMATS {
        let (image, _) = image_of_tar(&bytes, Options { whiteouts: true, ..of_format(format) });
        let options = |whiteouts| DiffOptions { whiteouts, ..Default::default() };
        let found =
            |whiteouts| diff(tar.path(), image.path(), &options(whiteouts), |_| {}).unwrap();
        assert_eq!(found(true), []);
        assert_eq!(found(false).len(), 4, "{:?}", told(&found(false)));
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let tree = TempDir::new().unwrap();
    let cut = NamedTempFile::new().unwrap();
    let bytes = archive(&[(tar::EntryType::Regular, "file", "", &[1; 3000])]);
    fs::write(cut.path(), &bytes[..1024]).unwrap();
    for pair in [[tree.path(), cut.path()], [cut.path(), tree.path()]] {
        let error = diff(pair[0], pair[1], &DiffOptions::default(), |_| {}).unwrap_err();
        assert!(error.to_string().contains(cut.path().to_str().unwrap()), "{error}");
    }
}
