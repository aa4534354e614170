//! What everything that runs a utility VM needs first.

use crate::{
    image, rootfs,
    setup::{self, Consent},
    steps::Steps,
    workspace::Workspace,
};

/// Packages, the boot image, the command line and a root file system.
pub(crate) fn run(
    workspace: &Workspace,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    setup::run(setup::EVERYTHING, consent, steps)?;
    image::run(workspace, &image::Options::default(), steps)?;
    steps.run("build linkspan", || workspace.build_cli())?;
    rootfs::run(workspace, steps)
}
