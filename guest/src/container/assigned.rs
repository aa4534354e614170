//! Devices that the host assigns through `windows.devices`.
//!
//! | `idType`                    | `id`           | the container gets                            |
//! |-----------------------------|----------------|-----------------------------------------------|
//! | `vpci`, `vpci-instance-id`  | VMBus instance | the nodes of the PCI device behind it         |
//! | `gpu`                       | VMBus instance | a hook that sets the GPU up, all character devices |

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tracing::warn;

use super::annotations::{self, Annotations};
use super::bundle::{Bundle, list};
use super::devices::{self, Device};
use crate::Result;
use crate::storage::appear;
use crate::uvm::Uvm;

pub(super) async fn add(uvm: &Uvm, bundle: &mut Bundle) -> Result<()> {
    let Some(assigned) = bundle.spec["windows"]["devices"].as_array().cloned() else {
        return Ok(());
    };
    let mut gpus = Vec::new();
    for device in assigned {
        let id = device["id"].as_str().unwrap_or_default();
        match device["idType"].as_str().unwrap_or_default() {
            "vpci" | "vpci-instance-id" => {
                let bus = uvm.devices.pci(id).await?;
                let what = format!("the device nodes of {}", bus.display());
                for node in appear(&what, || nodes(&bus)).await? {
                    node.add(&mut bundle.spec);
                }
            }
            "gpu" => gpus.push(uvm.devices.pci(id).await?),
            other => warn!(id, kind = other, "an assigned device of an unknown kind is left out"),
        }
    }
    if !gpus.is_empty() {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/init"));
        add_gpu_hook(bundle, &program, &gpus);
    }
    Ok(())
}

/// Those of all devices that lie below a place in sysfs; none yet is `None`.
fn nodes(bus: &Path) -> Result<Option<Vec<Device>>> {
    let Ok(bus) = bus.canonicalize() else { return Ok(None) };
    let mut all = Vec::new();
    devices::collect(Path::new("/dev"), &mut all)?;
    all.retain(|device| device.sysfs().is_some_and(|place| place.starts_with(&bus)));
    Ok((!all.is_empty()).then_some(all))
}

/// The agent's program is the hook: called `generichook`, it puts the pid into the arguments.
fn add_gpu_hook(bundle: &mut Bundle, program: &Path, gpus: &[PathBuf]) {
    let log = bundle.directory.join("nvidia-container.log");
    let mut args = vec![
        "generichook".to_owned(),
        "nvidia-container-cli".to_owned(),
        format!("--debug={}", log.display()),
        "--no-pivot".to_owned(),
        "configure".to_owned(),
        "--ldconfig=@/sbin/ldconfig".to_owned(),
    ];
    let wanted = Annotations::of(&bundle.spec).get(annotations::GPU_CAPABILITIES);
    let wanted = wanted.unwrap_or_default().split(',').filter(|word| !word.is_empty());
    args.extend(wanted.map(|word| format!("--{word}")));
    let location =
        |gpu: &PathBuf| gpu.file_name().unwrap_or_default().to_string_lossy().into_owned();
    args.extend(gpus.iter().map(|gpu| format!("--device={}", location(gpu))));
    args.push("--pid={{pid}}".to_owned());
    args.push(bundle.root.to_string_lossy().into_owned());
    let path = std::env::var("PATH").unwrap_or_else(|_| "/sbin:/usr/sbin:/bin:/usr/bin".to_owned());
    let env = [
        format!("PATH={path}"),
        "NVC_INSECURE_MODE=1".to_owned(),
        format!("GENERIC_HOOK_LOG_DEBUG_FILE={}", log.display()),
    ];
    list(&mut bundle.spec, "/hooks/createRuntime")
        .push(json!({"path": program, "args": args, "env": env}));
    let rule: Value = json!({"allow": true, "type": "c", "access": "rwm"});
    list(&mut bundle.spec, "/linux/resources/devices").push(rule);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_set_up_by_a_hook_that_learns_the_pid() {
        let spec = json!({
            "process": {}, "linux": {}, "root": {"path": "rootfs"},
            "annotations": {(annotations::GPU_CAPABILITIES): "compute,utility"},
        });
        let mut bundle = Bundle::new("/run/gcs/c/x", Some(spec)).unwrap();
        add_gpu_hook(&mut bundle, "/init".as_ref(), &["/sys/x/0001:00:00.0".into()]);
        let hook = &bundle.spec["hooks"]["createRuntime"][0];
        assert_eq!(hook["path"], "/init");
        let args: Vec<_> =
            hook["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
        assert_eq!(args[..2], ["generichook", "nvidia-container-cli"]);
        assert_eq!(
            args[6..],
            [
                "--compute",
                "--utility",
                "--device=0001:00:00.0",
                "--pid={{pid}}",
                "/run/gcs/c/x/rootfs"
            ]
        );
        assert_eq!(bundle.spec["linux"]["resources"]["devices"][0]["type"], "c");
    }
}
