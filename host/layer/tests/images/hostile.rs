//! Archives made to mislead: refused with the name of the entry, or harmless.

use linkspan_layer::{Error, Options, Problem};
use proptest::prelude::*;

use crate::archives::{append, archive};
use crate::inspect::{assert_clean, image};

const FILE: tar::EntryType = tar::EntryType::Regular;
const DIRECTORY: tar::EntryType = tar::EntryType::Directory;
const SYMLINK: tar::EntryType = tar::EntryType::Symlink;
const LINK: tar::EntryType = tar::EntryType::Link;

fn refused(bytes: &[u8]) -> Error {
    let result = image(Options::default(), |builder| builder.add_tar("evil.tar", bytes));
    result.expect_err("the archive is accepted")
}

/// The entry the error names, and what is wrong with it.
fn problem(bytes: &[u8]) -> (String, Problem) {
    match refused(bytes) {
        Error::Entry { origin, entry, problem } => {
            assert_eq!(origin, "evil.tar");
            (entry, problem)
        }
        other => panic!("not about an entry: {other:?}"),
    }
}

#[test]
fn names_that_lead_upwards_are_refused() {
    for name in ["../x", "a/../../x", "..", "a/.."] {
        let (entry, problem) = problem(&archive(&[(FILE, name, "", b"")]));
        assert_eq!(entry, name);
        assert!(matches!(problem, Problem::ParentEscape), "{problem}");
    }
    let upwards = archive(&[(FILE, "a", "", b""), (LINK, "b", "../../etc/shadow", b"")]);
    assert!(matches!(problem(&upwards), (entry, Problem::ParentEscape) if entry == "b"));
}

#[test]
fn names_through_symbolic_links_are_refused() {
    let bytes = archive(&[(SYMLINK, "out", "/etc", b""), (FILE, "out/passwd", "", b"evil")]);
    let (entry, found) = problem(&bytes);
    assert_eq!(entry, "out/passwd");
    assert!(matches!(found, Problem::ThroughSymlink(link) if link == "out"));
    let link = archive(&[(SYMLINK, "out", "/etc", b""), (LINK, "x", "out/passwd", b"")]);
    assert!(matches!(problem(&link).1, Problem::MissingLinkTarget(_)));
}

#[test]
fn files_are_no_parents() {
    let bytes = archive(&[(FILE, "file", "", b"x"), (FILE, "file/below", "", b"x")]);
    assert!(matches!(problem(&bytes).1, Problem::ParentNotDirectory(parent) if parent == "file"));
    let root = archive(&[(SYMLINK, ".", "/etc", b"")]);
    assert!(matches!(problem(&root).1, Problem::RootNotDirectory));
}

#[test]
fn hard_links_need_a_file_that_came_before() {
    let missing = archive(&[(LINK, "a", "b", b""), (FILE, "b", "", b"")]);
    assert!(matches!(problem(&missing).1, Problem::MissingLinkTarget(target) if target == "b"));
    let directory = archive(&[(DIRECTORY, "d", "", b""), (LINK, "a", "d", b"")]);
    assert!(matches!(problem(&directory).1, Problem::LinkToDirectory(_)));
    let root = archive(&[(LINK, "a", "/", b"")]);
    assert!(matches!(problem(&root).1, Problem::LinkToDirectory(_)));
    let itself = archive(&[(FILE, "a", "", b"x"), (LINK, "a", "a", b"")]);
    image(Options::default(), |builder| builder.add_tar("t", &itself[..])).unwrap();
}

#[test]
fn archives_cut_anywhere_are_refused() {
    let whole = archive(&[(FILE, "a", "", &[1; 700]), (FILE, "b", "", b"x")]);
    let end = whole.len() - 1024;
    for length in (0..end).step_by(97).chain([end - 512, end]) {
        let error = refused(&whole[..length]);
        assert!(
            matches!(
                error,
                Error::Archive { .. } | Error::Entry { problem: Problem::Truncated { .. }, .. }
            ),
            "{length}: {error:?}"
        );
    }
    image(Options::default(), |builder| builder.add_tar("t", &whole[..end + 512])).unwrap();
}

#[test]
fn cut_or_damaged_compression_is_refused() {
    use std::io::Write;
    let plain = archive(&[(FILE, "a", "", &[1; 70_000])]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    let mut gzip = encoder.finish().unwrap();
    assert!(matches!(refused(&gzip[..gzip.len() - 8]), Error::Archive { .. }));
    let sum = gzip.len() - 6;
    gzip[sum] ^= 1;
    assert!(matches!(refused(&gzip), Error::Archive { .. }));
}

#[test]
fn sizes_that_lie_are_refused() {
    let mut tar = archive(&[(FILE, "a", "", b"x"), (FILE, "b", "", b"y")]);
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes().copy_from_slice(&tar[..512]);
    for size in [5000, u64::MAX, 1 << 60] {
        header.set_size(size);
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        let error = refused(&tar);
        assert!(
            matches!(error, Error::Archive { .. } | Error::Entry { .. } | Error::TooLarge { .. }),
            "{size}: {error:?}"
        );
    }
}

#[test]
fn extended_headers_do_not_fill_the_memory() {
    for kind in
        [tar::EntryType::XHeader, tar::EntryType::XGlobalHeader, tar::EntryType::GNULongName]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        assert!(matches!(problem(header.as_bytes()).1, Problem::ExtendedHeader(_)));
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let maps = ["0,10,5,10", "0,999999", "1", "x,y", "18446744073709551615,2", "0,3"];
    for map in maps {
        let mut tar = tar::Builder::new(Vec::new());
        let records = [("GNU.sparse.size", &b"100"[..]), ("GNU.sparse.map", map.as_bytes())];
        tar.append_pax_extensions(records).unwrap();
        append(&mut tar, FILE, "sparse", "", b"data!");
        let found = problem(&tar.into_inner().unwrap()).1;
        assert!(matches!(found, Problem::SparseMap(_)), "{map}: {found}");
    }
}

#[test]
fn odd_members_are_refused_by_name() {
    let empty = archive(&[(SYMLINK, "link", "", b"")]);
    assert!(matches!(problem(&empty), (entry, Problem::SymlinkLength(0)) if entry == "link"));
    let unknown = archive(&[(tar::EntryType::new(b'Q'), "odd", "", b"")]);
    assert!(matches!(problem(&unknown), (entry, Problem::UnknownType('Q')) if entry == "odd"));
    for name in ["n".repeat(256), "d/".repeat(100_000)] {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_pax_extensions([("path", name.as_bytes())]).unwrap();
        append(&mut tar, FILE, "x", "", b"");
        assert!(matches!(problem(&tar.into_inner().unwrap()).1, Problem::BadName));
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("SCHILY.xattr.system.posix_acl_access", &b"junk"[..])]).unwrap();
    append(&mut tar, FILE, "x", "", b"");
    assert!(matches!(problem(&tar.into_inner().unwrap()).1, Problem::BadAcl(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bytes: an error, or an image without faults.
    #[test]
    fn damaged_archives_never_make_damaged_images(
        changes in prop::collection::vec((0_usize..6_000, any::<u8>()), 1..4),
        mend in any::<bool>(),
    ) {
        let mut bytes = archive(&[
            (DIRECTORY, "d", "", b""),
            (FILE, "d/file", "", &[7; 900]),
            (SYMLINK, "d/link", "file", b""),
            (LINK, "d/other", "d/file", b""),
        ]);
        for (at, value) in changes {
            let at = at % (bytes.len() - 1024);
            bytes[at] = value;
        }
        if mend {
            for block in bytes.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
                let mut header = tar::Header::new_gnu();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        if let Ok((out, _)) = image(Options::default(), |builder| builder.add_tar("t", &bytes[..])) {
            assert_clean(out.path());
        }
    }
}
