//! The `linkspan` command.
//!
//! | module        | what it holds                                                          |
//! |---------------|------------------------------------------------------------------------|
//! | `commands`    | the subcommands                                                        |
//! | `options`     | options that several of them share                                     |
//! | `attend`      | a process in the guest as if it ran here, by `relay` (streams), `signals`, `terminal` |
//! | `children`    | the ends of this process's children                                    |
//! | `images`      | what a container's root is: an image of the store, a registry, a file    |
//! | `registry`    | which named utility VMs there are                                      |
//! | `control`     | how clients and monitors talk                                          |
//! | `client`      | asks a monitor                                                         |
//! | `monitor`     | the process behind a named utility VM                                  |
//! | `error`       | what can go wrong; `output`, `progress`: what people see               |

mod attend;
mod children;
mod client;
mod commands;
mod container_id;
mod control;
mod error;
mod images;
mod monitor;
mod options;
mod output;
mod progress;
mod registry;
mod relay;
mod signals;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::error::{Cause, Context, Error, Report};
use crate::options::Global;

/// Run containers in utility VMs
#[derive(Parser, Debug)]
#[command(
    name = "linkspan",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  linkspan image build                                  # once: kernel, initrd, agent
  linkspan run rootfs.tar.gz -- cat /etc/os-release     # a container in a machine of its own
  linkspan uvm start dev && linkspan run --uvm dev ./rootfs -- uname -a"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(Box<commands::run::Run>),
    Exec(commands::exec::Exec),
    Ps(commands::ps::Ps),
    Logs(commands::logs::Logs),
    Wait(commands::wait::Wait),
    Kill(commands::kill::Kill),
    Rm(commands::rm::Rm),
    Stats(commands::stats::Stats),
    Uvm(commands::uvm::Uvm),
    Doctor(commands::doctor::Doctor),
    Image(commands::image::Image),
    Layer(commands::layer::Layer),
    Conform(Box<commands::conform::Conform>),
    Record(commands::record::Record),
    Replay(commands::replay::Replay),
    Decode(commands::decode::Decode),
    Simulate(commands::simulate::Simulate),
    Bench(Box<commands::bench::Bench>),
    Completions(commands::completions::Completions),
    Version(commands::version::Version),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => {
            if !refusal.use_stderr() {
                // Help and version: asked for, not refused.
                let _ = refusal.print();
                return ExitCode::SUCCESS;
            }
            let text = refusal.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let _ = write!(io::stderr().lock(), "linkspan: {text}");
            return ExitCode::from(exit_code(Cause::Linkspan));
        }
    };
    let global = cli.global.clone();
    log_to_stderr(&global, matches!(&cli.command, Command::Uvm(uvm) if uvm.is_monitor()));
    match run(cli) {
        // Whatever a process exits with, a parent sees these eight bits.
        Ok(code) => ExitCode::from((code & 0xff) as u8),
        Err(error) => {
            let report = error.report();
            tell(&report, &global);
            ExitCode::from(exit_code(report.cause))
        }
    }
}

/// The exit code of a command that did not do what it was asked to.
fn exit_code(cause: Cause) -> u8 {
    match cause {
        Cause::Linkspan => 125,
        Cause::NotExecutable => 126,
        Cause::NotFound => 127,
        Cause::Interrupted(signal) => 128 + u8::try_from(signal).unwrap_or(0),
    }
}

fn run(cli: Cli) -> Result<u32, Error> {
    let Cli { global, command } = cli;
    match &command {
        Command::Completions(completions) => return completions.run(Cli::command()),
        Command::Version(version) => return version.run(&global),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context(|| "start a runtime".into())?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Run(run) => run.run(&global).await,
            Command::Exec(exec) => exec.run(&global).await,
            Command::Ps(ps) => ps.run(&global).await,
            Command::Logs(logs) => logs.run(&global).await,
            Command::Wait(wait) => wait.run(&global).await,
            Command::Kill(kill) => kill.run(&global).await,
            Command::Rm(rm) => rm.run(&global).await,
            Command::Stats(stats) => stats.run(&global).await,
            Command::Uvm(uvm) => uvm.run(&global).await,
            Command::Doctor(doctor) => doctor.run(&global).await,
            Command::Image(image) => image.run(&global),
            Command::Layer(layer) => layer.run(&global),
            Command::Conform(conform) => conform.run(&global).await,
            Command::Record(record) => record.run().await,
            Command::Replay(replay) => replay.run(&global).await,
            Command::Decode(decode) => decode.run(&global),
            Command::Simulate(simulate) => simulate.run(&global),
            Command::Bench(bench) => bench.run(&global).await,
            Command::Completions(_) | Command::Version(_) => Ok(0),
        }
    });
    // What was given up half-way is not waited for.
    runtime.shutdown_background();
    outcome
}

pub(crate) fn tell(report: &Report, global: &Global) {
    let mut stderr = io::stderr().lock();
    // With nobody to tell, the exit code says it.
    let _ = match (global.json, serde_json::to_string(report)) {
        (true, Ok(text)) => writeln!(stderr, "{text}"),
        _ => {
            let causes: String =
                report.causes.iter().map(|cause| format!("\n  caused by: {cause}")).collect();
            writeln!(stderr, "linkspan: {}{causes}", report.message)
        }
    };
}

fn log_to_stderr(global: &Global, monitor: bool) {
    let level = match global.verbose + u8::from(monitor) {
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("LINKSPAN_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_may_hold_what_looks_like_options_and_separators() {
        let words = |line: &[&str]| match Cli::try_parse_from(line).unwrap().command {
            Command::Run(run) => run.command,
            other => panic!("{other:?}"),
        };
        let plain = words(&["linkspan", "run", "root", "sh", "-c", "x", "--", "-y"]);
        assert_eq!(plain, ["sh", "-c", "x", "--", "-y"]);
        let divided = words(&["linkspan", "run", "root", "--", "sh", "-c", "x", "--", "-y"]);
        assert_eq!(divided, ["sh", "-c", "x", "--", "-y"]);
    }
}
