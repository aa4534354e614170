//! What this machine has of what utility VMs under QEMU need.

use std::path::Path;

use super::options::find_in;
use super::{kvm, shares, vhost};
use crate::doctor::Finding;

/// Looks at all of it. KVM is tried with the kernel, if there is one.
pub(crate) async fn examine(kernel: Option<&Path>) -> Vec<Finding> {
    let qemu = find_in(&std::env::var_os("PATH").unwrap_or_default());
    let program = match &qemu {
        Some(path) => Finding::good("qemu", path.display().to_string()),
        None => {
            let mend = "apt-get install qemu-system-x86";
            Finding::bad("qemu", "there is no qemu-system-x86_64 in PATH", mend)
        }
    };
    vec![program, kvm(qemu.as_deref(), kernel).await, vsock(), virtiofsd()]
}

async fn kvm(qemu: Option<&Path>, kernel: Option<&Path>) -> Finding {
    const SLOWLY: &str = "utility VMs run all the same, some ten times slower; ";
    if let Err(error) = kvm::open_device() {
        let mend = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "usermod -a -G kvm USER, or run as root",
            _ => "modprobe kvm_intel or kvm_amd; in a VM, its host has to allow nesting",
        };
        return Finding::fair("kvm", format!("/dev/kvm: {error}"), format!("{SLOWLY}{mend}"));
    }
    let (Some(qemu), Some(kernel)) = (qemu, kernel) else {
        let mend = "run this again when there are a QEMU and a boot image";
        return Finding::fair("kvm", "/dev/kvm opens; whether it works was not tried", mend);
    };
    match kvm::verdict(qemu, kernel).await {
        Ok(verdict) if verdict.works => Finding::good("kvm", verdict.reason),
        Ok(verdict) => {
            let mend = format!("{SLOWLY}this machine's host has to mend its nested virtualisation");
            Finding::fair("kvm", verdict.reason, mend)
        }
        Err(error) => Finding::fair("kvm", error.to_string(), SLOWLY.trim_end_matches("; ")),
    }
}

fn vsock() -> Finding {
    match vhost::is_there() {
        true => Finding::good("vsock", "/dev/vhost-vsock opens"),
        false => Finding::good("vsock", "no /dev/vhost-vsock: the built-in device is used"),
    }
}

fn virtiofsd() -> Finding {
    match shares::program() {
        Some(path) => Finding::good("virtiofsd", path.display().to_string()),
        None => Finding::fair(
            "virtiofsd",
            "there is none: host directories cannot be shared with containers",
            "apt-get install virtiofsd, or qemu-system-common before Debian 13",
        ),
    }
}
