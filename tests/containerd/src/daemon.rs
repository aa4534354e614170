//! containerd, with everything that it has in one directory.

use std::cell::RefCell;
use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::Arguments;

/// How long it may take to answer, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// A running containerd.
pub(crate) struct Daemon {
    child: RefCell<Child>,
    binaries: PathBuf,
    path: String,
    directory: TempDir,
}

impl Daemon {
    pub(crate) fn start(arguments: &Arguments) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("linkspan-containerd-").tempdir()?;
        let place = directory.path();
        let name = place.file_name().unwrap_or_default().display().to_string();
        // The kernel's argument is there for its machine's command line: it says whose that is.
        let options = format!(
            "image = {:?}\nlayer_cache = {:?}\nboot_timeout_s = 600\nkernel_args = \
             [\"linkspan.test={name}\"]\n",
            arguments.image,
            place.join("layers")
        );
        fs::write(place.join("shim.toml"), options)?;
        fs::write(place.join("config.toml"), config(place))?;
        let old = env::var("PATH").unwrap_or_default();
        let path = format!("{}:{}:{old}", arguments.shim.display(), arguments.containerd.display());
        let child = launch(&arguments.containerd, &path, place)?;
        let child = RefCell::new(child);
        let daemon = Self { child, binaries: arguments.containerd.clone(), path, directory };
        daemon.answers()?;
        Ok(daemon)
    }

    /// Where everything is.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A name that nothing else has.
    pub(crate) fn name(&self) -> String {
        self.directory().file_name().unwrap_or_default().display().to_string()
    }

    /// One of its programs, ready for arguments.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.binaries.join(name));
        command.env("PATH", &self.path);
        command
    }

    pub(crate) fn version(&self) -> Result<String> {
        let output = self.program("containerd").arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.split_whitespace().nth(2).unwrap_or("of unknown version").to_owned())
    }

    /// Kills it as a crash would, and starts it anew on what it had.
    pub(crate) fn crash(&self) -> Result<()> {
        let mut child = self.child.borrow_mut();
        child.kill()?;
        child.wait()?;
        *child = launch(&self.binaries, &self.path, self.directory.path())?;
        self.answers()
    }

    /// The end of what it has logged.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        let read = File::open(self.directory().join("log"))
            .and_then(|mut file| file.read_to_string(&mut text));
        if read.is_err() {
            return "it cannot be read".to_owned();
        }
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Ends it in good order.
    pub(crate) fn stop(self) -> Result<()> {
        let mut child = self.child.borrow_mut();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let began = Instant::now();
        while child.try_wait()?.is_none() {
            if began.elapsed() > LIMIT {
                child.kill()?;
                bail!("containerd does not end");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn answers(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let asked = self
                .program("ctr")
                .arg("--address")
                .arg(self.directory().join("sock"))
                .arg("version")
                .output()
                .context("run ctr")?;
            if asked.status.success() {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                bail!("containerd does not answer:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn config(place: &Path) -> String {
    let path = |name: &str| format!("{:?}", place.join(name));
    let (cri, runtime) = ("plugins.\"io.containerd.grpc.v1.cri\"", "containerd.runtimes.linkspan");
    format!(
        "version = 2\nroot = {root}\nstate = {state}\n\
         disabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {sock}\n[ttrpc]\naddress = {ttrpc}\n\
         [{cri}]\nsandbox_image = {pause:?}\nrestrict_oom_score_adj = true\n\
         [{cri}.cni]\nconf_dir = {nowhere}\nbin_dir = {nowhere}\n\
         [{cri}.containerd]\ndefault_runtime_name = \"linkspan\"\n\
         [{cri}.{runtime}]\nruntime_type = {ours:?}\n\
         [{cri}.{runtime}.options]\nConfigPath = {options}\n",
        root = path("root"),
        state = path("state"),
        sock = path("sock"),
        ttrpc = path("sock.ttrpc"),
        pause = crate::image::PAUSE,
        nowhere = path("cni"),
        ours = crate::OURS,
        options = path("shim.toml"),
    )
}

fn launch(binaries: &Path, path: &str, place: &Path) -> Result<Child> {
    let mut log = File::options().append(true).create(true).open(place.join("log"))?;
    writeln!(log, "-- started")?;
    Command::new(binaries.join("containerd"))
        .arg("--config")
        .arg(place.join("config.toml"))
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("start containerd")
}
