//! Where the things under test are.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The directory of the boot image and the agent.
///
/// # Panics
/// When there is none.
pub fn image() -> PathBuf {
    find("LINKSPAN_IMAGE", "linkspan/image", "initrd")
}

/// A busybox root file system with the users `root`, and one that is not.
///
/// # Panics
/// When there is none.
pub fn rootfs() -> PathBuf {
    find("LINKSPAN_ROOTFS", "linkspan/rootfs", "bin/busybox")
}

/// The `linkspan` program.
///
/// # Panics
/// When there is none.
pub fn cli() -> PathBuf {
    find("LINKSPAN_BIN", "release/linkspan", "")
}

fn find(variable: &str, default: &str, within: &str) -> PathBuf {
    let place = match std::env::var_os(variable) {
        Some(place) => PathBuf::from(place),
        None => target().join(default),
    };
    let probe = if within.is_empty() { place.clone() } else { place.join(within) };
    assert!(
        probe.exists(),
        "{} is missing ({variable}): run these tests with `cargo xtask test`",
        probe.display()
    );
    place
}

/// The workspace's target directory, where `cargo xtask` puts what it makes.
fn target() -> &'static Path {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    TARGET.get_or_init(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"))
}
