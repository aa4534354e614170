//! `linkspan layer`: layers as disk images.

mod build;
mod diff;
mod extract;
mod inspect;
mod mount;
mod unnamed;
mod verity;

use clap::{Args, Subcommand};

use crate::error::Error;
use crate::options::Global;

/// Make layers, look at them, take them apart
#[derive(Args, Debug)]
pub(crate) struct Layer {
    #[command(subcommand)]
    command: LayerCommand,
}

#[derive(Subcommand, Debug)]
enum LayerCommand {
    Build(build::Build),
    Diff(diff::Diff),
    Extract(extract::Extract),
    Inspect(inspect::Inspect),
    Mount(mount::Mount),
    Verity(verity::Verity),
}

impl Layer {
    pub(crate) fn run(self, global: &Global) -> Result<u32, Error> {
        match self.command {
            LayerCommand::Build(build) => build.run(global),
            LayerCommand::Diff(diff) => diff.run(global),
            LayerCommand::Extract(extract) => extract.run(global),
            LayerCommand::Inspect(inspect) => inspect.run(global),
            LayerCommand::Mount(mount) => mount.run(global),
            LayerCommand::Verity(verity) => verity.run(global),
        }
    }
}
