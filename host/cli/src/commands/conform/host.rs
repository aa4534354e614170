//! `linkspan conform host`: a host's bridge under the harness.

use std::ffi::OsString;

use clap::Args;
use linkspan_conform::host::{HostAddress, HostReach, HostSession, STATEMENTS};
use linkspan_conform::run;

use super::{CheckOptions, print};
use crate::error::Error;
use crate::options::Global;

/// How long the check of one statement may take: a shutdown is given up after 30 s.
const EACH: u32 = 60;

/// Check a host's bridge against the 50 statements of the protocol
///
/// The harness plays the guest. A host listens, and decides what is asked; so it is a program of
/// yours that listens for the bridge, does its work with whatever guest dials it, and ends. It is
/// run many times: once with a right guest, then with one that does a thing wrong. What the host
/// does not do cannot be judged, and is skipped with a reason.
///
/// Ends with 0 if no statement failed, with 1 if one did, with 125 if nothing could be checked.
#[derive(Args, Debug)]
#[command(after_help = "\
The program finds where to listen in its environment:
  LINKSPAN_CONFORM_SOCKETS  a path; port P is to be the Unix socket <path>_P
  LINKSPAN_CONFORM_BRIDGE   the bridge's socket: <path>_1073741824
  LINKSPAN_CONFORM_RUN      what the run is about, for people
It listens there, then does its work: create a container, start it with stdio, run a second process
with input and end that input, kill a third, shut the container down, delete it. The more it does,
the more is judged. It has to
  * end with 0 if all of it went well, with another code if an operation failed or the bridge ended;
  * print `conform: exit PID CODE` for each exit that it was told of (only statement 24 needs it);
  * say on standard error what went wrong (only statement 6 looks at it).
The guest's processes: with an input, they copy it to stdout and end with 7 when it ends; without,
they write a line and end with 7, but for a container's init, which runs until it is told to end.

Examples:
  linkspan conform host --list
  linkspan conform host --spawn -- ./my-host --once
  linkspan conform host --spawn --only 27-33 --json -- ./my-host
  while ./my-host --listen /tmp/vm.sock_1073741824; do :; done &
  linkspan conform host --connect hybrid:/tmp/vm.sock

With --connect the host has to listen again after each run; how it ends and what it says is not
seen, and statements about that are skipped. Statement 40 takes five minutes:
  linkspan conform host --only 40 --each-timeout 330 --spawn -- ./my-host")]
pub(crate) struct Host {
    /// Start the host, COMMAND, anew for each run
    #[arg(long, group = "reach", requires = "command")]
    spawn: bool,
    /// Dial a host that listens at hybrid:PATH, vsock:CID or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<HostAddress>(), group = "reach")]
    connect: Option<HostAddress>,
    /// The host's command line, for --spawn
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    check: CheckOptions,
}

impl Host {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        if self.check.list {
            return self.check.print_list(STATEMENTS, global);
        }
        let plan = self.check.plan(STATEMENTS, EACH)?;
        let reach = match self.connect {
            Some(address) => HostReach::Connect(address),
            None if self.spawn => HostReach::Spawn(self.command),
            None => {
                let reason = "is missing: say how the host is reached, with --spawn or --connect";
                return Err(Error::input("--spawn", reason));
            }
        };
        let mut session = HostSession::new(reach, self.check.profile);
        session.answer = self.check.answer();
        let report =
            run::host(&mut session, STATEMENTS, &plan, |outcome| print(outcome, global)).await;
        self.check.tell(&report, global)
    }
}
