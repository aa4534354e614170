//! Measures, with the program that does it.

use std::ffi::OsString;

use crate::{
    image, prepare,
    setup::{self, Consent},
    steps::Steps,
    test,
    workspace::Workspace,
};

const BENCH: [&str; 7] =
    ["run", "--release", "-p", "linkspan-bench", "--bin", "linkspan-bench", "--"];

/// What is passed on.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure how layers are made, beside mke2fs and mkfs.erofs; takes no utility VM
    #[arg(long)]
    layers: bool,
    /// For the benchmark program; `cargo xtask bench -- --help` shows what it knows
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Sets up, builds what is measured, and measures.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    if options.layers {
        setup::run(setup::EVERYTHING, consent, steps)?;
        steps.run("build linkspan", || workspace.build_cli())?;
        return steps.run("measure", || {
            let program = ["run", "--release", "-p", "linkspan-bench", "--bin", "layers", "--"];
            test::with_image(workspace, &program).args(&options.args).run()
        });
    }
    prepare::run(workspace, consent, steps)?;
    steps.run("build the floor", || {
        image::static_build(workspace).args(["-p", "linkspan-floor", "--release"]).run()
    })?;
    steps.run("measure", || {
        test::with_image(workspace, &BENCH)
            .env("LINKSPAN_FLOOR", workspace.floor())
            .args(&options.args)
            .run()
    })
}

/// Holds the image that was built against the instructions that it may take.
pub(crate) fn budget(workspace: &Workspace, steps: &mut Steps) -> anyhow::Result<()> {
    steps.run("count instructions", || {
        let budget = ["--only", "instructions", "--budget", "tests/bench/budget.json"];
        test::with_image(workspace, &BENCH).args(budget).run()
    })
}
