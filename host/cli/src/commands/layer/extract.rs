//! `linkspan layer extract`.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use linkspan_layer::{
    ExtractOptions, Extracted, Problem, Whiteouts, extract_to_directory, extract_to_tar,
};
use serde_json::json;

use super::unnamed::Unnamed;
use crate::error::Error;
use crate::options::Global;
use crate::output;
use crate::progress::Progress;

/// Take an image apart: into a directory or a tar archive
///
/// All that is in it comes out: names, modes, owners, times, attributes, links, devices, holes. The
/// image is not mounted, and nothing that it holds is believed: whatever it is, nothing is written
/// outside the directory. A hash tree is not used: check it with `linkspan layer verity verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan layer extract layer.ext4 -o ./rootfs
  linkspan layer extract layer.vhd --tar layer.tar --whiteouts oci
  linkspan layer extract layer.erofs --tar - | tar t")]
pub(super) struct Extract {
    /// ext4 or EROFS, raw or in a fixed VHD, with or without a hash tree
    image: PathBuf,
    /// A directory, which is made, or is there and empty
    #[arg(short, long, value_name = "DIR", required_unless_present = "tar")]
    output: Option<PathBuf>,
    /// A tar archive instead, or - for one on stdout
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    tar: Option<PathBuf>,
    /// Put the archive in place of a file that is there
    #[arg(short, long, requires = "tar")]
    force: bool,
    /// How the result says that a layer below has something that is not to be seen
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    whiteouts: Form,
    /// Leave out what takes root: owners, devices, some attributes
    #[arg(long, conflicts_with = "tar")]
    rootless: bool,
    /// How much data all files together may have, in MiB
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    max_mib: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// As the image has it
    #[default]
    Keep,
    /// Character devices 0:0, and an attribute of directories
    Overlay,
    /// Files named .wh.NAME and .wh..wh..opq
    Oci,
}

impl Extract {
    pub(super) fn run(self, global: &Global) -> Result<u32, Error> {
        let options = ExtractOptions {
            whiteouts: match self.whiteouts {
                Form::Keep => Whiteouts::Keep,
                Form::Overlay => Whiteouts::Overlay,
                Form::Oci => Whiteouts::Oci,
            },
            rootless: self.rootless,
            max_bytes: self.max_mib.saturating_mul(1 << 20),
        };
        let mut bar = Progress::new(global).transfer("extracting");
        let name = self.image.display().to_string();
        let report = |at: linkspan_layer::Progress| bar.at(&name, at.bytes, at.total);
        let (extracted, target) = match (&self.tar, &self.output) {
            (Some(path), _) if path == Path::new("-") => {
                let out = BufWriter::new(io::stdout().lock());
                extract_to_tar(&self.image, out, "stdout", &options, report)?;
                return Ok(0);
            }
            (Some(path), _) => {
                let output = Unnamed::beside(path, "--tar", self.force)?;
                let shown = path.display().to_string();
                let mut out = BufWriter::with_capacity(256 << 10, output.file());
                let extracted = extract_to_tar(&self.image, &mut out, &shown, &options, report)?;
                drop(out);
                output.place()?;
                (extracted, path)
            }
            (None, Some(path)) => {
                (extract_to_directory(&self.image, path, &options, report).map_err(explain)?, path)
            }
            (None, None) => return Err(Error::input("--output", "is missing")),
        };
        drop(bar);
        tell(&extracted, target, global)
    }
}

/// Says what to do without rights.
fn explain(error: linkspan_layer::Error) -> Error {
    match &error {
        linkspan_layer::Error::Extract { entry, problem: Problem::TakesRoot, .. } => {
            let reason =
                format!("{entry:?} takes root to extract; --rootless leaves such things out");
            Error::input("IMAGE", reason)
        }
        _ => error.into(),
    }
}

fn tell(extracted: &Extracted, target: &Path, global: &Global) -> Result<u32, Error> {
    let Extracted { entries, bytes, skipped_xattrs, left_out, .. } = *extracted;
    if global.json {
        output::json(&json!({
            "path": target.to_string_lossy(),
            "entries": entries,
            "data_bytes": bytes,
            "skipped_xattrs": skipped_xattrs,
            "left_out": left_out,
        }))?;
        return Ok(0);
    }
    let size = output::bytes(bytes);
    output::line(format!("{}  {entries} entries, {size} of data", target.display()))?;
    if skipped_xattrs > 0 {
        output::line(format!("{skipped_xattrs} attributes have no place outside the image"))?;
    }
    if left_out > 0 {
        output::line(format!("{left_out} left out, which take root or have no place there"))?;
    }
    Ok(0)
}
