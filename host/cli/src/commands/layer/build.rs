//! `linkspan layer build`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use linkspan_layer::verity::VerityOptions;
use linkspan_layer::{LayerBuilder, Options, Summary, build_image, vhd};
use serde_json::json;

use super::unnamed::Unnamed;
use super::verity::Salt;
use crate::error::{Context, Error};
use crate::images::FormatName;
use crate::options::Global;
use crate::output;
use crate::progress::Progress;

/// Make a layer of a directory or a tar archive
///
/// The same source and options give the same bytes. The output has no name before it is complete.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan layer build layer.tar.gz --whiteouts -o layer.ext4
  linkspan layer build ./rootfs --verity --vhd -o layer.vhd
  docker export web | linkspan layer build - --format erofs -o web.erofs")]
pub(super) struct Build {
    /// Directory, tar archive (plain, gzip, zstd, xz, bzip2), or - for one on stdin
    source: PathBuf,
    /// The image
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Put it in place of a file that is there
    #[arg(short, long)]
    force: bool,
    /// The file system
    #[arg(long, value_enum, default_value_t)]
    format: FormatName,
    /// Turn the whiteouts of OCI layers (.wh.name) into those of overlayfs
    #[arg(long)]
    whiteouts: bool,
    /// Append a dm-verity hash tree
    #[arg(long)]
    verity: bool,
    /// Its salt in hexadecimal digits, or - for none [default: 32 zeros]
    #[arg(long, value_name = "HEX", requires = "verity")]
    salt: Option<Salt>,
    /// Append the footer of a fixed VHD
    #[arg(long)]
    vhd: bool,
    /// Volume label, 16 bytes at most
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

impl Build {
    pub(super) fn run(self, global: &Global) -> Result<u32, Error> {
        let mut label = [0; 16];
        let text = self.label.as_bytes();
        let room = label.get_mut(..text.len());
        let room = room.ok_or_else(|| Error::input("--label", "has more than 16 bytes"))?;
        room.copy_from_slice(text);
        let verity = self.verity.then(|| {
            let default = VerityOptions::default();
            VerityOptions {
                salt: self.salt.clone().map_or(default.salt.clone(), |s| s.0),
                ..default
            }
        });
        let options = Options {
            whiteouts: self.whiteouts,
            format: self.format.into(),
            verity,
            label,
            ..Options::default()
        };
        let output = Unnamed::beside(&self.output, "--output", self.force)?;
        let file = output.file();
        let summary = self.build(file, options, Progress::new(global))?;
        if self.vhd {
            let written = vhd::append_footer(file, summary.uuid);
            written.context(|| "write the footer".into())?;
        }
        output.place()?;
        self.tell(&summary, global)
    }

    fn build(&self, file: &File, options: Options, progress: Progress) -> Result<Summary, Error> {
        let mut bar = progress.transfer("making a layer of");
        let name = self.source.display().to_string();
        let report = |at: linkspan_layer::Progress| bar.at(&name, at.bytes, at.total);
        if self.source != Path::new("-") {
            return Ok(build_image(&self.source, file, options, report)?);
        }
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        let stdin = File::from(stdin.context(|| "read stdin".into())?);
        let mut builder = LayerBuilder::new(file, options)?.on_progress(report);
        builder.add_tar("stdin", stdin.take(u64::MAX))?;
        Ok(builder.finish()?)
    }

    fn tell(&self, summary: &Summary, global: &Global) -> Result<u32, Error> {
        let root = summary.verity.as_ref().map(|verity| verity.root_hex());
        if global.json {
            output::json(&json!({
                "path": self.output.to_string_lossy(),
                "disk_bytes": summary.bytes,
                "file_system_bytes": summary.file_system_bytes,
                "inodes": summary.inodes,
                "skipped_xattrs": summary.skipped_xattrs,
                "root_hash": root,
            }))?;
            return Ok(0);
        }
        let size = output::bytes(summary.bytes);
        output::line(format!("{}  {size}, {} inodes", self.output.display(), summary.inodes))?;
        if summary.skipped_xattrs > 0 {
            let skipped = summary.skipped_xattrs;
            output::line(format!("{skipped} attributes have no place in the file system"))?;
        }
        if let Some(root) = root {
            output::line(format!("root hash  {root}"))?;
        }
        Ok(0)
    }
}
