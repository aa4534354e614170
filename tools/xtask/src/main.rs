//! Developer verbs: `cargo xtask VERB`. Each verb is a module, and sees to all that it needs.

mod bench;
mod check;
mod ci;
mod containerd;
mod debian;
mod demo;
mod fuzz;
mod image;
mod mutate;
mod prepare;
mod progress;
mod rootfs;
mod setup;
mod soak;
mod stamp;
mod steps;
mod test;
mod workspace;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{setup::Consent, steps::Steps, workspace::Workspace};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct Arguments {
    /// Install missing packages without asking; the same as CI=true
    #[arg(long, short, global = true)]
    yes: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what this machine lacks and why it is needed, then install it
    Setup,
    /// Boot a utility VM from scratch and run a container in it
    Demo(demo::Options),
    /// Build the guest agent and the boot image
    Image(image::Options),
    /// Run all tests, those in utility VMs included
    Test(test::Options),
    /// Look at formatting, lints, documentation and dependencies
    Check,
    /// Feed the protocol what no peer would send
    Fuzz(fuzz::Options),
    /// Try for hours what the tests try for minutes
    Soak(soak::Options),
    /// Make a layer of a whole Debian, and hold it against what it was made of
    Debian(debian::Options),
    /// Put defects into a copy of our own agent and host, and see whether the harness tells
    Mutate(mutate::Options),
    /// Measure
    Bench(bench::Options),
    /// Run containers under a real containerd, with our shim and the stock one
    Containerd(containerd::Options),
    /// What continuous integration runs: check, test, containerd, and a short fuzz
    Ci,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut steps = Steps::default();
    let done = run(&arguments, &mut steps);
    // What took how long is worth as much after a failure.
    steps.summarize(&mut io::stderr());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, steps: &mut Steps) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    let consent = Consent::new(arguments.yes);
    match &arguments.verb {
        Verb::Setup => {
            setup::run(setup::EVERYTHING, consent, steps)?;
            eprintln!("Everything is there.");
            Ok(())
        }
        Verb::Demo(options) => demo::run(&workspace, options, consent, steps),
        Verb::Image(options) => {
            setup::run(setup::IMAGE, consent, steps)?;
            image::run(&workspace, options, steps)
        }
        Verb::Test(options) => test::run(&workspace, options, consent, steps),
        Verb::Check => check::run(&workspace, steps),
        Verb::Fuzz(options) => fuzz::run(&workspace, options, consent, steps),
        Verb::Soak(options) => soak::run(&workspace, options, consent, steps),
        Verb::Containerd(options) => containerd::run(&workspace, options, consent, steps),
        Verb::Debian(options) => debian::run(&workspace, options, consent, steps),
        Verb::Mutate(options) => mutate::run(&workspace, options, consent, steps),
        Verb::Bench(options) => bench::run(&workspace, options, consent, steps),
        Verb::Ci => ci::run(&workspace, consent, steps),
    }
}
