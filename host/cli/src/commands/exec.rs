//! `linkspan exec`: a further process in a container.

use clap::Args;

use super::UvmName;
use crate::attend::Local;
use crate::client;
use crate::control::Request;
use crate::error::Error;
use crate::options::{Global, ProcessOptions};
use crate::progress::Progress;
use crate::signals::Signals;

/// Run a further command in a running container
///
/// Relays and exits as `linkspan run` does. The process ends with this one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan exec web -- ps
  linkspan exec -it --uvm dev web sh
  linkspan exec -i web -- sh -c 'cat >/etc/motd' <motd")]
pub(crate) struct Exec {
    #[command(flatten)]
    uvm: UvmName,
    #[command(flatten)]
    process: ProcessOptions,
    /// Which container
    container: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        let process = self.process.process(&self.command)?;
        let local = Local { terminal: process.terminal.is_some(), stdin: process.stdin };
        let place = self.uvm.place()?;
        let mut signals = Signals::take_over()?;
        let request = Request::Exec { container: self.container, process };
        let starting = client::start(&place, &request, Progress::new(global));
        signals.interrupt(starting).await?.attend(local, &mut signals).await
    }
}
