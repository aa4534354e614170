//! `linkspan wait`: until a container has exited.

use clap::Args;
use serde_json::json;

use super::UvmName;
use crate::control::{Reply, Request};
use crate::error::Error;
use crate::options::Global;
use crate::{client, output};

/// Wait until a container has exited, and print its exit code
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan wait web
  code=$(linkspan wait --uvm dev job)")]
pub(crate) struct Wait {
    #[command(flatten)]
    uvm: UvmName,
    /// Which container
    container: String,
}

impl Wait {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        let request = Request::Wait { container: self.container.clone() };
        let Reply::Exited { code } = client::ask(&self.uvm.place()?, &request).await? else {
            return Err(client::unexpected());
        };
        match global.json {
            true => output::json(&json!({ "id": self.container, "exit_code": code }))?,
            false => output::line(code)?,
        }
        Ok(0)
    }
}
