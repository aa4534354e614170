//! `linkspan layer diff`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use linkspan_layer::{Aspect, Change, DiffOptions, Difference, Field, diff};
use serde_json::{Value, json};

use crate::error::Error;
use crate::options::Global;
use crate::output;
use crate::progress::Progress;

/// Exit codes, which are those of diff(1).
const SAME: u32 = 0;
const DIFFERENT: u32 = 1;
const TROUBLE: u32 = 2;

/// Say in what two layers differ
///
/// Either is a directory, a tar archive or an image; neither is mounted. A line that begins with -
/// is a name that only the first has, + one that only the second has, ~ one that both have, with
/// what is not the same. How a file lies in its image does not count, and a hole is zeros.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit code: 0 if they are the same, 1 if not, 2 if one cannot be read.

Examples:
  linkspan layer diff layer.tar.gz layer.erofs
  linkspan layer diff --whiteouts layer.tar layer.ext4   # an image that was built with --whiteouts
  linkspan layer diff --ignore time,owner ./rootfs layer.vhd")]
pub(super) struct Diff {
    /// Directory, archive or image
    first: PathBuf,
    /// Directory, archive or image
    second: PathBuf,
    /// What does not count, separated by commas
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    ignore: Vec<What>,
    /// Take the whiteouts of OCI layers (.wh.name) for those of overlayfs
    #[arg(long)]
    whiteouts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Type,
    Mode,
    Owner,
    Time,
    Xattrs,
    Links,
    Content,
}

impl From<What> for Aspect {
    fn from(what: What) -> Self {
        match what {
            What::Type => Self::Type,
            What::Mode => Self::Mode,
            What::Owner => Self::Owner,
            What::Time => Self::Time,
            What::Xattrs => Self::Xattrs,
            What::Links => Self::Links,
            What::Content => Self::Content,
        }
    }
}

impl Diff {
    pub(super) fn run(self, global: &Global) -> Result<u32, Error> {
        let options = DiffOptions {
            whiteouts: self.whiteouts,
            ignored: self.ignore.into_iter().map(Aspect::from).collect(),
        };
        let mut bar = Progress::new(global).transfer("comparing");
        let name = format!("{} and {}", self.first.display(), self.second.display());
        let report = |at: linkspan_layer::Progress| bar.at(&name, at.bytes, at.total);
        let found = diff(&self.first, &self.second, &options, report);
        drop(bar);
        let differences = match found {
            Ok(differences) => differences,
            Err(error) => {
                crate::tell(&Error::from(error).report(), global);
                return Ok(TROUBLE);
            }
        };
        if global.json {
            let differences: Vec<Value> = differences.iter().map(described).collect();
            output::json(&json!({"same": differences.is_empty(), "differences": differences}))?;
        } else {
            for difference in &differences {
                output::line(shown(difference))?;
            }
        }
        Ok(if differences.is_empty() { SAME } else { DIFFERENT })
    }
}

fn shown(difference: &Difference) -> String {
    let path = printable(&difference.path);
    let entries = |count: &u64| match count {
        1 => String::new(),
        count => format!(" ({count} entries)"),
    };
    match &difference.change {
        Change::Removed(count) => format!("- {path}{}", entries(count)),
        Change::Added(count) => format!("+ {path}{}", entries(count)),
        Change::Changed(fields) => {
            let field = |field: &Field| {
                let [before, after] =
                    [&field.before, &field.after].map(|text| printable(text.as_bytes()));
                format!("{} {before} -> {after}", field.aspect)
            };
            format!("~ {path}  {}", fields.iter().map(field).collect::<Vec<_>>().join("; "))
        }
        _ => format!("? {path}"),
    }
}

/// What has no meaning on a terminal is written as in a string.
fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok("") => ".".to_owned(),
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        Ok(text) => text
            .chars()
            .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
            .collect(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

fn described(difference: &Difference) -> Value {
    let mut value = json!({"path": String::from_utf8_lossy(&difference.path)});
    if std::str::from_utf8(&difference.path).is_err() {
        let digits = difference.path.iter().map(|byte| format!("{byte:02x}"));
        value["path_hex"] = json!(digits.collect::<String>());
    }
    match &difference.change {
        Change::Removed(count) => {
            value["change"] = json!("removed");
            value["entries"] = json!(count);
        }
        Change::Added(count) => {
            value["change"] = json!("added");
            value["entries"] = json!(count);
        }
        Change::Changed(fields) => {
            value["change"] = json!("changed");
            let field = |field: &Field| {
                json!({
                    "aspect": field.aspect.to_string(),
                    "before": field.before,
                    "after": field.after,
                })
            };
            value["fields"] = fields.iter().map(field).collect();
        }
        _ => {}
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_move_the_cursor() {
        assert_eq!(printable(b"a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(printable(b"\xff/x"), "\\xff/x");
        assert_eq!(printable("\u{e4} b".as_bytes()), "\u{e4} b");
        assert_eq!(printable(b""), ".");
    }
}
