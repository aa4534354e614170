//! The guest agent; see the library.

use std::process::ExitCode;

use linkspan_guest::arguments::{Arguments, HELP};
use linkspan_guest::{init, log, loopback};

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let loopback_wanted = args.first().is_some_and(|arg| arg == "loopback");
    if std::process::id() == 1 && !loopback_wanted {
        // A first process that returns takes the kernel with it, and the console then says why.
        return match init::run() {
            Ok(()) => ExitCode::SUCCESS,
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
    match Arguments::parse(args) {
        Ok(arguments) => {
            log::start(arguments.level);
            ExitCode::from(u8::try_from(init::serve(arguments, None, 0)).unwrap_or(1))
        }
        Err(error) => complain(&error),
    }
}

fn complain(error: &str) -> ExitCode {
    eprintln!("linkspan-guest: {error}");
    ExitCode::FAILURE
}
