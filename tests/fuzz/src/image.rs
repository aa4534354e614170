//! Any container image: it is taken or refused, and a store holds nothing of one that was refused.
//!
//! The input is three documents, parted by lines of `---`: index, manifest, configuration. In the
//! first two, `@MANIFEST@` and `@CONFIG@` stand for the digest of the document, `0@M@` and `0@C@` for
//! its length.

use std::fs;
use std::path::Path;

use linkspan_image::{Platform, Store, import};
use sha2::{Digest, Sha256};

/// Tries an input.
pub fn run(input: &[u8]) {
    let mut parts = split(input).into_iter();
    let mut part = || parts.next().unwrap_or_default();
    let (index, manifest, config) = (part(), part(), part());
    let manifest = filled(manifest, "@CONFIG@", "0@C@", &config);
    let index = filled(index, "@MANIFEST@", "0@M@", &manifest);
    let directory = tempfile::tempdir().expect("make a directory");
    let layout = directory.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("make directories");
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
    write(&layout.join("index.json"), &index);
    for blob in [&manifest, &config] {
        write(&blobs.join(hash(blob)), blob);
    }
    let store = Store::open(directory.path().join("store")).expect("open a store");
    let name = "example.org/fuzz:1".parse().expect("a name");
    let taken = import(&store, &layout, Some(&name), &Platform::of_this_machine(), &mut |_| {});
    assert_eq!(store.images().expect("list the store").len(), usize::from(taken.is_ok()));
}

fn split(input: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    for line in input.split_inclusive(|&byte| byte == b'\n') {
        match line {
            b"---\n" => parts.push(Vec::new()),
            _ => parts.last_mut().expect("there is one").extend_from_slice(line),
        }
    }
    parts
}

/// Puts a document's digest and length in.
fn filled(document: Vec<u8>, digest: &str, length: &str, of: &[u8]) -> Vec<u8> {
    match String::from_utf8(document) {
        Ok(text) => {
            let text = text.replace(digest, &format!("sha256:{}", hash(of)));
            text.replace(length, &of.len().to_string()).into_bytes()
        }
        Err(error) => error.into_bytes(),
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("write a file");
}
