//! What can be said about the code without running it.

use crate::{
    steps::Steps,
    workspace::{Workspace, find_program},
};

const FUZZ_MANIFEST: &str = "tests/fuzz/Cargo.toml";

/// Formatting, lints, documentation, dependencies. Stops at the first that has something to say.
pub(crate) fn run(workspace: &Workspace, steps: &mut Steps) -> anyhow::Result<()> {
    steps.run("check formatting", || {
        workspace.cargo(["fmt", "--all", "--check"]).run()?;
        workspace.cargo(["fmt", "--manifest-path", FUZZ_MANIFEST, "--check"]).run()
    })?;
    steps.run("check lints", || {
        workspace.cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()
    })?;
    steps.run("check lints of the fuzz targets", || {
        workspace
            .cargo(["clippy", "--manifest-path", FUZZ_MANIFEST, "--no-default-features"])
            .args(["--target-dir"])
            .args([workspace.fuzz_target()])
            .args(["--", "-D", "warnings"])
            .run()
    })?;
    steps.run("check documentation", || {
        workspace
            .cargo(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .run()
    })?;
    if find_program("cargo-deny").is_none() {
        eprintln!(
            "  dependencies are not checked; `cargo install cargo-deny --locked` gets what does"
        );
        return Ok(());
    }
    steps.run("check dependencies", || {
        // Advisories are fetched, and a check without a network is still worth having.
        workspace.cargo(["deny", "check", "licenses", "bans", "sources"]).run()
    })
}
