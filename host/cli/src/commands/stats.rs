//! `linkspan stats`: what the guest's kernel counts for a container.

use clap::Args;

use super::UvmName;
use crate::control::{Reply, Request};
use crate::error::Error;
use crate::options::Global;
use crate::{client, output};

/// Print what the guest's kernel counts for a container, as JSON
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan stats web
  linkspan stats --uvm dev web | jq .memory")]
pub(crate) struct Stats {
    #[command(flatten)]
    uvm: UvmName,
    /// Which container
    container: String,
}

impl Stats {
    pub(crate) async fn run(self, _: &Global) -> Result<u32, Error> {
        let request = Request::Statistics { container: self.container };
        match client::ask(&self.uvm.place()?, &request).await? {
            Reply::Statistics { statistics } => output::json(&statistics)?,
            _ => return Err(client::unexpected()),
        }
        Ok(0)
    }
}
