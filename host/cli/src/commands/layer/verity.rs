//! `linkspan layer verity`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand};
use linkspan_layer::verity::{self, MAX_SALT, VerityOptions};
use linkspan_layer::vhd;
use serde_json::json;

use crate::error::{Context, Error};
use crate::options::Global;
use crate::output;
use crate::progress::Progress;

/// Make, check and show dm-verity hash trees
#[derive(Args, Debug)]
pub(super) struct Verity {
    #[command(subcommand)]
    command: VerityCommand,
}

#[derive(Subcommand, Debug)]
enum VerityCommand {
    /// Append a hash tree to an image, in place of one that it has; a VHD stays one
    Create {
        /// ext4 or EROFS, raw or in a fixed VHD
        image: PathBuf,
        /// The salt in hexadecimal digits, or - for none [default: 32 zeros]
        #[arg(long, value_name = "HEX")]
        salt: Option<Salt>,
    },
    /// Check every block of an image
    Verify {
        /// ext4 or EROFS with a hash tree
        image: PathBuf,
        /// What the root hash has to be; without it, the tree is believed
        #[arg(long, value_name = "HEX")]
        root_hash: Option<String>,
    },
    /// Print the root hash
    Root {
        /// ext4 or EROFS with a hash tree
        image: PathBuf,
    },
}

/// Bytes in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Salt(pub(super) Vec<u8>);

impl FromStr for Salt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = if text == "-" { "" } else { text };
        let bytes: Option<Vec<u8>> = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| {
                let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
                u8::from_str_radix(pair, 16).ok().filter(|_| !pair.starts_with('+'))
            })
            .collect();
        match bytes {
            Some(bytes) if bytes.len() <= MAX_SALT => Ok(Self(bytes)),
            Some(bytes) => Err(format!("it has {} bytes; {MAX_SALT} are possible", bytes.len())),
            None => Err(format!("{text:?} is not pairs of hexadecimal digits")),
        }
    }
}

impl Verity {
    pub(super) fn run(self, global: &Global) -> Result<u32, Error> {
        match self.command {
            VerityCommand::Create { image, salt } => create(&image, salt, global),
            VerityCommand::Verify { image, root_hash } => {
                verify(&image, root_hash.as_deref(), global)
            }
            VerityCommand::Root { image } => {
                let tree = read(&open(&image, false)?, &image)?;
                tell(&image, &tree, global)
            }
        }
    }
}

fn open(path: &Path, write: bool) -> Result<File, Error> {
    let file = File::options().read(true).write(write).open(path);
    file.context(|| format!("open {}", path.display()))
}

fn file_system_size(file: &File, path: &Path) -> Result<u64, Error> {
    let size = linkspan_layer::file_system_size(file);
    let size = size.context(|| format!("read {}", path.display()))?;
    size.ok_or_else(|| {
        Error::input("IMAGE", format!("{} holds neither ext4 nor EROFS", path.display()))
    })
}

fn read(file: &File, path: &Path) -> Result<verity::Verity, Error> {
    let size = file_system_size(file, path)?;
    verity::read(file, size)?.ok_or_else(|| {
        let path = path.display();
        let reason =
            format!("{path} has no hash tree; `linkspan layer verity create {path}` makes one");
        Error::input("IMAGE", reason)
    })
}

fn create(path: &Path, salt: Option<Salt>, global: &Global) -> Result<u32, Error> {
    let file = open(path, true)?;
    let size = file_system_size(&file, path)?;
    let footer = vhd::read_footer(&file).context(|| format!("read {}", path.display()))?;
    let length = file.metadata().context(|| format!("read {}", path.display()))?.len();
    if length < size {
        let reason = format!("{} is cut off: {length} of {size} bytes", path.display());
        return Err(Error::input("IMAGE", reason));
    }
    let default = VerityOptions::default();
    let options =
        VerityOptions { salt: salt.map_or(default.salt.clone(), |salt| salt.0), ..default };
    let mut bar = Progress::new(global).transfer("hashing");
    let name = path.display().to_string();
    let mut done = 0;
    let tree = verity::append(&file, size, &options, &mut |bytes| {
        done += bytes;
        bar.at(&name, done, Some(size));
    })?;
    drop(bar);
    if let Some(footer) = footer {
        let written = vhd::append_footer(&file, footer.unique_id);
        written.context(|| format!("write {}", path.display()))?;
    }
    tell(path, &tree, global)
}

fn verify(path: &Path, pinned: Option<&str>, global: &Global) -> Result<u32, Error> {
    let file = open(path, false)?;
    let tree = read(&file, path)?;
    if let Some(pinned) = pinned
        && !pinned.eq_ignore_ascii_case(&tree.root_hex())
    {
        let reason = format!("{} has {}, not {pinned}", path.display(), tree.root_hex());
        return Err(Error::input("--root-hash", reason));
    }
    let mut bar = Progress::new(global).transfer("checking");
    let (name, size) = (path.display().to_string(), tree.hash_offset());
    let mut done = 0;
    verity::verify(&file, &tree, &mut |bytes| {
        done += bytes;
        bar.at(&name, done, Some(size));
    })?;
    drop(bar);
    tell(path, &tree, global)
}

fn tell(path: &Path, tree: &verity::Verity, global: &Global) -> Result<u32, Error> {
    match global.json {
        true => output::json(&described(path, tree))?,
        false => output::line(tree.root_hex())?,
    }
    Ok(0)
}

pub(super) fn described(path: &Path, tree: &verity::Verity) -> serde_json::Value {
    json!({
        "path": path,
        "root_hash": tree.root_hex(),
        "salt": tree.salt_hex(),
        "algorithm": "sha256",
        "block_size": 4096,
        "data_blocks": tree.data_blocks,
        "hash_offset": tree.hash_offset(),
        "disk_bytes": tree.total_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_is_pairs_of_digits() {
        assert_eq!("00ff".parse(), Ok(Salt(vec![0, 255])));
        assert_eq!("-".parse(), Ok(Salt(Vec::new())));
        for text in ["0", "0g", "+1", "\u{e4}\u{e4}"] {
            assert!(text.parse::<Salt>().unwrap_err().contains(text));
        }
        assert!("00".repeat(257).parse::<Salt>().unwrap_err().contains("257"));
    }
}
