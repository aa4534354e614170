//! Kernel modules, in the groups and the order that the image builder wrote down. Where nothing is
//! written down, the kernel has what it has.

use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Lists of module files in load order, by group.
const LISTS: &str = "/etc/linkspan/modules";

/// Loads a group, those of its modules that are not there yet. What fails is not fatal: whatever
/// needs it will say so, and the lines that are returned say why.
pub(crate) fn load(group: &str) -> Vec<String> {
    let Ok(list) = fs::read_to_string(Path::new(LISTS).join(group)) else { return Vec::new() };
    let missing = list.lines().filter(|path| !path.is_empty() && !is_loaded(path));
    missing.filter_map(|path| load_file(path).err()).collect()
}

/// As [`load`], while requests are served: what fails is logged.
pub(crate) fn need(group: &str) {
    for problem in load(group) {
        tracing::warn!(group, problem, "a kernel module cannot be loaded");
    }
}

fn load_file(path: &str) -> Result<(), String> {
    let problem = |error: &dyn std::fmt::Display| format!("module {path}: {error}");
    let file = File::open(path).map_err(|error| problem(&error))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(problem(&error)),
    }
}

fn is_loaded(path: &str) -> bool {
    is_live(&Path::new("/sys/module").join(name(path)))
}

/// Whether a module is there and ready. One that somebody else is loading at this moment is there
/// but not ready; to load it as well waits for that. One that is built in has no state.
fn is_live(module: &Path) -> bool {
    match fs::read_to_string(module.join("initstate")) {
        Ok(state) => state.trim_end() == "live",
        Err(_) => module.exists(),
    }
}

/// The kernel's name of a module.
fn name(path: &str) -> String {
    let file = Path::new(path).file_stem().unwrap_or_default();
    file.to_string_lossy().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_as_the_kernel_names_its_module() {
        assert_eq!(name("/lib/modules/6.1.0/dm-verity.ko"), "dm_verity");
        assert_eq!(load("no such group"), Vec::<String>::new());
    }

    #[test]
    fn a_module_that_is_still_being_loaded_is_not_there_yet() {
        let directory =
            std::env::temp_dir().join(format!("linkspan-module-{}", std::process::id()));
        assert!(!is_live(&directory));
        fs::create_dir(&directory).unwrap();
        assert!(is_live(&directory), "built in");
        for (state, live) in [("coming\n", false), ("live\n", true), ("going\n", false)] {
            fs::write(directory.join("initstate"), state).unwrap();
            assert_eq!(is_live(&directory), live, "{state}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
