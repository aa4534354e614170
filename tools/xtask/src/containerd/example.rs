//! The runtime in one file that shows what the host library is for: built, and run on a bundle.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

use crate::workspace::Workspace;

/// What a runtime gets as `config.json`, as little of it as there can be.
const CONFIG: &str = r#"{
  "ociVersion": "1.1.0",
  "process": {
    "args": ["sh", "-c", "echo out; echo err >&2; sleep 3; exit 7"],
    "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"],
    "cwd": "/",
    "user": {"uid": 0, "gid": 0}
  },
  "root": {"path": "rootfs"},
  "hostname": "bundle",
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
  "linux": {
    "namespaces": [
      {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}
    ]
  }
}
"#;

/// Builds it, runs a bundle with it, and looks at what comes out.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    workspace.cargo(["build", "-p", "linkspan-host", "--example", "bundle-runtime"]).run()?;
    let bundle = workspace.linkspan().join("bundle");
    let _ = fs::remove_dir_all(&bundle);
    make(&bundle, &workspace.rootfs())
        .with_context(|| format!("cannot make {}", bundle.display()))?;
    let output = Command::new(workspace.debug("examples/bundle-runtime"))
        .args([workspace.image(), bundle])
        .args(["--", "cat", "/proc/1/comm"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run the example")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    eprint!("{stdout}{stderr}");
    ensure!(output.status.code() == Some(7), "it is to end with 7, not {}", output.status);
    ensure!(stdout == "out\n", "its output is to be `out`");
    for word in ["err\n", "sh\n", "bytes of memory in use"] {
        ensure!(stderr.contains(word), "its errors lack {word:?}");
    }
    Ok(())
}

fn make(bundle: &Path, rootfs: &Path) -> std::io::Result<()> {
    fs::create_dir_all(bundle)?;
    symlink(rootfs, bundle.join("rootfs"))?;
    fs::write(bundle.join("config.json"), CONFIG)
}
