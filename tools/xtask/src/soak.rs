//! The long way of what the tests do shortly: containers without end, connections that break.

use crate::{
    prepare,
    setup::Consent,
    steps::Steps,
    test,
    workspace::{Program, Workspace},
};

/// How long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many containers are made, started, joined and deleted, on each backend
    #[arg(long, default_value_t = 10_000)]
    cycles: u32,
    /// How often all connections are cut while eight containers count, on each backend
    #[arg(long, default_value_t = 1_000)]
    cuts: u32,
    /// Only on this backend: loopback or qemu
    #[arg(long)]
    backend: Option<String>,
}

/// Seconds that a cycle or a cut may take, on the slowest machine.
const PATIENCE: u32 = 10;

/// Sets up, builds what is tried, and tries it for long.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    prepare::run(workspace, consent, steps)?;
    let seconds = 300 + PATIENCE * options.cycles.max(options.cuts);
    for (what, filter) in [("containers without end", "leaks"), ("connections that break", "chaos")]
    {
        let backend = options.backend.as_deref().unwrap_or_default();
        steps.run(what, || {
            let args = ["test", "-p", "linkspan-tests", "--test", "scenarios", "--"];
            test::with_image(workspace, &args)
                .env("LINKSPAN_SOAK_CYCLES", options.cycles.to_string())
                .env("LINKSPAN_CHAOS_CUTS", options.cuts.to_string())
                .env("LINKSPAN_SCENARIO_SECONDS", seconds.to_string())
                .args([format!("{filter}::{backend}").as_str(), "--nocapture", "--test-threads=1"])
                .run()
        })?;
    }
    steps.run("build a host to be judged", || {
        workspace.cargo(["build", "-p", "linkspan-conform", "--bin", "driven-host"]).run()
    })?;
    steps.run("a host that is not answered for five minutes", || {
        let host = workspace.debug("driven-host");
        Program::new(workspace.cli())
            .args(["conform", "host", "--only", "40", "--each-timeout", "330"])
            .args(["--profile", "hardened", "--spawn", "--"])
            .args([host])
            .run()
    })
}
