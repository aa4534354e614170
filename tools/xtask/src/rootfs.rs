//! A small root file system: busybox, and the few files that make it a system.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};

use crate::{
    stamp::Stamp,
    steps::Steps,
    workspace::{Workspace, output},
};

const BUSYBOX: &str = "/bin/busybox";

/// Directories that programs expect, with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home/user", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
];

const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"),
    ("etc/group", "root:x:0:\nuser:x:1000:\n"),
    (
        "etc/os-release",
        "ID=busybox\nNAME=Busybox\nPRETTY_NAME=\"Busybox in a Linkspan container\"\n",
    ),
];

/// Makes it, unless it is there.
pub(crate) fn run(workspace: &Workspace, steps: &mut Steps) -> anyhow::Result<()> {
    let directory = workspace.rootfs();
    let stamp = Stamp::new(directory.with_extension("stamp"), &[Path::new(BUSYBOX)])?;
    if stamp.holds(std::slice::from_ref(&directory)) {
        return Ok(());
    }
    steps.run("make a root file system", || {
        stamp.clear()?;
        let applets = output(BUSYBOX, &["--list-full"])
            .ok_or_else(|| anyhow!("`{BUSYBOX} --list-full` failed"))?;
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        fill(&directory, Path::new(BUSYBOX), &applets)?;
        eprintln!("  {}", directory.display());
        stamp.set()
    })
}

fn fill(directory: &Path, busybox: &Path, applets: &str) -> anyhow::Result<()> {
    let cannot = |path: PathBuf| move || format!("cannot make {}", path.display());
    for (name, mode) in DIRECTORIES {
        let path = directory.join(name);
        fs::create_dir_all(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(*mode)))
            .with_context(cannot(path.clone()))?;
    }
    for (name, content) in FILES {
        let path = directory.join(name);
        fs::write(&path, content).with_context(cannot(path.clone()))?;
    }
    let program = directory.join("bin/busybox");
    fs::copy(busybox, &program).with_context(cannot(program.clone()))?;
    for applet in applets.lines().filter(|applet| *applet != "bin/busybox") {
        let path = directory.join(applet);
        // What busybox would put elsewhere, such as linuxrc at the top, is of no use here.
        if path.parent().is_some_and(|parent| parent != directory && parent.is_dir()) {
            symlink(BUSYBOX, &path).with_context(cannot(path.clone()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applets_are_links_to_the_one_program() {
        let dir = tempfile::tempdir().unwrap();
        let (busybox, root) = (dir.path().join("busybox"), dir.path().join("root"));
        fs::write(&busybox, "program").unwrap();
        fill(&root, &busybox, "bin/busybox\nbin/sh\nusr/bin/id\nlinuxrc\n").unwrap();
        assert_eq!(fs::read(root.join("bin/busybox")).unwrap(), b"program");
        assert_eq!(fs::read_link(root.join("bin/sh")).unwrap(), Path::new("/bin/busybox"));
        assert_eq!(fs::read_link(root.join("usr/bin/id")).unwrap(), Path::new("/bin/busybox"));
        assert!(fs::symlink_metadata(root.join("linuxrc")).is_err());
        let mode = fs::metadata(root.join("tmp")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
    }
}
