//! What is mounted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::Context;

/// The mount points at `path` and below it, in the order in which they were mounted. A point
/// appears once for each mount that is stacked on it.
pub(crate) fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(points(&table()?).filter(|point| point.starts_with(path)).collect())
}

/// Whether something is mounted at exactly this path.
pub(crate) fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mounts_below(path)?.iter().any(|point| point == path))
}

/// The device numbers, as `major:minor`, and mount points of all mounts.
pub(crate) fn mounted_devices() -> Result<Vec<(String, PathBuf)>> {
    let table = table()?;
    let numbers = table.split(|&byte| byte == b'\n').filter_map(|line| {
        let numbers = line.split(|&byte| byte == b' ').nth(2)?;
        Some(String::from_utf8_lossy(numbers).into_owned())
    });
    Ok(numbers.zip(points(&table)).collect())
}

fn table() -> Result<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo".to_owned())
}

fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    table.split(|&byte| byte == b'\n').filter_map(|line| {
        let point = line.split(|&byte| byte == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescape(point))))
    })
}

/// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| {
            first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        });
        match digits {
            Some(digits) => {
                out.push(
                    digits
                        .iter()
                        .fold(0u8, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_names_are_compared_whole() {
        let table =
            b"22 1 0:1 / /run/a\\040b rw - tmpfs t rw\n23 1 0:2 / /run/ab rw - tmpfs t rw\n";
        let seen: Vec<_> = points(table).collect();
        assert_eq!(seen, [PathBuf::from("/run/a b"), PathBuf::from("/run/ab")]);
        assert!(!seen[1].starts_with("/run/a"));
    }
}
