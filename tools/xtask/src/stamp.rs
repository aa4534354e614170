//! Remembers what an output was made from, so that it is made again only when that changes.

use std::{env, fs, io, path::Path, path::PathBuf};

use anyhow::Context;

/// Inputs as they are now, and the file that says how they were.
pub(crate) struct Stamp {
    file: PathBuf,
    now: String,
}

impl Stamp {
    /// A stamp in `file` for what is made from `inputs`, by this very program.
    pub(crate) fn new(file: PathBuf, inputs: &[&Path]) -> anyhow::Result<Self> {
        let program = env::current_exe().context("cannot find this program's own file")?;
        let mut now = String::new();
        for input in inputs.iter().copied().chain([program.as_path()]) {
            let line =
                identity(input).with_context(|| format!("cannot look at {}", input.display()))?;
            now.push_str(&line);
        }
        Ok(Self { file, now })
    }

    /// Whether all `outputs` are there, made from the same inputs.
    pub(crate) fn holds(&self, outputs: &[PathBuf]) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|was| was == self.now)
            && outputs.iter().all(|output| output.exists())
    }

    /// Forgets what was made: half of it may be there soon.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Says that the outputs are made.
    pub(crate) fn set(&self) -> anyhow::Result<()> {
        fs::write(&self.file, &self.now)
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

fn identity(input: &Path) -> io::Result<String> {
    let meta = fs::metadata(input)?;
    let changed = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{} {} {}\n", input.display(), meta.len(), changed.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_until_an_input_or_an_output_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        let stamp = || Stamp::new(dir.path().join("stamp"), &[&input]).unwrap();
        fs::write(&input, "1").unwrap();
        let outputs = [output.clone()];
        assert!(!stamp().holds(&outputs));
        fs::write(&output, "").unwrap();
        stamp().set().unwrap();
        assert!(stamp().holds(&outputs));
        fs::write(&input, "12").unwrap();
        assert!(!stamp().holds(&outputs));
        stamp().set().unwrap();
        fs::remove_file(&output).unwrap();
        assert!(!stamp().holds(&outputs));
        fs::write(&output, "").unwrap();
        stamp().clear().unwrap();
        assert!(!stamp().holds(&outputs));
        stamp().clear().unwrap();
    }
}
