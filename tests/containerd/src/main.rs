//! Our shim under a real containerd, beside the stock one.
//!
//! A containerd of its own is started, with everything it has in one directory. The same script of
//! `ctr` commands is run with both runtimes; what a user sees has to be the same. What only ours
//! does is looked at besides, and in the end that nothing is left.
//!
//! | module    | what it holds                                            |
//! |-----------|----------------------------------------------------------|
//! | `daemon`  | containerd, on a root of its own                         |
//! | `ctr`     | its client                                               |
//! | `cri`     | what a kubelet says to it                                |
//! | `image`   | container images, made from busybox                      |
//! | `script`  | what is run with both runtimes                           |
//! | `ours`    | what is run with ours alone                              |
//! | `survival` | what happens when something is killed                   |
//! | `figures` | what a container costs                                    |
//! | `remains` | what may not be left                                     |

mod cri;
mod ctr;
mod daemon;
mod figures;
mod image;
mod ours;
mod remains;
mod script;
mod survival;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::ctr::Ctr;
use crate::daemon::Daemon;
use crate::remains::Remains;

/// The runtime that all is held against.
const STOCK: &str = "io.containerd.runc.v2";

/// Ours.
const OURS: &str = "io.containerd.linkspan.v1";

/// How long what has been told to end may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Run the shim under a real containerd
#[derive(Parser, Debug)]
struct Arguments {
    /// Directory with containerd, ctr, the stock shim and runc
    #[arg(long, value_name = "DIR")]
    containerd: PathBuf,
    /// Directory with containerd-shim-linkspan-v1
    #[arg(long, value_name = "DIR")]
    shim: PathBuf,
    /// Directory with the boot image
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// Directory with a root file system to make a container image of
    #[arg(long, value_name = "DIR")]
    rootfs: PathBuf,
    /// How many containers run at the same time
    #[arg(long, value_name = "N", default_value_t = 20)]
    parallel: usize,
    /// Leave the comparison with the stock runtime out
    #[arg(long)]
    ours_alone: bool,
    /// Measure both runtimes in place of the checks
    #[arg(long)]
    figures: bool,
    /// Only what has one of these words in its name
    filter: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let daemon = Daemon::start(arguments)?;
    println!("containerd {}", daemon.version()?);
    let (ctr, remains) = (Ctr::new(&daemon), Remains::of(daemon.name()));
    for (namespace, name, command) in [
        (daemon.name().as_str(), image::NAME, "sh"),
        ("k8s.io", image::NAME, "sh"),
        ("k8s.io", image::PAUSE, image::PAUSE_COMMAND),
    ] {
        let archive = daemon.directory().join("image.tar");
        image::write(&arguments.rootfs, &archive, name, command)?;
        let import = ["image", "import", &archive.display().to_string()];
        ctr.within(namespace).run(&import)?.succeeded()?;
    }
    let outcome = match arguments.figures {
        true => figures::print(&daemon, &ctr),
        false => checks(arguments, &daemon, &remains, &ctr),
    };
    let (log, place) = (daemon.log(), daemon.directory().to_owned());
    daemon.stop()?;
    if outcome.is_err() {
        eprintln!("the end of containerd's log:\n{log}");
    }
    outcome?;
    remains.none(PATIENCE).context("after containerd's end")?;
    if place.exists() {
        bail!("{} was left", place.display());
    }
    println!("nothing is left");
    Ok(())
}

fn checks(arguments: &Arguments, daemon: &Daemon, remains: &Remains, ctr: &Ctr) -> Result<()> {
    let mut failures = 0;
    let wanted = |name: &str| {
        arguments.filter.is_empty() || arguments.filter.iter().any(|word| name.contains(word))
    };
    let mut report = |name: &str, began: Instant, outcome: Result<()>| {
        let took = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("ok    {took:6.1} s  {name}"),
            Err(error) => {
                failures += 1;
                println!("FAIL  {took:6.1} s  {name}\n{error:#}");
            }
        }
    };
    for step in script::STEPS.iter().filter(|step| wanted(step.name)) {
        let began = Instant::now();
        let outcome = match arguments.ours_alone {
            true => (step.run)(&ctr.with(OURS)).map(drop),
            false => compare(step, ctr),
        };
        report(step.name, began, outcome.and_then(|()| all_deleted(ctr, remains)));
    }
    for check in ours::CHECKS.iter().filter(|check| wanted(check.name)) {
        let began = Instant::now();
        let outcome =
            (check.run)(&ours::Place { ctr: &ctr.with(OURS), daemon, remains, arguments });
        report(check.name, began, outcome.and_then(|()| all_deleted(ctr, remains)));
    }
    match failures {
        0 => Ok(()),
        failures => bail!("{failures} failed"),
    }
}

fn compare(step: &script::Step, ctr: &Ctr) -> Result<()> {
    let stock = (step.run)(&ctr.with(STOCK)).context("with the stock runtime")?;
    let ours = (step.run)(&ctr.with(OURS)).context("with ours")?;
    if stock != ours {
        bail!("the stock runtime shows\n{stock}\nand ours\n{ours}");
    }
    Ok(())
}

/// What a step has made it has to have removed; what a failed one has left would spoil the next.
fn all_deleted(ctr: &Ctr, remains: &Remains) -> Result<()> {
    let left = ctr.remove_all()?;
    if !left.is_empty() {
        bail!("containers were left: {}", left.join(", "));
    }
    remains.none(PATIENCE)
}
