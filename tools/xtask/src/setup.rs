//! Finds out what this machine lacks, says so, and installs it.

use std::{
    env, fs,
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
};

use anyhow::{Context, bail};

use crate::{
    steps::Steps,
    workspace::{Program, find_program, output},
};

/// What some verbs need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// Boots utility VMs.
    Qemu,
    /// Fills the demo's root file system.
    Busybox,
    /// Makes and checks ext4 file systems.
    Ext4Tools,
    /// Checks EROFS file systems.
    ErofsTools,
    /// Makes and checks hash trees.
    VerityTools,
    /// Makes xfs file systems.
    XfsTools,
    /// Makes a whole Debian.
    Debootstrap,
    /// Reads captures with our dissector.
    Tshark,
    /// Links every program.
    Compiler,
    /// Links the guest agent statically.
    StaticC,
    /// Knows where the guest's kernel is.
    KernelPackage,
    /// Compiles libFuzzer.
    CxxCompiler,
}

/// For the guest agent and the boot image.
pub(crate) const IMAGE: &[Need] = &[Need::Compiler, Need::StaticC, Need::KernelPackage];

/// For running containers too.
pub(crate) const EVERYTHING: &[Need] = &[
    Need::Compiler,
    Need::StaticC,
    Need::KernelPackage,
    Need::Qemu,
    Need::Busybox,
    Need::Ext4Tools,
    Need::ErofsTools,
    Need::VerityTools,
    Need::XfsTools,
    Need::Tshark,
];

/// For fuzzing.
pub(crate) const FUZZ: &[Need] = &[Need::Compiler, Need::CxxCompiler];

impl Need {
    /// The Debian package that brings it; `None` if apt's lists are all that is missing.
    fn package(self) -> Option<&'static str> {
        match self {
            Self::Qemu => Some("qemu-system-x86"),
            Self::Busybox => Some("busybox-static"),
            Self::Ext4Tools => Some("e2fsprogs"),
            Self::ErofsTools => Some("erofs-utils"),
            Self::VerityTools => Some("cryptsetup-bin"),
            Self::XfsTools => Some("xfsprogs"),
            Self::Debootstrap => Some("debootstrap"),
            Self::Tshark => Some("tshark"),
            Self::Compiler => Some("gcc"),
            Self::StaticC => Some("libc6-dev"),
            Self::CxxCompiler => Some("g++"),
            Self::KernelPackage => None,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64 boots the utility VMs",
            Self::Busybox => "its static /bin/busybox is the demo container's only program",
            Self::Ext4Tools => "mke2fs and e2fsck make and check file systems in tests",
            Self::ErofsTools => {
                "mkfs.erofs and fsck.erofs are what our EROFS images are held against"
            }
            Self::VerityTools => "veritysetup makes the hash trees that ours are held against",
            Self::XfsTools => "mkfs.xfs goes into the image of a utility VM in a test",
            Self::Debootstrap => "debootstrap makes the Debian that becomes a layer",
            Self::Tshark => "tshark tries the dissector of recorded conversations",
            Self::Compiler => "cc links every Rust program",
            Self::StaticC => "libc.a goes into the static guest agent",
            Self::CxxCompiler => "c++ compiles libFuzzer",
            Self::KernelPackage => "apt's lists say where the guest kernel's package is",
        }
    }

    fn is_met(self) -> bool {
        match self {
            Self::Qemu => find_program("qemu-system-x86_64").is_some(),
            Self::Busybox => is_installed("busybox-static"),
            Self::Ext4Tools => ["mke2fs", "e2fsck"].iter().all(|name| find_program(name).is_some()),
            Self::ErofsTools => find_program("fsck.erofs").is_some(),
            Self::VerityTools => find_program("veritysetup").is_some(),
            Self::XfsTools => find_program("mkfs.xfs").is_some(),
            Self::Debootstrap => find_program("debootstrap").is_some(),
            Self::Tshark => find_program("tshark").is_some(),
            Self::Compiler => find_program("cc").is_some(),
            // The compiler answers with a bare name when it has no such file.
            Self::StaticC => output("cc", &["-print-file-name=libc.a"])
                .is_some_and(|path| Path::new(&path).is_absolute() && Path::new(&path).is_file()),
            Self::CxxCompiler => find_program("c++").is_some(),
            Self::KernelPackage => {
                let package = linkspan_initrd::PackageCache::DEFAULT_PACKAGE;
                output("apt-cache", &["show", "--no-all-versions", "--", package])
                    .is_some_and(|shown| shown.contains("Package:"))
            }
        }
    }
}

fn is_installed(package: &str) -> bool {
    output("dpkg-query", &["-W", "-f=${db:Status-Status}", package])
        .is_some_and(|status| status == "installed")
}

/// Whether packages may be installed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// Without asking.
    Given,
    /// If somebody says so.
    Ask,
}

impl Consent {
    /// Given by `--yes`, and by `CI=true` as automation sets it.
    pub(crate) fn new(yes: bool) -> Self {
        let ci = env::var_os("CI").is_some_and(|value| value == "true" || value == "1");
        if yes || ci { Self::Given } else { Self::Ask }
    }
}

/// Sees to `needs`. Silent if there is nothing to do.
pub(crate) fn run(needs: &[Need], consent: Consent, steps: &mut Steps) -> anyhow::Result<()> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("This machine lacks:");
    for need in &missing {
        eprintln!("  {:16} {}", need.package().unwrap_or("package lists"), need.reason());
    }
    steps.run("install what is missing", || install(&missing, consent))
}

fn install(missing: &[Need], consent: Consent) -> anyhow::Result<()> {
    let packages: Vec<&str> = missing.iter().filter_map(|need| need.package()).collect();
    let plan = Plan { packages: &packages, sudo: !is_root() };
    if find_program("apt-get").is_none() {
        bail!("there is no apt-get here: install the above in this system's own way");
    }
    if plan.sudo && find_program("sudo").is_none() {
        bail!("only root can install packages; as root, run\n  {}", plan.by_hand());
    }
    eprintln!("To be run:\n  {}", plan.by_hand());
    if consent == Consent::Ask && !agreed()? {
        bail!("nothing was installed; run the above, or this again with --yes");
    }
    // Lists may be absent, as in a container image, or older than the archive.
    let known = !missing.contains(&Need::KernelPackage)
        && packages.iter().all(|package| output("apt-cache", &["show", "--", package]).is_some());
    let by_hand = || format!("install them by hand:\n  {}", plan.by_hand());
    if !known {
        plan.update().run().with_context(by_hand)?;
    }
    if !packages.is_empty() && plan.install().run().is_err() {
        plan.update().run().with_context(by_hand)?;
        plan.install().run().with_context(by_hand)?;
    }
    let still: Vec<&str> =
        missing.iter().filter(|need| !need.is_met()).map(|need| need.reason()).collect();
    if !still.is_empty() {
        bail!("still missing after the installation: {}", still.join("; "));
    }
    Ok(())
}

/// The commands that install packages.
struct Plan<'a> {
    packages: &'a [&'a str],
    sudo: bool,
}

impl Plan<'_> {
    fn apt(&self) -> Program {
        // Through env, for sudo keeps no variables.
        let program =
            if self.sudo { Program::new("sudo").args(["env"]) } else { Program::new("env") };
        program.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]).with_stdin()
    }

    fn update(&self) -> Program {
        self.apt().args(["update"])
    }

    fn install(&self) -> Program {
        self.apt().args(["install", "--no-install-recommends"]).args(self.packages)
    }

    fn by_hand(&self) -> String {
        let sudo = if self.sudo { "sudo " } else { "" };
        let mut line = format!("{sudo}apt-get update");
        if !self.packages.is_empty() {
            let packages = self.packages.join(" ");
            line += &format!(" && {sudo}apt-get install --no-install-recommends {packages}");
        }
        line
    }
}

fn agreed() -> anyhow::Result<bool> {
    // The README's commands are to work without a terminal too, and root has said enough.
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(is_root());
    }
    eprint!("Go ahead? [Y/n] ");
    io::stderr().flush().context("cannot write to the terminal")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "" | "y" | "Y" | "yes"))
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_uid(&status) == Some(0)
}

fn effective_uid(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_has_a_reason_that_names_what_is_used() {
        for need in EVERYTHING.iter().chain(FUZZ) {
            assert!(need.reason().contains(' '), "{need:?}");
        }
    }

    #[test]
    fn the_plan_for_a_user_goes_through_sudo() {
        let plan = Plan { packages: &["gcc", "e2fsprogs"], sudo: true };
        assert_eq!(
            plan.by_hand(),
            "sudo apt-get update && sudo apt-get install --no-install-recommends gcc e2fsprogs"
        );
        assert_eq!(
            plan.install().line(),
            "sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y install \
             --no-install-recommends gcc e2fsprogs"
        );
    }

    #[test]
    fn the_plan_for_lists_alone_installs_nothing() {
        assert_eq!(Plan { packages: &[], sudo: false }.by_hand(), "apt-get update");
    }

    #[test]
    fn the_effective_user_counts() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }
}
