//! The `linkspan` program, run as a user runs it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use linkspan_host::Backend;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::places::{cli, image, rootfs};

/// A user with a runtime and a temporary directory of its own.
#[derive(Debug)]
pub struct User {
    home: TempDir,
    backend: Backend,
}

/// What a run has said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; `None` for a signal.
    pub code: Option<i32>,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
}

impl User {
    /// Somebody who uses one backend.
    ///
    /// # Panics
    /// When there is no room for directories.
    pub fn of(backend: Backend) -> Self {
        let home = tempfile::tempdir().expect("make a directory");
        for name in ["run", "tmp"] {
            std::fs::create_dir(home.path().join(name)).expect("make a directory");
        }
        Self { home, backend }
    }

    /// The words that choose the backend.
    pub fn vmm(&self) -> [&'static str; 2] {
        match self.backend {
            Backend::Qemu => ["--vmm", "qemu"],
            Backend::Loopback => ["--vmm", "loopback"],
        }
    }

    /// The program with this user's environment.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("LINKSPAN_IMAGE", image())
            .env("XDG_RUNTIME_DIR", self.home.path().join("run"))
            .env("LINKSPAN_STORE", self.home.path().join("store"))
            .env("TMPDIR", self.home.path().join("tmp"))
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `linkspan` with arguments.
    pub fn linkspan(&self, args: &[&str]) -> Command {
        let mut command = self.command(&cli());
        command.args(args);
        command
    }

    /// The arguments of `linkspan run` on this backend and the usual root.
    pub fn run_args(&self, options: &[&str], words: &[&str]) -> Vec<String> {
        let root = rootfs().to_string_lossy().into_owned();
        let parts: [&[&str]; 6] = [&["run"], &self.vmm(), options, &[&root], &["--"], words];
        parts.concat().into_iter().map(str::to_owned).collect()
    }

    /// Runs a container to its end.
    pub async fn run(&self, options: &[&str], words: &[&str], input: &[u8]) -> Said {
        let args = self.run_args(options, words);
        self.say(&args.iter().map(String::as_str).collect::<Vec<_>>(), input).await
    }

    /// Runs `linkspan` to its end.
    ///
    /// # Panics
    /// When it cannot be run, and when it takes longer than a minute.
    pub async fn say(&self, args: &[&str], input: &[u8]) -> Said {
        let mut child = self.linkspan(args).stdin(Stdio::piped()).spawn().expect("run linkspan");
        let mut stdin = child.stdin.take().expect("is piped");
        let input = input.to_vec();
        // Somebody who does not read must not block.
        let writing = tokio::spawn(async move { stdin.write_all(&input).await });
        let output = timeout(Duration::from_secs(90), child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("{args:?} hangs")).expect("run linkspan");
        drop(writing);
        let said = Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        println!("{args:?}: {said:?}");
        said
    }

    /// Files in the temporary directory, and what named utility VMs have left.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for directory in ["tmp", "run/linkspan/uvm"] {
            let entries = std::fs::read_dir(self.home.path().join(directory));
            for entry in entries.into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name != ".lock" {
                    left.push(format!("{directory}/{name}"));
                }
            }
        }
        left
    }
}
