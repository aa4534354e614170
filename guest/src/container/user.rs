//! Names of users and groups, looked up in a container's own files.
//!
//! The files belong to the image: they are opened so that no symbolic link leads out of the
//! container's root.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use serde_json::{Value, json};

use crate::error::Context;
use crate::{Error, Result};

/// Larger files than this are not read: an image could fill the agent's memory.
const LARGEST: u64 = 4 << 20;

/// Sets `user.uid` and `user.gid` of an OCI process from its `user.username`, if it has one:
/// `user`, `uid`, `user:group`, `uid:gid` and the mixed forms.
pub(super) fn resolve(process: &mut Value, root: &Path) -> Result<()> {
    let Some(text) = process["user"]["username"].as_str().filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let (uid, gid) = lookup(text, |name| read(root, name))?;
    process["user"]["uid"] = json!(uid);
    process["user"]["gid"] = json!(gid);
    Ok(())
}

fn lookup(text: &str, read: impl Fn(&str) -> Result<String>) -> Result<(u32, u32)> {
    let bad = |reason: String| Error::Argument { field: "user", reason };
    let (user, group) = match text.split_once(':') {
        Some((_, group)) if group.contains(':') => {
            return Err(bad(format!("{text:?} has more than one colon")));
        }
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = |what: &str, text: &str| match text.parse::<i64>() {
        Ok(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| bad(format!("{what} {number} is not between 0 and {}", u32::MAX))),
        Err(_) => Ok(None),
    };
    let field = |entry: &[&str], at: usize| entry.get(at).and_then(|text| text.parse().ok());

    let (uid, own_gid) = match number("uid", user)? {
        Some(uid) => {
            // Without the file, or an entry in it, a number stands for itself.
            let found = read("etc/passwd").ok().and_then(|passwd| only(&passwd, 2, user));
            (uid, found.and_then(|entry| field(&split(&entry), 3)).unwrap_or(0))
        }
        None => {
            let entry = only(&read("etc/passwd")?, 0, user)
                .ok_or_else(|| bad(format!("{user:?} is not in the container's /etc/passwd")))?;
            match (field(&split(&entry), 2), field(&split(&entry), 3)) {
                (Some(uid), Some(gid)) => (uid, gid),
                _ => return Err(bad(format!("{user:?} has no ids in {entry:?}"))),
            }
        }
    };
    let gid = match group {
        None => own_gid,
        Some(group) => match number("gid", group)? {
            Some(gid) => gid,
            None => only(&read("etc/group")?, 0, group)
                .and_then(|entry| field(&split(&entry), 2))
                .ok_or_else(|| {
                    bad(format!("group {group:?} is not in the container's /etc/group"))
                })?,
        },
    };
    Ok((uid, gid))
}

fn split(entry: &str) -> Vec<&str> {
    entry.split(':').collect()
}

/// The one line whose field at `at` is `value`; two such lines say nothing.
fn only(table: &str, at: usize, value: &str) -> Option<String> {
    let mut matching = table.lines().filter(|line| split(line).get(at) == Some(&value));
    match (matching.next(), matching.next()) {
        (Some(line), None) => Some(line.to_owned()),
        _ => None,
    }
}

fn read(root: &Path, name: &str) -> Result<String> {
    let what = || format!("read /{name} of the container");
    let read = || -> io::Result<String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(root, flags, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file: File = openat2(root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT)?.into();
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: &str) -> Result<String> {
        Ok(match name {
            "etc/passwd" => {
                "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/:/bin/sh\nd:x:1:1:\nd:x:2:2:\n"
            }
            _ => "root:x:0:\nstaff:x:50:web\n",
        }
        .to_owned())
    }

    #[test]
    fn every_form_of_a_user_is_understood() {
        for (text, ids) in [
            ("web", (33, 34)),
            ("33", (33, 34)),
            ("7", (7, 0)),
            ("web:staff", (33, 50)),
            ("web:9", (33, 9)),
            ("8:staff", (8, 50)),
            ("1000:1000", (1000, 1000)),
        ] {
            assert_eq!(lookup(text, files).unwrap(), ids, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_is_refused() {
        for text in ["nobody", "d", "web:none", "a:b:c", "-1", "4294967296", "1:-5"] {
            assert!(lookup(text, files).is_err(), "{text}");
        }
    }

    #[test]
    fn an_images_symlink_does_not_lead_out_of_its_root() {
        let root = std::env::temp_dir().join(format!("linkspan-user-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("etc/passwd")).unwrap();
        assert!(read(&root, "etc/passwd").is_err(), "the link ends in itself inside the root");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
