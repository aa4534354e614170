//! `linkspan ps`: the containers.

use std::time::Duration;

use clap::Args;

use super::UvmName;
use crate::control::{ContainerEntry, Reply, Request, State};
use crate::error::Error;
use crate::options::Global;
use crate::registry::Registry;
use crate::{client, output};

/// List containers
///
/// Of all running utility VMs unless one is named. Detached containers stay until `linkspan rm`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan ps
  linkspan ps --uvm dev --json")]
pub(crate) struct Ps {
    #[command(flatten)]
    uvm: UvmName,
}

impl Ps {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        let registry = Registry::open()?;
        let places = match &self.uvm.uvm {
            Some(name) => vec![registry.find(Some(name))?],
            None => registry.list()?,
        };
        let mut all = Vec::new();
        for place in places {
            match client::ask(&place, &Request::List).await {
                Ok(Reply::Containers { containers }) => all.extend(containers),
                Ok(_) => return Err(client::unexpected()),
                // It is starting or ending.
                Err(error) if self.uvm.uvm.is_none() => {
                    tracing::warn!(uvm = place.name, %error, "list containers");
                }
                Err(error) => return Err(error),
            }
        }
        if global.json {
            output::json(&all)?;
        } else {
            let rows: Vec<_> = all.iter().map(row).collect();
            output::table(["CONTAINER", "UVM", "STATE", "PID", "AGE", "COMMAND"], &rows)?;
        }
        Ok(0)
    }
}

fn row(entry: &ContainerEntry) -> [String; 6] {
    let state = match (entry.state, entry.exit_code) {
        (State::Creating, _) => "creating".to_owned(),
        (State::Running, _) => "running".to_owned(),
        (State::Exited, code) => format!("exited ({})", code.unwrap_or_default()),
    };
    // Control characters would spoil the table.
    let command: String =
        entry.command.join(" ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    [
        entry.id.clone(),
        entry.uvm.clone(),
        state,
        entry.pid.map_or_else(String::new, |pid| pid.to_string()),
        output::age(Duration::from_millis(entry.age_ms)),
        command,
    ]
}
