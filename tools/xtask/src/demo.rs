//! From nothing to a container's output.

use crate::{
    prepare,
    setup::Consent,
    steps::{Steps, headline},
    workspace::{Program, Workspace},
};

/// How the container is run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What runs the utility VM: qemu, or loopback for no VM at all
    #[arg(long, default_value = "qemu")]
    vmm: String,
    /// How QEMU runs the processor: auto, kvm or tcg
    #[arg(long, default_value = "auto")]
    accel: String,
}

/// What the container has to say about itself.
const SCRIPT: &str = r#"
. /etc/os-release
echo "Hello from a container: $PRETTY_NAME"
echo
echo "kernel      $(uname -srm)"
echo "user        $(id)"
echo "processes   $(ls -d /proc/[0-9]* | wc -l) (this shell is number $$)"
echo "memory      $(awk '/^MemTotal/ { print $2, $3 }' /proc/meminfo)"
echo "root        $(awk '$2 == "/" { print $3 }' /proc/mounts | tail -n 1)"
echo "mounts"
awk '{ printf "  %-24s %s\n", $2, $3 }' /proc/mounts
"#;

/// Sets up, builds, boots and runs.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    prepare::run(workspace, consent, steps)?;
    steps.run("boot a utility VM and run a container in it", || {
        Program::new(workspace.cli())
            .args(["run", "--vmm", &options.vmm, "--accel", &options.accel, "--image"])
            .args([workspace.image(), workspace.rootfs()])
            .args(["--", "sh", "-c", SCRIPT])
            .run()
    })?;
    headline("done; the same by hand:");
    let by_hand = Program::new(workspace.cli())
        .args(["run", "--image"])
        .args([workspace.image(), workspace.rootfs()])
        .args(["--", "echo", "hello"]);
    eprintln!("  {}", by_hand.line());
    Ok(())
}
