//! The guest agent; see the library.

use std::process::ExitCode;

use hyperv_socket::Peer;
use linkspan_guest::arguments::{Arguments, HELP};
use linkspan_guest::init::{self, Scope};
use linkspan_guest::vsock_exec::VsockExec;
use linkspan_guest::{loopback, tools};

fn main() -> ExitCode {
    let mut args = std::env::args();
    let path = args.next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut args: Vec<String> = args.collect();
    let loopback_wanted = args.first().is_some_and(|arg| arg == "loopback");
    if let Some(code) = tools::run(name, &args) {
        return ExitCode::from(code);
    }
    if name == "vsockexec" {
        return match VsockExec::parse(args).and_then(|exec| exec.run(&Peer::Vsock { cid: 2 })) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("vsockexec: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if std::process::id() == 1 && name != "gcs" && !loopback_wanted {
        // A first process that returns takes the kernel with it, and the console then says why.
        return match init::run(args) {
            Ok(code) => ExitCode::from(code),
            Err(error) => complain(&format!("set the machine up: {error}")),
        };
    }
    if args.iter().any(|arg| matches!(arg.as_str(), "-help" | "--help" | "-h")) {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| matches!(arg.as_str(), "-version" | "--version")) {
        println!("linkspan-guest {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if loopback_wanted {
        args.remove(0);
        return match loopback::run(&args) {
            Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            Err(error) => complain(&error.to_string()),
        };
    }
    let defaults = if name == "gcs" { Arguments::of_gcs() } else { Arguments::default() };
    match defaults.with(args) {
        Ok(arguments) => serve(arguments),
        Err(error) => complain(&error),
    }
}

/// Serves hosts in a machine that somebody else has set up.
fn serve(arguments: Arguments) -> ExitCode {
    // Over pipes it may be anybody's machine, which is not to be changed, much less switched off.
    let machine = !arguments.use_stdio && arguments.host == Peer::Vsock { cid: 2 };
    let scope = if machine { Scope::Machine } else { Scope::Containers };
    let code = init::serve(arguments, scope, None, 0);
    if code == init::POWER_OFF {
        if machine && let Err(error) = init::power_off() {
            return complain(&format!("switch off: {error}"));
        }
        return ExitCode::SUCCESS;
    }
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn complain(error: &str) -> ExitCode {
    eprintln!("linkspan-guest: {error}");
    ExitCode::FAILURE
}
