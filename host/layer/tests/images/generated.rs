//! Trees nobody thought of.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use linkspan_layer::Format;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

use crate::inspect::{assert_clean, image_of_tar, mounted, of_format, snapshot};

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File(Runs),
    Symlink(String),
    Fifo,
}

/// The contents of a file as runs of one byte: zeros for holes, others for data.
#[derive(Clone)]
struct Runs(Vec<(u8, usize)>);

impl Runs {
    fn bytes(&self) -> Vec<u8> {
        let runs = self.0.iter();
        runs.flat_map(|&(byte, length)| std::iter::repeat_n(byte, length)).collect()
    }
}

impl std::fmt::Debug for Runs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut list = formatter.debug_list();
        for (byte, length) in &self.0 {
            list.entry(&format_args!("{length} x {byte}"));
        }
        list.finish()
    }
}

#[derive(Debug, Clone)]
struct Entry {
    kind: Kind,
    mode: u32,
    ids: (u32, u32),
    seconds: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn entry() -> impl Strategy<Value = Entry> {
    let content = prop::collection::vec((0_u8..3, 0_usize..100_000), 0..5).prop_map(Runs);
    let kind = prop_oneof![
        4 => Just(Kind::Directory),
        6 => content.prop_map(Kind::File),
        2 => "[a-z/.]{1,90}".prop_map(Kind::Symlink),
        1 => Just(Kind::Fifo),
    ];
    let name = "(user|trusted|security)\\.[a-z]{1,30}";
    let value = prop::collection::vec(any::<u8>(), 1..200);
    let xattrs = prop::collection::btree_map(name, value, 0..5);
    (kind, 0_u32..0o10000, (any::<u32>(), any::<u32>()), 0_u64..0x3_7fff_ffff, xattrs).prop_map(
        |(kind, mode, ids, seconds, mut xattrs)| {
            // The kernel lets only files and directories have attributes of users.
            if !matches!(kind, Kind::Directory | Kind::File(_)) {
                xattrs.retain(|name, _| !name.starts_with("user."));
            }
            Entry { kind, mode, ids, seconds, xattrs }
        },
    )
}

/// A tree: each entry goes below an earlier directory.
fn tree() -> impl Strategy<Value = BTreeMap<PathBuf, Entry>> {
    let name = "[a-c]{1,3}|[!-.0-~]{100,120}";
    prop::collection::vec((any::<prop::sample::Index>(), name, entry()), 0..40).prop_map(|list| {
        let mut directories = vec![PathBuf::new()];
        let mut tree = BTreeMap::new();
        for (parent, name, entry) in list {
            let path = parent.get(&directories).join(name);
            if path.as_os_str() == "." || path.ends_with("..") || tree.contains_key(&path) {
                continue;
            }
            if matches!(entry.kind, Kind::Directory) {
                directories.push(path.clone());
            }
            tree.insert(path, entry);
        }
        tree
    })
}

fn to_tar(tree: &BTreeMap<PathBuf, Entry>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in tree {
        let number = |value: u32| value.to_string().into_bytes();
        let mut records = vec![
            ("path".to_owned(), path.to_str().unwrap().as_bytes().to_vec()),
            ("mtime".to_owned(), format!("{}.25", entry.seconds).into_bytes()),
            ("uid".to_owned(), number(entry.ids.0)),
            ("gid".to_owned(), number(entry.ids.1)),
        ];
        let mut header = tar::Header::new_ustar();
        let mut content = Vec::new();
        header.set_entry_type(match &entry.kind {
            Kind::Directory => tar::EntryType::Directory,
            Kind::File(runs) => {
                content = runs.bytes();
                tar::EntryType::Regular
            }
            Kind::Symlink(target) => {
                records.push(("linkpath".to_owned(), target.clone().into_bytes()));
                tar::EntryType::Symlink
            }
            Kind::Fifo => tar::EntryType::Fifo,
        });
        for (name, value) in &entry.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        tar.append_pax_extensions(records).unwrap();
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Fails with a line about each difference.
fn check(tree: &BTreeMap<PathBuf, Entry>, format: Format) -> Result<(), String> {
    let bytes = to_tar(tree);
    let (out, _) = image_of_tar(&bytes, of_format(format));
    assert_clean(out.path());
    let (found, contents) = mounted(out.path(), true, |root| {
        let files = tree.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File(_)));
        let read = |(path, _): (&PathBuf, _)| (path.clone(), fs::read(root.join(path)).unwrap());
        (snapshot(root), files.map(read).collect::<BTreeMap<_, _>>())
    });
    let mut differences = Vec::new();
    if found.len() != tree.len() + 1 {
        differences.push(format!("{} entries instead of {}", found.len(), tree.len() + 1));
    }
    for (path, entry) in tree {
        let Some(facts) = found.get(path) else {
            differences.push(format!("{path:?} is missing"));
            continue;
        };
        let mut same = |what, same: bool| {
            if !same {
                differences.push(format!("{what} of {path:?} is wrong: {facts:?} of {entry:?}"));
            }
        };
        same("mode", facts.mode & 0o7777 == entry.mode);
        same("owner", facts.owner == entry.ids);
        same("time", facts.mtime == (entry.seconds as i64, 250_000_000));
        same("an attribute", facts.xattrs == entry.xattrs);
        match &entry.kind {
            Kind::File(runs) => same("content", contents[path] == runs.bytes()),
            Kind::Symlink(target) => same("target", facts.content == target.as_bytes()),
            Kind::Directory | Kind::Fifo => {}
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
}

/// A panic would stand far above the tree that proptest prints; the reason comes last as well.
fn checked(tree: &BTreeMap<PathBuf, Entry>, format: Format) -> Result<(), TestCaseError> {
    let outcome = std::panic::catch_unwind(|| check(tree, format));
    let reason = match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(reason)) => reason,
        Err(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "a panic, see above".to_owned(),
        },
    };
    Err(TestCaseError::fail(reason))
}

fn run(format: Format) {
    // More of them: PROPTEST_CASES=2000 cargo test -p linkspan-layer any_tree
    let cases = std::env::var("PROPTEST_CASES").map_or(40, |cases| cases.parse().unwrap());
    let mut runner = TestRunner::new(ProptestConfig::with_cases(cases));
    match runner.run(&tree(), |tree| checked(&tree, format)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, tree)) => panic!("{tree:#?}\nThe tree above fails: {reason}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn any_tree_survives_and_is_clean() {
    run(Format::Ext4);
}

#[test]
fn any_tree_survives_as_erofs_and_is_clean() {
    run(Format::Erofs);
}
