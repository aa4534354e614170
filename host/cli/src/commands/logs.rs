//! `linkspan logs`: what detached containers and utility VMs have written.

use clap::Args;

use super::UvmName;
use crate::client;
use crate::control::Request;
use crate::error::Error;
use crate::options::Global;
use crate::signals::Signals;

/// Print what a detached container has written
///
/// Its stdout to stdout, its stderr to stderr; the last 8 MiB are kept. Without CONTAINER, the end
/// of the utility VM's console.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan logs web
  linkspan logs -f --uvm dev web
  linkspan logs --uvm dev")]
pub(crate) struct Logs {
    #[command(flatten)]
    uvm: UvmName,
    /// Go on until it has exited
    #[arg(short, long, requires = "container")]
    follow: bool,
    /// Which container
    container: Option<String>,
}

impl Logs {
    pub(crate) async fn run(self, _: &Global) -> Result<u32, Error> {
        let place = self.uvm.place()?;
        let request = Request::Log { container: self.container, follow: self.follow };
        let mut signals = Signals::take_over()?;
        match signals.interrupt(client::log(&place, &request)).await {
            // The usual way to leave a log that is followed.
            Err(Error::Interrupted(signal)) if self.follow => Ok(128 + signal.unsigned_abs()),
            outcome => outcome.map(|()| 0),
        }
    }
}
