//! `linkspan completions`.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::error::Error;
use crate::output;

/// Print a shell's completion script
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan completions bash >~/.local/share/bash-completion/completions/linkspan
  linkspan completions fish >~/.config/fish/completions/linkspan.fish")]
pub(crate) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self, mut command: Command) -> Result<u32, Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "linkspan", &mut script);
        output::line(String::from_utf8_lossy(&script).trim_end())?;
        Ok(0)
    }
}
