//! `linkspan rm`: removes containers.

use clap::Args;
use serde_json::json;

use super::UvmName;
use crate::control::{Reply, Request};
use crate::error::Error;
use crate::options::Global;
use crate::{client, output};

/// Remove containers
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan rm web
  linkspan rm -f --uvm dev web db")]
pub(crate) struct Rm {
    #[command(flatten)]
    uvm: UvmName,
    /// Kill one that is running
    #[arg(short, long)]
    force: bool,
    /// Which containers
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Rm {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        let place = self.uvm.place()?;
        for container in &self.containers {
            let request = Request::Remove { container: container.clone(), force: self.force };
            let Reply::Done = client::ask(&place, &request).await? else {
                return Err(client::unexpected());
            };
            if !global.json {
                output::line(container)?;
            }
        }
        if global.json {
            output::json(&json!({ "removed": self.containers }))?;
        }
        Ok(0)
    }
}
