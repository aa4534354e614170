//! A whole Debian as a layer, from debootstrap to the kernel and back.
//!
//! The same tar becomes an image of either file system. Its checker has to find nothing; GNU tar has
//! to find in the mounted image what is in the tar, and so has `linkspan layer diff`, with the
//! kernel and without.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::{
    setup::{self, Consent, Need},
    steps::Steps,
    workspace::{Program, Workspace, output},
};

/// Which Debian.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The release; the one that this machine's first source of packages is of, unless given
    #[arg(long)]
    suite: Option<String>,
    /// How much of it: minbase, buildd or - for all that is standard
    #[arg(long, default_value = "minbase")]
    variant: String,
    /// Where packages come from; this machine's first source unless given
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Keep the tree and the images in target/linkspan/debian
    #[arg(long)]
    keep: bool,
}

const NEEDS: &[Need] =
    &[Need::Compiler, Need::Debootstrap, Need::Ext4Tools, Need::ErofsTools, Need::KernelPackage];

/// Sets up, makes the root, and takes it there and back.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    setup::run(NEEDS, consent, steps)?;
    steps.run("build linkspan", || workspace.build_cli())?;
    let place = workspace.debian();
    clear(&place)?;
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let (root, tar) = (place.join("root"), place.join("root.tar"));
    steps.run("make a Debian with debootstrap", || debootstrap(options, &root))?;
    steps.run("make a tar of it", || {
        Program::new("tar")
            .args(["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "-C"])
            .args([&root, Path::new("-cf"), &tar, Path::new(".")])
            .run()
    })?;
    for (format, checker) in [("ext4", &["e2fsck", "-fn"][..]), ("erofs", &["fsck.erofs"])] {
        let linkspan = || Program::new(workspace.cli()).args(["layer"]);
        let (image, mount) = (place.join(format!("root.{format}")), place.join("mount"));
        let back = place.join(format!("root.{format}.extracted"));
        steps.run(&format!("{format}: build"), || {
            linkspan()
                .args(["build", "--verity", "--format", format, "-o"])
                .args([&image, &tar])
                .run()
        })?;
        steps.run(&format!("{format}: check"), || {
            Program::new(checker[0]).args(&checker[1..]).args([&image]).run()
        })?;
        steps.run(&format!("{format}: mount and compare"), || {
            fs::create_dir_all(&mount)?;
            linkspan().args(["mount"]).args([&image, &mount]).run()?;
            let compared = compare(workspace, &tar, &mount);
            let unmounted = Program::new("umount").args([&mount]).run();
            compared.and(unmounted)
        })?;
        steps.run(&format!("{format}: extract and compare"), || {
            linkspan().args(["extract"]).args([&image, Path::new("-o"), &back]).run()?;
            linkspan().args(["diff"]).args([&image, &tar]).run()?;
            linkspan().args(["diff"]).args([&back, &tar]).run()
        })?;
    }
    if !options.keep {
        clear(&place)?;
    }
    Ok(())
}

fn debootstrap(options: &Options, root: &Path) -> anyhow::Result<()> {
    let format = "$(REPO_URI) $(CODENAME)";
    let sources = output("apt-get", &["indextargets", "--format", format, "Created-By: Packages"]);
    let sources = sources.unwrap_or_default();
    let first = sources.lines().next().and_then(|line| line.split_once(' '));
    let (url, suite) = match (&options.mirror, &options.suite, first) {
        (Some(url), Some(suite), _) => (url.as_str(), suite.as_str()),
        (url, suite, Some((first, codename))) => {
            (url.as_deref().unwrap_or(first), suite.as_deref().unwrap_or(codename))
        }
        _ => bail!("apt knows no source of packages: give --mirror and --suite"),
    };
    Program::new("debootstrap")
        .args([format!("--variant={}", options.variant)])
        .args([suite])
        .args([root])
        .args([url])
        .run()
}

/// What GNU tar makes of it counts as much as what we do.
fn compare(workspace: &Workspace, tar: &Path, mount: &Path) -> anyhow::Result<()> {
    Program::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--compare", "-f"])
        .args([tar, Path::new("-C"), mount])
        .run()?;
    Program::new(workspace.cli()).args(["layer", "diff"]).args([mount, tar]).run()
}

fn clear(place: &PathBuf) -> anyhow::Result<()> {
    match fs::remove_dir_all(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", place.display()))
        }
        _ => Ok(()),
    }
}
