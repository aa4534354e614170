//! `linkspan version`.

use clap::Args;
use serde_json::json;

use crate::error::Error;
use crate::options::Global;
use crate::output;

/// Print the version
#[derive(Args, Debug)]
pub(crate) struct Version {}

impl Version {
    pub(crate) fn run(&self, global: &Global) -> Result<u32, Error> {
        let version = env!("CARGO_PKG_VERSION");
        let protocol = linkspan_host::protocol::VERSION;
        match global.json {
            true => output::json(&json!({
                "version": version,
                "bridge_protocol": protocol,
                "os": std::env::consts::OS,
                "architecture": std::env::consts::ARCH,
            }))?,
            false => output::line(format!("linkspan {version} (GCS bridge protocol {protocol})"))?,
        }
        Ok(0)
    }
}
