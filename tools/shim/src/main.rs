//! `containerd-shim-linkspan-v1`: containerd's containers in utility VMs.
//!
//! containerd runs this program by the name of the runtime, `io.containerd.linkspan.v1`. `start`
//! leaves a server behind, one for each pod or lone container; it holds the utility VM, and answers
//! containerd until the last container is deleted.
//!
//! | module      | what it holds                                                        |
//! |-------------|----------------------------------------------------------------------|
//! | `arguments` | the command line, as containerd writes it                            |
//! | `bootstrap` | what else containerd says at the start, and the answer it wants      |
//! | `start`     | a server for a container, or the one that its pod has                |
//! | `delete`    | what is left of a container whose server is gone                     |
//! | `server`    | the server's life                                                    |
//! | `service`   | the Task service; `sandbox`: the Sandbox service                     |
//! | `shim`      | the containers of one server                                         |
//! | `task`      | one container; `process`: one process of it                          |
//! | `machine`   | the utility VM; `pause`: the program of a sandbox without an image   |
//! | `options`   | what one can choose                                                  |
//! | `rootfs`    | a snapshot's mounts as layers                                        |
//! | `spec`      | a host's OCI document as the guest is to have it; `mounts`: its mounts |
//! | `stdio`     | FIFOs, files and logging programs                                    |
//! | `events`    | what containerd is told, in order                                    |
//! | `metrics`   | a container's figures                                                |
//! | `error`     | what can go wrong, in containerd's codes                             |

mod arguments;
mod bootstrap;
mod bundle;
mod delete;
mod error;
mod events;
mod log;
mod machine;
mod metrics;
mod mounts;
mod options;
mod pause;
mod process;
mod rootfs;
mod sandbox;
mod server;
mod service;
mod shim;
mod spec;
mod start;
mod stdio;
mod task;
mod timestamp;

use std::io::{self, Write};
use std::process::ExitCode;

use arguments::{Action, Arguments, HELP};
use error::Error;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows it to whoever wanted the container.
            let _ = write!(io::stderr().lock(), "{}: {error}", env!("CARGO_BIN_NAME"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    match arguments.action {
        Action::Start => start::run(&arguments),
        Action::Serve => server::run(&arguments),
        Action::Delete => delete::run(&arguments),
        Action::Info => bootstrap::info(),
        Action::Version => print(&format!(
            "{}:\n  Version: {}\n",
            env!("CARGO_BIN_NAME"),
            env!("CARGO_PKG_VERSION")
        )),
        Action::Help => print(HELP),
    }
}

fn print(text: &str) -> Result<(), Error> {
    print_bytes(text.as_bytes())
}

/// Answers whoever has run this program.
fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(Error::io("write the answer"))
}
