//! `install-drivers OVERLAY DRIVERS`: makes the files of `DRIVERS` usable at `OVERLAY/content`, and
//! loads the kernel modules among them.
//!
//! Which module needs which is not looked up: one whose needs are missing is refused by the kernel,
//! and tried again once another has been loaded.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MntFlags, umount2};

use crate::storage::Overlay;

pub(super) fn run(args: &[String]) -> Result<(), String> {
    let [overlay, drivers] = args else {
        return Err("needs two arguments: OVERLAY DRIVERS".to_owned());
    };
    let (overlay, drivers) = (Path::new(overlay), PathBuf::from(drivers));
    if overlay.exists() {
        return Ok(());
    }
    if !drivers.is_dir() {
        return Err(format!("{} is not a directory", drivers.display()));
    }
    let content = overlay.join("content");
    let installed = mount(overlay, &content, drivers).and_then(|()| load_all(&content));
    if installed.is_err() {
        // So that a second try is one.
        let _ = umount2(&content, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(overlay);
    }
    installed
}

fn mount(overlay: &Path, content: &Path, drivers: PathBuf) -> Result<(), String> {
    for directory in [content.to_owned(), overlay.join("upper"), overlay.join("work")] {
        fs::create_dir_all(&directory)
            .map_err(|error| format!("make {}: {error}", directory.display()))?;
    }
    let overlay = Overlay {
        root: content.to_owned(),
        layers: vec![drivers],
        scratch: Some(overlay.to_owned()),
    };
    overlay.mount().map(drop).map_err(|error| error.to_string())
}

fn load_all(content: &Path) -> Result<(), String> {
    let mut waiting = Vec::new();
    collect(content, &mut waiting)
        .map_err(|error| format!("list {}: {error}", content.display()))?;
    waiting.sort();
    loop {
        let before = waiting.len();
        let mut problem = None;
        waiting.retain(|path| match load(path) {
            Ok(()) => false,
            Err(error) => {
                problem = Some(format!("load {}: {}", path.display(), error.desc()));
                true
            }
        });
        match problem {
            None => return Ok(()),
            Some(problem) if waiting.len() == before => return Err(problem),
            Some(_) => {}
        }
    }
}

fn load(path: &Path) -> Result<(), Errno> {
    let file = File::open(path)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

fn collect(directory: &Path, modules: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), modules)?;
        } else if entry.path().extension().is_some_and(|extension| extension == "ko") {
            modules.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_not_installed_again_and_what_is_wrong_is_told() {
        let base = std::env::temp_dir().join(format!("linkspan-drivers-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        let path = |name: &str| base.join(name).to_string_lossy().into_owned();
        run(&[base.to_string_lossy().into_owned(), path("none")]).unwrap();
        assert!(run(&[path("new"), path("none")]).unwrap_err().contains("none"));
        assert!(run(&[path("new")]).unwrap_err().contains("OVERLAY DRIVERS"));
        assert!(!base.join("new").exists());
        fs::create_dir_all(base.join("a/b")).unwrap();
        fs::write(base.join("a/b/x.ko"), "").unwrap();
        fs::write(base.join("a/y.txt"), "").unwrap();
        let mut found = Vec::new();
        collect(&base, &mut found).unwrap();
        assert_eq!(found, [base.join("a/b/x.ko")]);
        assert!(load_all(&base).unwrap_err().contains("x.ko"));
        fs::remove_dir_all(&base).unwrap();
    }
}
