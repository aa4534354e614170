//! Images in tar archives: `oci-archive`, and what `docker save` writes, old and new.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::blob::{self, Source};
use crate::document::{Descriptor, MAX_DOCUMENT};
use crate::error::{At, Error, Result};
use crate::store::Store;
use crate::{Digest, Progress};

/// More members than any archive of images has.
const MAX_MEMBERS: usize = 1 << 16;

/// An archive whose members are known by name.
pub(crate) struct Archive {
    path: PathBuf,
    file: File,
    members: HashMap<String, Member>,
}

#[derive(Clone)]
enum Member {
    /// Offset and length in bytes.
    Data(u64, u64),
    /// Another name; old `docker save` links layers that are there twice.
    Link(String),
}

/// An image of `manifest.json`, as `docker save` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Saved {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) layers: Vec<String>,
}

impl Archive {
    /// Reads the names of all members. A compressed archive is unpacked to an unnamed file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).at("open", path)?;
        let mut start = [0; 6];
        let compressed = match file.read_exact_at(&mut start, 0) {
            Ok(()) => linkspan_layer::Compression::of(&start) != linkspan_layer::Compression::None,
            Err(_) => false,
        };
        let file = match compressed {
            false => file,
            true => {
                let mut plain = tempfile::tempfile().at("make an unnamed file for", path)?;
                let mut reader = linkspan_layer::decompress(file).at("uncompress", path)?;
                io::copy(&mut reader, &mut plain).at("uncompress", path)?;
                plain
            }
        };
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(At0 { file: &file, offset: 0 });
        for entry in archive.entries_with_seek().at("read", path)? {
            let entry = entry.at("read the archive", path)?;
            let name = clean(&String::from_utf8_lossy(&entry.path_bytes()));
            let member = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    Member::Data(entry.raw_file_position(), entry.size())
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let symbolic = entry.header().entry_type().is_symlink();
                    Member::Link(resolve(&name, &target, symbolic))
                }
                _ => continue,
            };
            members.insert(name, member);
            if members.len() > MAX_MEMBERS {
                let reason = format!("it has more than {MAX_MEMBERS} members");
                return Err(Error::NotAnImage { path: path.to_owned(), reason });
            }
        }
        Ok(Self { path: path.to_owned(), file, members })
    }

    /// Looks at the first members only, for a root file system may have very many.
    pub(crate) fn begins_like_one(path: &Path) -> io::Result<bool> {
        let file = File::open(path)?;
        let mut archive = tar::Archive::new(At0 { file: &file, offset: 0 });
        for entry in archive.entries_with_seek()?.take(8) {
            let name = clean(&String::from_utf8_lossy(&entry?.path_bytes()));
            if matches!(name.as_str(), "oci-layout" | "index.json" | "manifest.json")
                || name.starts_with("blobs/sha256")
                || (name.len() > 64 && name.bytes().take(64).all(|byte| byte.is_ascii_hexdigit()))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// A member and its length.
    pub(crate) fn member(&self, name: &str) -> Result<(impl Read + use<'_>, u64)> {
        let mut name = clean(name);
        for _ in 0..8 {
            match self.members.get(&name) {
                Some(Member::Data(offset, size)) => {
                    let reader = At0 { file: &self.file, offset: *offset };
                    return Ok((reader.take(*size), *size));
                }
                Some(Member::Link(target)) => name.clone_from(target),
                None => break,
            }
        }
        let reason = format!("it has no member {name:?}, which it speaks of");
        Err(Error::NotAnImage { path: self.path.clone(), reason })
    }

    /// A short member.
    pub(crate) fn document(&self, name: &str) -> Result<Vec<u8>> {
        let (mut reader, size) = self.member(name)?;
        if size > MAX_DOCUMENT {
            let reason = format!("it has {size} bytes; {MAX_DOCUMENT} are possible");
            return Err(Error::document(format!("{} in {}", name, self.path.display()), reason));
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).at("read", &self.path)?;
        Ok(bytes)
    }
}

impl Source for Archive {
    fn fetch(
        &self,
        store: &Store,
        blob: &Descriptor,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let name = blob_name(&blob.digest);
        if !self.has(&name) {
            return Err(Error::MissingBlob(blob.digest.clone()));
        }
        blob::copy(store, self.member(&name)?.0, blob, progress)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Names are keys here and no paths: nothing is ever written by them.
fn clean(name: &str) -> String {
    let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.collect::<Vec<_>>().join("/")
}

fn resolve(name: &str, target: &str, symbolic: bool) -> String {
    if !symbolic {
        return clean(target);
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Reads a shared file at an offset of its own.
struct At0<'f> {
    file: &'f File,
    offset: u64,
}

impl Read for At0<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl io::Seek for At0<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let target = match to {
            io::SeekFrom::Start(offset) => Some(offset),
            io::SeekFrom::Current(by) => self.offset.checked_add_signed(by),
            io::SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.offset = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_names_within_the_archive() {
        assert_eq!(resolve("a/layer.tar", "../b/layer.tar", true), "b/layer.tar");
        assert_eq!(resolve("a/layer.tar", "../../../etc/passwd", true), "etc/passwd");
        assert_eq!(resolve("a/x", "./b/y", false), "b/y");
    }
}
