//! `linkspan layer inspect`.

use std::fs::File;
use std::path::PathBuf;

use clap::Args;
use linkspan_layer::{Kind, detect, file_system_size, verity, vhd};
use serde_json::{Value, json};

use super::verity::described;
use crate::error::{Context, Error};
use crate::options::Global;
use crate::output;

/// Say what a file or directory is, as a layer
#[derive(Args, Debug)]
pub(super) struct Inspect {
    /// Directory, archive or image
    layer: PathBuf,
}

impl Inspect {
    pub(super) fn run(self, global: &Global) -> Result<u32, Error> {
        let path = &self.layer;
        let (kind, size) = match detect(path)? {
            Kind::Directory => ("directory".to_owned(), None),
            Kind::Tar(compression) => {
                (format!("tar archive, compression {}", compression.name()), None)
            }
            Kind::Ext4 { size } => ("ext4".to_owned(), Some(size)),
            Kind::Erofs { size } => ("EROFS".to_owned(), Some(size)),
            Kind::Vhd { payload_size } => ("fixed VHD".to_owned(), Some(payload_size)),
            _ => ("a layer".to_owned(), None),
        };
        let mut lines = vec![("kind", kind.clone())];
        let mut document = json!({"path": path, "kind": kind, "disk_bytes": size});
        if let Some(size) = size {
            let file = File::open(path).context(|| format!("open {}", path.display()))?;
            let read = || format!("read {}", path.display());
            lines.push(("disk", format!("{size} bytes")));
            if let Some(data) = file_system_size(&file).context(read)? {
                lines.push(("file system", format!("{data} bytes")));
                document["file_system_bytes"] = json!(data);
                let tree = verity::read(&file, data)?;
                document["verity"] = tree.as_ref().map_or(Value::Null, |t| described(path, t));
                let root = tree.map_or("none".to_owned(), |tree| tree.root_hex());
                lines.push(("root hash", root));
            }
            if let Some(footer) = vhd::read_footer(&file).context(read)? {
                let id: String =
                    footer.unique_id.iter().map(|byte| format!("{byte:02x}")).collect();
                document["vhd_id"] = json!(id);
                lines.push(("VHD id", id));
            }
        }
        if global.json {
            output::json(&document)?;
            return Ok(0);
        }
        for (label, value) in lines {
            output::line(format!("{label:11}  {value}"))?;
        }
        Ok(0)
    }
}
