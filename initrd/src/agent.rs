//! Programs the guest runs: read, and checked to be able to run there.

use std::{fs, path::Path, path::PathBuf};

use crate::{Error, GuestPath, elf, tree::Tree};

/// An agent of somebody else's that our `/init` supervises instead of serving the bridge itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignAgent {
    /// The file on the building machine.
    pub file: PathBuf,
    /// Where it lies in the guest.
    pub guest_path: GuestPath,
    /// Its arguments, without its own name.
    pub args: Vec<String>,
}

impl ForeignAgent {
    /// `file` as `/bin/<its name>`.
    ///
    /// # Errors
    ///
    /// When `file` has no name that can stand in a guest path.
    pub fn new(file: impl Into<PathBuf>, args: Vec<String>) -> Result<Self, Error> {
        let file = file.into();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let guest_path = format!("/bin/{name}").parse()?;
        Ok(Self { file, guest_path, args })
    }

    /// The text of `/etc/linkspan/agent`: its path, then one argument a line.
    pub(crate) fn config(&self) -> Result<String, Error> {
        let mut text = format!("{}\n", self.guest_path);
        for argument in &self.args {
            if argument.contains(['\n', '\0']) {
                return Err(Error::BadArgument { argument: argument.clone() });
            }
            text.push_str(argument);
            text.push('\n');
        }
        Ok(text)
    }
}

/// Reads a regular file and says what it was wanted for if it cannot be.
pub(crate) fn read_file(what: &'static str, path: &Path) -> Result<(Vec<u8>, fs::Metadata), Error> {
    let meta = fs::metadata(path).map_err(Error::read(what, path))?;
    if !meta.is_file() {
        return Err(Error::NotAFile { what, path: path.into() });
    }
    Ok((fs::read(path).map_err(Error::read(what, path))?, meta))
}

/// Checks that the program can start in a guest made of `tree`.
pub(crate) fn check_program(
    what: &'static str,
    path: &Path,
    data: &[u8],
    tree: &Tree,
) -> Result<(), Error> {
    let not_executable = |reason| Error::NotExecutable { what, path: path.into(), reason };
    match elf::interpreter(data).map_err(not_executable)? {
        Some(interpreter) if !tree.contains(&interpreter) => {
            Err(Error::NeedsInterpreter { what, path: path.into(), interpreter })
        }
        _ => Ok(()),
    }
}
