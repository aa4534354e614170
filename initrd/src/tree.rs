//! The files of the image, keyed by where they lie in the guest.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{Category, Error};

/// An absolute path in the guest: starts with `/`, has no `.`, `..` or empty component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPath(String);

impl GuestPath {
    /// The path with its leading `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// All directories above it except `/`, outermost first.
    fn ancestors(&self) -> impl Iterator<Item = Self> {
        self.0.match_indices('/').skip(1).map(|(at, _)| Self(self.0[..at].to_owned()))
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for GuestPath {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self, Error> {
        let bad = |reason| Error::GuestPath { path: path.into(), reason };
        let Some(inner) = path.strip_prefix('/') else {
            return Err(bad("is not absolute"));
        };
        if path.contains(['\0', '\n']) {
            return Err(bad("has a line break or NUL in it"));
        }
        if path.len() > 4095 {
            return Err(bad("is longer than 4095 bytes"));
        }
        for part in inner.split('/') {
            match part {
                "" => return Err(bad("has an empty component")),
                "." | ".." => return Err(bad("has a . or .. component")),
                _ => {}
            }
        }
        Ok(Self(path.into()))
    }
}

/// What lies at a path. Owner and group are always 0.
#[derive(Debug)]
pub(crate) enum Node {
    Directory { mode: u32 },
    File { mode: u32, data: Vec<u8> },
    Symlink { target: String },
    CharDevice { mode: u32, major: u32, minor: u32 },
}

impl Node {
    pub(crate) fn data(&self) -> &[u8] {
        match self {
            Self::File { data, .. } => data,
            Self::Symlink { target } => target.as_bytes(),
            Self::Directory { .. } | Self::CharDevice { .. } => &[],
        }
    }
}

/// An entry: what it is, what it is for, and who asked for it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) node: Node,
    pub(crate) category: Category,
    origin: String,
}

/// The image's files. Parent directories come into being with what lies in them.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    entries: BTreeMap<GuestPath, Entry>,
}

const DIRECTORY_MODE: u32 = 0o755;

impl Tree {
    /// Adds a node; `origin` says in an error where it came from.
    pub(crate) fn add(
        &mut self,
        path: &str,
        node: Node,
        category: Category,
        origin: impl Into<String>,
    ) -> Result<(), Error> {
        let path: GuestPath = path.parse()?;
        let origin = origin.into();
        for parent in path.ancestors() {
            match self.entries.get(&parent) {
                None => {
                    let node = Node::Directory { mode: DIRECTORY_MODE };
                    let entry = Entry { node, category: Category::Other, origin: "made".into() };
                    self.entries.insert(parent, entry);
                }
                Some(Entry { node: Node::Directory { .. }, .. }) => {}
                Some(other) => {
                    return Err(Error::NotADirectory {
                        path: path.to_string(),
                        parent: parent.0,
                        found: other.origin.clone(),
                    });
                }
            }
        }
        if let Some(first) = self.entries.get(&path) {
            return Err(Error::DuplicatePath {
                path: path.0,
                first: first.origin.clone(),
                second: origin,
            });
        }
        self.entries.insert(path, Entry { node, category, origin });
        Ok(())
    }

    pub(crate) fn contains(&self, path: &str) -> bool {
        path.parse().is_ok_and(|path: GuestPath| self.entries.contains_key(&path))
    }

    /// All entries, parents before what lies in them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&GuestPath, &Entry)> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Node {
        Node::File { mode: 0o644, data: Vec::new() }
    }

    #[test]
    fn a_guest_path_that_is_not_plain_is_refused_by_name() {
        for path in ["", "bin/sh", "/", "/a//b", "/a/", "/a/../b", "/./a", "/a\nb", "/a\0b"] {
            let error = path.parse::<GuestPath>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("guest path {path:?}")), "{error}");
        }
        assert_eq!("/a/..b/c".parse::<GuestPath>().unwrap().as_str(), "/a/..b/c");
    }

    #[test]
    fn parents_come_before_what_lies_in_them() {
        let mut tree = Tree::default();
        tree.add("/b/c/d", file(), Category::Other, "x").unwrap();
        tree.add("/b-e", file(), Category::Other, "x").unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path.as_str()).collect();
        for (index, path) in paths.iter().enumerate() {
            let parent = &path[..path.rfind('/').unwrap()];
            assert!(parent.is_empty() || paths[..index].contains(&parent), "{path} in {paths:?}");
        }
        assert_eq!(paths.len(), 4);
    }

    #[test]
    fn a_path_given_twice_names_both_givers() {
        let mut tree = Tree::default();
        tree.add("/init", file(), Category::Agent, "agent \"a\"").unwrap();
        let error = tree.add("/init", file(), Category::Other, "--add \"b\"").unwrap_err();
        assert_eq!(
            error.to_string(),
            "guest path /init is given twice: agent \"a\" and --add \"b\""
        );
    }

    #[test]
    fn nothing_can_be_put_below_a_file() {
        let mut tree = Tree::default();
        tree.add("/etc", file(), Category::Other, "--add \"etc\"").unwrap();
        let error = tree.add("/etc/x", file(), Category::Other, "--add \"x\"").unwrap_err();
        assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
    }
}
