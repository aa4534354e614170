//! `linkspan layer mount`.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use linkspan_layer::{Kind, detect};
use serde_json::json;

use crate::error::{Context, Error};
use crate::options::Global;
use crate::output;

/// Mount an image on this machine, read-only; `umount DIR` undoes it
///
/// Takes root, and this machine's kernel to know the file system. A hash tree is not used: check it
/// with `linkspan layer verity verify`.
#[derive(Args, Debug)]
pub(super) struct Mount {
    /// ext4 or EROFS, raw or in a fixed VHD
    image: PathBuf,
    /// A directory that is there
    directory: PathBuf,
}

impl Mount {
    pub(super) fn run(self, global: &Global) -> Result<u32, Error> {
        let options = match detect(&self.image)? {
            Kind::Ext4 { .. } | Kind::Vhd { .. } | Kind::Erofs { .. } => "loop,ro,nosuid,nodev",
            _ => {
                let image = self.image.display();
                let reason = format!("{image} is no image; `linkspan layer build` makes one of it");
                return Err(Error::input("IMAGE", reason));
            }
        };
        let mut mount = Command::new("mount");
        mount.args(["-o", options, "--"]).arg(&self.image).arg(&self.directory);
        let output = mount.output().context(|| "run mount".into())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::input("IMAGE", format!("it cannot be mounted: {said}")));
        }
        match global.json {
            true => output::json(&json!({"path": self.image, "mounted_at": self.directory}))?,
            false => output::line(self.directory.display())?,
        }
        Ok(0)
    }
}
