//! Everything that a change has to pass.

use crate::{
    bench, check, containerd, fuzz,
    setup::{self, Consent},
    steps::Steps,
    test,
    workspace::Workspace,
};

/// Seconds for each fuzz target: enough to notice what every input breaks.
const FUZZ_SECONDS: u32 = 10;

/// The same for a smoke.
const SMOKE_SECONDS: u32 = 5;

/// Check, test, containers under containerd, count what it costs, a smoke of the fuzz targets, and a
/// short fuzz if this machine is ready for it.
pub(crate) fn run(
    workspace: &Workspace,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    setup::run(setup::EVERYTHING, consent, steps)?;
    check::run(workspace, steps)?;
    test::run(workspace, &test::Options::default(), consent, steps)?;
    containerd::run(workspace, &containerd::Options::default_checks(), consent, steps)?;
    bench::budget(workspace, steps)?;
    fuzz::run(workspace, &fuzz::Options::all(true, SMOKE_SECONDS), consent, steps)?;
    if fuzz::is_ready() {
        fuzz::run(workspace, &fuzz::Options::all(false, FUZZ_SECONDS), consent, steps)?;
    } else {
        eprintln!(
            "  no fuzzing here beyond that: `cargo install cargo-fuzz --locked` gets what does it"
        );
    }
    Ok(())
}
