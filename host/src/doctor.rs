//! What this machine has of what is needed, and how to mend what it lacks.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::vmm::qemu;
use crate::{Backend, boot_image};

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// It works, with less or more slowly.
    Fair,
    /// Something will not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What: `kvm`, `qemu` and so on.
    pub subject: &'static str,
    /// How it is.
    pub state: State,
    /// What was found, with the path or version.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    pub(crate) fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, state: State::Good, found: found.into(), mend: None }
    }

    pub(crate) fn fair(
        subject: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { subject, state: State::Fair, found: found.into(), mend: Some(mend.into()) }
    }

    pub(crate) fn bad(
        subject: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { subject, state: State::Bad, found: found.into(), mend: Some(mend.into()) }
    }
}

/// The program that containerd runs.
const SHIM: &str = "containerd-shim-linkspan-v1";

/// The runtime's name in containerd's configuration.
const RUNTIME: &str = "io.containerd.linkspan.v1";

/// Looks at all that utility VMs under QEMU need, and at what containerd needs to run them. Where
/// KVM has not been tried on this machine yet, it is, which may take some seconds.
pub async fn examine(image: Option<&Path>) -> Vec<Finding> {
    let (boot, kernel) = match boot_image::find(image, Backend::Qemu) {
        Ok(directory) => {
            let vmlinux = directory.join("vmlinux");
            let kernel = if vmlinux.exists() { vmlinux } else { directory.join("vmlinuz") };
            (Finding::good("boot image", directory.display().to_string()), Some(kernel))
        }
        Err(error) => {
            let mend = "cargo xtask image, or linkspan image build";
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            (Finding::bad("boot image", first, mend), None)
        }
    };
    let mut findings = vec![boot];
    findings.extend(qemu::examine(kernel.as_deref()).await);
    findings.extend(containerd(Path::new("/etc/containerd/config.toml")));
    findings
}

/// What containerd needs.
fn containerd(config: &Path) -> Vec<Finding> {
    let Some(containerd) = in_path("containerd") else {
        let mend = "apt-get install containerd, if containers are to be run under it";
        return vec![Finding::fair("containerd", "there is none in PATH", mend)];
    };
    let mut findings = vec![Finding::good("containerd", containerd.display().to_string())];
    findings.push(match in_path(SHIM) {
        Some(shim) => Finding::good("shim", shim.display().to_string()),
        None => Finding::bad(
            "shim",
            format!("{SHIM} is not in PATH"),
            format!("install it where containerd's own PATH leads: /usr/local/bin/{SHIM}"),
        ),
    });
    findings.push(runtime(config));
    findings
}

/// Whether containerd's configuration names the runtime.
fn runtime(config: &Path) -> Finding {
    match fs::read_to_string(config).map(|text| text.contains(RUNTIME)) {
        Ok(true) => Finding::good("runtime", format!("{} names {RUNTIME}", config.display())),
        _ => Finding::fair(
            "runtime",
            format!("{} does not name {RUNTIME}", config.display()),
            "only Kubernetes needs that; docs/containerd.md has the lines",
        ),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|directory| directory.join(program));
    places.find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_that_is_not_good_says_how_to_mend_it() {
        let place = tempfile::tempdir().unwrap();
        let config = place.path().join("config.toml");
        for finding in containerd(&config) {
            assert_eq!(finding.mend.is_none(), finding.state == State::Good, "{finding:?}");
        }
    }

    #[test]
    fn the_runtime_is_good_where_containerds_configuration_names_it() {
        let place = tempfile::tempdir().unwrap();
        let config = place.path().join("config.toml");
        let missing = runtime(&config);
        assert_eq!(missing.state, State::Fair);
        assert!(missing.mend.unwrap().contains("docs/containerd.md"));
        fs::write(&config, "runtime_type = \"io.containerd.runc.v2\"").unwrap();
        assert_eq!(runtime(&config).state, State::Fair);
        fs::write(&config, format!("runtime_type = \"{RUNTIME}\"")).unwrap();
        let named = runtime(&config);
        assert_eq!((named.state, named.mend), (State::Good, None));
    }
}
