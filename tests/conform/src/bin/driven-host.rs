//! A host on Linkspan's own library, for `linkspan conform host --spawn`. With `--defect NAME` it
//! does one thing wrong, and the harness has to tell.

use std::process::ExitCode;

use linkspan_conform::broken;
use linkspan_conform::driven::{self, BROKEN};
use linkspan_conform::host::SOCKETS;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("driven-host: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let defect = match arguments.as_slice() {
        [] => None,
        ["--defect", name] => Some(broken::named(BROKEN, name)?),
        _ => return Err("usage: driven-host [--defect NAME]".into()),
    };
    let sockets = std::env::var_os(SOCKETS);
    let sockets = sockets.ok_or_else(|| {
        format!("{SOCKETS} is not set: run it by `linkspan conform host --spawn -- driven-host`")
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(driven::live(sockets.into(), defect)).map_err(Into::into)
}
