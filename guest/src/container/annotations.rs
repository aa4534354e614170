//! What a container's annotations ask of the guest.

use serde_json::Value;
use tracing::warn;

/// `sandbox`, `container`, or absent.
pub(super) const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// Which sandbox a `container` belongs to.
pub(super) const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// A pod inside a utility VM that several pods share; goes before [`SANDBOX_ID`].
pub(super) const VIRTUAL_POD_ID: &str = "io.microsoft.cri.virtual-pod-id";
/// A sandbox may do without its network.
pub(super) const SKIP_NETWORK: &str = "io.microsoft.cri.skip-pod-networking";
/// `soft;hard`
pub(super) const CORE_LIMIT: &str = "io.microsoft.lcow.rlimitcore";
/// Size of `/dev/shm` in KiB.
pub(super) const SHM_SIZE: &str = "io.microsoft.lcow.shm.size-kb";
/// All devices.
pub(super) const PRIVILEGED: &str = "io.microsoft.virtualmachine.lcow.privileged";
/// The utility VM's own network.
pub(super) const HOST_NETWORK: &str = "io.microsoft.virtualmachine.lcow.hostnetwork";
/// A file below the pod's logs that gets the init's output as well.
pub(super) const TEE_LOG_PATH: &str = "io.microsoft.container.lcow.tee-log-path";
/// Where in the container the pod's logs are.
pub(super) const TEE_LOG_MOUNT: &str = "io.microsoft.container.lcow.tee-log-dir-mount";
/// Whether the container gets a directory with what vouches for the VM.
pub(super) const SECURITY_CONTEXT: &str = "io.microsoft.virtualmachine.lcow.securitypolicy.env";
/// A certificate for that directory. Hosts do use this key for Linux guests.
pub(super) const CERTIFICATE: &str = "io.microsoft.virtualmachine.wcow.amd-certificate";
/// Words for the program that sets a GPU up, parted by commas.
pub(super) const GPU_CAPABILITIES: &str = "io.microsoft.container.gpu.capabilities";

/// The annotations of an OCI spec.
#[derive(Clone, Copy)]
pub(super) struct Annotations<'a>(&'a Value);

impl<'a> Annotations<'a> {
    pub(super) fn of(spec: &'a Value) -> Self {
        Self(&spec["annotations"])
    }

    /// A value; an empty one is as good as none.
    pub(super) fn get(self, key: &str) -> Option<&'a str> {
        self.0[key].as_str().filter(|value| !value.is_empty())
    }

    /// A truth value in the spelling that hosts use, with a default for all else.
    pub(super) fn flag(self, key: &str, default: bool) -> bool {
        match self.get(key) {
            None => default,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(value) => {
                warn!(key, value, default, "an annotation is neither true nor false");
                default
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn truth_has_six_spellings_and_nonsense_is_the_default() {
        let spec = json!({"annotations": {"yes": "T", "no": "0", "what": "yes", "none": ""}});
        let annotations = Annotations::of(&spec);
        assert!(annotations.flag("yes", false) && !annotations.flag("no", true));
        for key in ["what", "none", "absent"] {
            assert!(annotations.flag(key, true) && !annotations.flag(key, false), "{key}");
        }
        assert_eq!(annotations.get("none"), None);
        assert!(!Annotations::of(&Value::Null).flag("yes", false));
    }
}
