//! The guest agent and the boot image.

use std::{fs, path::Path};

use anyhow::Context;
use linkspan_initrd::{ImageBuilder, KernelPackage, PackageCache};

use crate::{
    progress::Progress,
    stamp::Stamp,
    steps::Steps,
    workspace::{GUEST_TARGET, Program, Workspace},
};

/// What goes into the image.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Use this kernel (a .deb or its unpacked tree) instead of Debian's newest
    #[arg(long, value_name = "FILE")]
    kernel_package: Option<std::path::PathBuf>,
    /// Build the image even if nothing has changed
    #[arg(long)]
    force: bool,
}

/// Builds the agent, gets the kernel, packs both.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    steps.run("build the guest agent", || build_agent(workspace))?;
    let package = match &options.kernel_package {
        Some(package) => package.clone(),
        None => steps.run("fetch the guest kernel", fetch_kernel)?,
    };
    steps.run("build the boot image", || build_image(workspace, &package, options.force))
}

fn build_agent(workspace: &Workspace) -> anyhow::Result<()> {
    static_build(workspace)
        .args(["-p", "linkspan-guest", "--bin", "linkspan-guest", "--profile", "guest"])
        .run()
}

/// A build of what runs in the guest: static, and for a target of its own.
pub(crate) fn static_build(workspace: &Workspace) -> Program {
    // Set for the target alone, so that build scripts and macros stay dynamic. Cargo would prefer
    // the two general variables to it.
    workspace
        .cargo(["build", "--target", GUEST_TARGET])
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", STATIC_RUSTFLAGS)
        .without_env("RUSTFLAGS")
        .without_env("CARGO_ENCODED_RUSTFLAGS")
}

/// At a fixed address, a program needs no relocations: it is smaller and starts sooner.
const STATIC_RUSTFLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

fn fetch_kernel() -> anyhow::Result<std::path::PathBuf> {
    let cache = PackageCache::for_user()?;
    let mut progress = Progress::default();
    let fetched =
        cache.fetch(PackageCache::DEFAULT_PACKAGE, &mut |event| progress.report(event))?;
    eprintln!("  {}{}", fetched.path.display(), if fetched.reused { " (kept)" } else { "" });
    Ok(fetched.path)
}

fn build_image(workspace: &Workspace, package: &Path, force: bool) -> anyhow::Result<()> {
    let (directory, agent) = (workspace.image(), workspace.agent());
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let outputs = ["vmlinuz", "vmlinux", "initrd", "agent", SIZES].map(|name| directory.join(name));
    let stamp = Stamp::new(directory.join(".stamp"), &[&agent, package])?;
    if !force && stamp.holds(&outputs) {
        eprintln!("  {} is up to date", directory.display());
        return Ok(());
    }
    stamp.clear()?;
    let mut progress = Progress::default();
    let kernel = KernelPackage::open_with(package, &mut |event| progress.report(event))?;
    let image = ImageBuilder::new(&kernel, &agent)
        .vmlinux(true)
        .build(&directory, &mut |event| progress.report(event))?;
    let copy = directory.join("agent");
    // A program that runs cannot be written over; it can be replaced.
    let fresh = directory.join("agent.new");
    fs::copy(&agent, &fresh)
        .and_then(|_| fs::rename(&fresh, &copy))
        .with_context(|| format!("cannot write {}", copy.display()))?;
    let sizes = directory.join(SIZES);
    let table = format!("{}\n", image.sizes);
    fs::write(&sizes, &table).with_context(|| format!("cannot write {}", sizes.display()))?;
    eprintln!("{table}");
    for file in [Some(&image.vmlinuz), image.vmlinux.as_ref(), Some(&image.initrd)] {
        let Some(file) = file else { continue };
        eprintln!("{:>10}  {}  {}", file.bytes, &file.sha256, file.path.display());
    }
    stamp.set()
}

/// The table of what is in the image, kept beside it.
const SIZES: &str = "sizes.txt";
