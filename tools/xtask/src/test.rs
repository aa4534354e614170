//! All tests, with all that they need.

use std::ffi::OsString;

use crate::{
    prepare,
    setup::Consent,
    steps::Steps,
    workspace::{Program, Workspace, names_package},
};

/// What is passed on.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// For `cargo test`; with -p PACKAGE, only that package's tests are run
    #[arg(last = true)]
    args: Vec<OsString>,
}

const SCENARIOS: &str = "linkspan-tests";

/// Sets up, builds what the tests run, and runs them: the quick ones first.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    prepare::run(workspace, consent, steps)?;
    if names_package(&options.args) {
        return steps.run("test", || with_image(workspace, &["test"]).args(&options.args).run());
    }
    steps.run("test each part", || {
        with_image(workspace, &["test", "--workspace", "--exclude", SCENARIOS])
            .args(&options.args)
            .run()
    })?;
    steps.run("test scenarios in utility VMs", || {
        with_image(workspace, &["test", "-p", SCENARIOS]).args(&options.args).run()
    })
}

/// Cargo, with the variables by which the scenarios find what they run.
pub(crate) fn with_image(workspace: &Workspace, args: &[&str]) -> Program {
    workspace
        .cargo(args)
        .env("LINKSPAN_IMAGE", workspace.image())
        .env("LINKSPAN_BIN", workspace.cli())
        .env("LINKSPAN_ROOTFS", workspace.rootfs())
}
