//! `linkspan kill`: a signal to a container's init.

use clap::Args;
use serde_json::json;

use super::UvmName;
use crate::control::{Reply, Request};
use crate::error::Error;
use crate::options::{Global, signal};
use crate::{client, output, signals};

/// Send a signal to a container's init
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan kill web
  linkspan kill --signal 9 --uvm dev web
  linkspan kill -s SIGHUP web")]
pub(crate) struct Kill {
    #[command(flatten)]
    uvm: UvmName,
    /// Name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: i32,
    /// Which container
    container: String,
}

impl Kill {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        let (container, number) = (self.container, self.signal);
        let request = Request::Signal { container: container.clone(), number };
        let Reply::Done = client::ask(&self.uvm.place()?, &request).await? else {
            return Err(client::unexpected());
        };
        match global.json {
            true => output::json(&json!({ "id": container, "signal": signals::name(number) }))?,
            false => output::line(container)?,
        }
        Ok(0)
    }
}
