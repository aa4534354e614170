//! Short runs of the fuzz targets, or long ones of one; and their smoke, for which no fuzzer is
//! needed.

use std::fs;

use anyhow::{Context, bail};

use crate::{
    setup::{self, Consent},
    steps::Steps,
    workspace::{Workspace, find_program},
};

const DIRECTORY: &str = "tests/fuzz";

/// Which, and how long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// One of tests/fuzz/fuzz_targets; all unless told
    target: Option<String>,
    /// Without a fuzzer: the seeds, and the same mutations of them each time
    #[arg(long)]
    smoke: bool,
    /// How long each target runs
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

impl Options {
    /// All targets, each so long.
    pub(crate) fn all(smoke: bool, seconds: u32) -> Self {
        Self { target: None, smoke, seconds }
    }
}

/// Whether fuzzing needs no installation first.
pub(crate) fn is_ready() -> bool {
    find_program("cargo-fuzz").is_some()
}

/// Sees to cargo-fuzz, then builds and runs the targets.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let known = targets(workspace)?;
    let wanted = match &options.target {
        None => known,
        Some(target) if known.contains(target) => vec![target.clone()],
        Some(target) => bail!("no fuzz target {target:?}; there are {}", known.join(", ")),
    };
    if options.smoke {
        return steps.run("smoke of the fuzz targets", || {
            let seconds = options.seconds.to_string();
            workspace
                .cargo(["run", "--release", "--no-default-features", "--bin", "smoke"])
                .args(["--manifest-path", &format!("{DIRECTORY}/Cargo.toml"), "--target-dir"])
                .args([workspace.fuzz_target()])
                .args(["--", "--seconds", &seconds])
                .args(options.target.as_deref())
                .run()
        });
    }
    setup::run(setup::FUZZ, consent, steps)?;
    if !is_ready() {
        steps.run("install cargo-fuzz", || {
            workspace.cargo(["install", "cargo-fuzz", "--locked", "--version", "^0.13"]).run()
        })?;
    }
    steps.run("build the fuzz targets", || {
        // The sanitizer is not in stable's promises; the compiler has it all the same.
        workspace
            .cargo(["fuzz", "build", "--fuzz-dir", DIRECTORY, "--target-dir"])
            .args([workspace.fuzz_target()])
            .env("RUSTC_BOOTSTRAP", "1")
            .run()
    })?;
    for target in &wanted {
        steps.run(&format!("fuzz {target}"), || fuzz(workspace, target, options.seconds))?;
    }
    Ok(())
}

fn targets(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let directory = workspace.root().join(DIRECTORY).join("fuzz_targets");
    let cannot = || format!("cannot read {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.extension().is_some_and(|end| end == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn fuzz(workspace: &Workspace, target: &str, seconds: u32) -> anyhow::Result<()> {
    let own = workspace.root().join(DIRECTORY);
    // New inputs go to the first directory; the seeds are only read.
    let corpus = own.join("corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    workspace
        .cargo(["fuzz", "run", "--fuzz-dir", DIRECTORY, "--target-dir"])
        .args([workspace.fuzz_target()])
        .args([target])
        .args([corpus, own.join("seeds").join(target)])
        .args(["--", "-verbosity=0", "-print_funcs=0", "-max_len=8192"])
        .args(["-rss_limit_mb=1024", "-malloc_limit_mb=64", "-timeout=10"])
        .args([format!("-max_total_time={seconds}")])
        .env("RUSTC_BOOTSTRAP", "1")
        .run()
}
