//! containerd as Debian has it in one of its releases, unpacked and not installed.
//!
//! apt gets and verifies the packages, with lists of its own: this machine's stay as they are.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::workspace::{Program, Workspace, output};

/// What is needed to run containers, the stock way and ours.
const PACKAGES: [&str; 2] = ["containerd", "runc"];

/// Whose runc runs everywhere.
const RUNC_SUITE: &str = "bookworm";

/// Programs of those packages.
const PROGRAMS: [&str; 4] = ["containerd", "ctr", "containerd-shim-runc-v2", "runc"];

/// The directory with containerd's programs; unpacked once.
pub(crate) fn get(workspace: &Workspace, suite: &str) -> anyhow::Result<PathBuf> {
    let place = workspace.linkspan().join("containerd").join(suite);
    let binaries = place.join("bin");
    if PROGRAMS.iter().all(|program| binaries.join(program).is_file()) {
        eprintln!("  {} (kept)", binaries.display());
        return Ok(binaries);
    }
    let work = place.join("work");
    let _ = fs::remove_dir_all(&place);
    for directory in ["lists/partial", "archives", "root"] {
        let path = work.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    let sources = work.join("sources.list");
    let line = format!("deb [signed-by={KEYS}] {} {suite} main\n", mirror()?);
    fs::write(&sources, line).with_context(|| format!("cannot write {}", sources.display()))?;
    apt(&work).args(["-q", "update"]).run()?;
    apt(&work).args(["-q", "download"]).args(PACKAGES).within(&work.join("archives")).run()?;
    unpack(&work)?;
    fs::create_dir_all(&binaries).with_context(|| format!("cannot make {}", binaries.display()))?;
    for program in PROGRAMS {
        // A newer runc asks for a newer libc; a newer containerd does not mind an older runc.
        if program == "runc" && suite != RUNC_SUITE {
            let runc = get(workspace, RUNC_SUITE)?.join("runc");
            symlink(runc, binaries.join(program)).context("cannot link runc")?;
            continue;
        }
        let found =
            ["usr/sbin", "usr/bin"].map(|place| work.join("root").join(place).join(program));
        let Some(found) = found.iter().find(|path| path.is_file()) else {
            bail!("{suite}'s packages hold no {program}");
        };
        symlink(found, binaries.join(program)).with_context(|| format!("cannot link {program}"))?;
    }
    Ok(binaries)
}

/// What Debian signs its archive with.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where this machine gets its packages from.
fn mirror() -> anyhow::Result<String> {
    let targets = output("apt-get", &["indextargets", "--format", "$(REPO_URI) $(ORIGIN)"]);
    let targets = targets.unwrap_or_default();
    let mut debian = targets.lines().filter_map(|line| line.strip_suffix(" Debian"));
    let main = debian.find(|uri| !uri.trim_end_matches('/').ends_with("-security"));
    main.map(str::to_owned).context(
        "apt knows no Debian archive: name one in /etc/apt/sources.list, then `apt-get update`",
    )
}

/// apt with lists of its own.
fn apt(work: &Path) -> Program {
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    Program::new("apt-get")
        .args(["-o", &option("Dir::Etc::SourceList", &work.join("sources.list"))])
        .args(["-o", "Dir::Etc::SourceParts=-", "-o", "APT::Sandbox::User=root"])
        .args(["-o", &option("Dir::State::Lists", &work.join("lists"))])
        .args(["-o", "Dir::Cache::PkgCache=", "-o", "Dir::Cache::SrcPkgCache="])
}

fn unpack(work: &Path) -> anyhow::Result<()> {
    let archives = work.join("archives");
    for name in PACKAGES {
        let files = fs::read_dir(&archives)?.flatten().map(|entry| entry.path());
        let prefix = format!("{name}_");
        let of_package = |path: &PathBuf| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix))
        };
        let Some(package) = files.into_iter().find(of_package) else {
            bail!("apt-get got no package {name}");
        };
        Program::new("dpkg-deb")
            .args(["-x".as_ref(), package.as_os_str()])
            .args([work.join("root")])
            .run()?;
    }
    Ok(())
}
