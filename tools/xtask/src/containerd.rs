//! Our shim under a real containerd.

mod example;
mod packages;

use std::ffi::OsString;

use clap::ValueEnum;

use crate::{
    prepare,
    setup::Consent,
    steps::Steps,
    workspace::{Program, Workspace},
};

/// Which containerd, and what is done with it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which containerd: each wants another answer from a shim
    #[arg(long, value_enum, default_value_t)]
    version: Version,
    /// Build the shim with optimisation, as figures want it: `--release -- --figures`
    #[arg(long)]
    release: bool,
    /// For the program that makes the checks (`-- --help`); words choose among them
    #[arg(last = true)]
    args: Vec<OsString>,
}

impl Options {
    /// What continuous integration runs.
    pub(crate) fn default_checks() -> Self {
        Self { version: Version::default(), release: false, args: Vec::new() }
    }
}

/// The containerds that are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    /// Debian 12's
    #[default]
    #[value(name = "1.6")]
    Bookworm,
    /// Debian 13's
    #[value(name = "1.7")]
    Trixie,
    /// Debian unstable's
    #[value(name = "2")]
    Sid,
}

impl Version {
    fn suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// Sets up, builds, gets containerd, and runs the checks.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    prepare::run(workspace, consent, steps)?;
    let (profile, built) = match options.release {
        true => ("release", workspace.release("")),
        false => ("dev", workspace.debug("")),
    };
    steps.run("build the shim", || {
        workspace
            .cargo([
                "build",
                "--profile",
                profile,
                "-p",
                "linkspan-shim",
                "-p",
                "linkspan-containerd",
            ])
            .run()
    })?;
    let suite = options.version.suite();
    let binaries = steps.run("get containerd", || packages::get(workspace, suite))?;
    steps.run("run a bundle with a runtime in one file", || example::run(workspace))?;
    steps.run("run containers under containerd", || {
        Program::new(built.join("linkspan-containerd"))
            .arg("--containerd", &binaries)
            .arg("--shim", &built)
            .arg("--image", workspace.image())
            .arg("--rootfs", workspace.rootfs())
            .args(&options.args)
            .run()
    })
}
