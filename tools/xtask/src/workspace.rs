//! Where things are, and how programs are run there.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

/// The target that the guest agent is built for.
pub(crate) const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// This checkout.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The checkout that this program was built from.
    pub(crate) fn find() -> anyhow::Result<Self> {
        // Cargo says where the crate is now; it may have been moved since it was built.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.ancestors().nth(2).unwrap_or(&manifest).to_path_buf();
        if !root.join("Cargo.lock").is_file() {
            bail!("{} is not the root of the workspace", root.display());
        }
        let target = match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
            Some(target) => env::current_dir()
                .context("cannot find the current directory")?
                .join(PathBuf::from(target)),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// Its root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the boot image is put: `vmlinuz`, `vmlinux`, `initrd`, `agent`.
    pub(crate) fn image(&self) -> PathBuf {
        self.target.join("linkspan/image")
    }

    /// Where the small root file system is put.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.target.join("linkspan/rootfs")
    }

    /// Where what is fetched and made for tests is put.
    pub(crate) fn linkspan(&self) -> PathBuf {
        self.target.join("linkspan")
    }

    /// A program of a release build, or with an empty name the directory of them all.
    pub(crate) fn release(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// A program of a build for tests.
    pub(crate) fn debug(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    /// Where a Debian is made and taken apart.
    pub(crate) fn debian(&self) -> PathBuf {
        self.target.join("linkspan/debian")
    }

    /// Where fuzzing builds are put, which share nothing with the others.
    pub(crate) fn fuzz_target(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// Where mutated copies of the sources are put and built.
    pub(crate) fn mutants(&self) -> PathBuf {
        self.target.join("mutants")
    }

    /// The static guest agent, once it is built.
    pub(crate) fn agent(&self) -> PathBuf {
        self.target.join(GUEST_TARGET).join("guest/linkspan-guest")
    }

    /// The least that can answer a host, once it is built.
    pub(crate) fn floor(&self) -> PathBuf {
        self.target.join(GUEST_TARGET).join("release/linkspan-floor")
    }

    /// The command-line tool, once it is built.
    pub(crate) fn cli(&self) -> PathBuf {
        self.target.join("release/linkspan")
    }

    /// Builds the command-line tool.
    pub(crate) fn build_cli(&self) -> anyhow::Result<()> {
        self.cargo(["build", "--release", "-p", "linkspan-cli"]).run()
    }

    /// Cargo, at the root. What this run of xtask got from cargo is not passed on: build scripts
    /// look at some of it, and would run again for every other value.
    pub(crate) fn cargo<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Program {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut program = Program::new(cargo).args(args);
        let inherited = env::vars_os().map(|(name, _)| name).filter(|name| {
            name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_"))
                || name == "CARGO_MANIFEST_DIR"
                || name == "CARGO_MANIFEST_PATH"
                || name == "CARGO_BIN_NAME"
                || name == "CARGO_CRATE_NAME"
                || name == "CARGO_PRIMARY_PACKAGE"
        });
        for name in inherited {
            program.command.env_remove(name);
        }
        program.command.current_dir(&self.root);
        program.command.env("CARGO_TARGET_DIR", &self.target);
        program
    }
}

/// A program to run in view of the user.
pub(crate) struct Program {
    command: Command,
}

impl Program {
    /// A program with the terminal as its output, and without input.
    pub(crate) fn new(name: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null());
        Self { command }
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds a flag with its value.
    pub(crate) fn arg(self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        self.args([OsStr::new(flag), value.as_ref()])
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in another directory.
    pub(crate) fn within(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Takes a variable away.
    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Lets it read this program's input.
    pub(crate) fn with_stdin(mut self) -> Self {
        self.command.stdin(Stdio::inherit());
        self
    }

    /// Shows the command line, runs it, and waits.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        eprintln!("  $ {}", self.line());
        let status =
            self.command.status().with_context(|| format!("cannot run {}", self.name()))?;
        if status.success() {
            return Ok(());
        }
        bail!("`{}` failed: {status}", self.line())
    }

    /// The command as it could be typed.
    pub(crate) fn line(&self) -> String {
        let args = self.command.get_args().map(quoted);
        std::iter::once(self.name()).chain(args).collect::<Vec<_>>().join(" ")
    }

    fn name(&self) -> String {
        let program = Path::new(self.command.get_program());
        match program.file_name() {
            Some(name) if name == "cargo" => "cargo".into(),
            _ => quoted(program.as_os_str()),
        }
    }
}

/// Whether a program can be found; administrators' directories count, which users' PATHs may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// What a program prints, without the line's end; `None` if it fails.
pub(crate) fn output(name: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(name).args(args).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    output.status.success().then_some(text)
}

fn quoted(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whether arguments for cargo choose a package.
pub(crate) fn names_package(args: &[OsString]) -> bool {
    args.iter().take_while(|arg| *arg != "--").any(|arg| {
        let arg = arg.to_string_lossy();
        arg == "--package" || arg.starts_with("--package=") || arg.starts_with("-p")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_as_it_is_shown() {
        let program = Program::new("sh").args(["-c", "echo 'a b'", "", "--x=1"]);
        assert_eq!(program.line(), r"sh -c 'echo '\''a b'\''' '' --x=1");
    }

    #[test]
    fn a_failing_program_is_named_with_its_arguments() {
        let error = Program::new("false").args(["x"]).run().unwrap_err();
        assert_eq!(error.to_string(), "`false x` failed: exit status: 1");
        let error = Program::new("/nonexistent/program").run().unwrap_err();
        assert_eq!(error.to_string(), "cannot run /nonexistent/program");
    }

    #[test]
    fn a_package_is_looked_for_before_the_test_binarys_own_arguments() {
        let names = |args: &[&str]| names_package(&args.iter().map(Into::into).collect::<Vec<_>>());
        assert!(names(&["-p", "xtask"]) && names(&["--package=xtask"]) && names(&["-pxtask"]));
        assert!(!names(&["exec", "--", "-p"]) && !names(&[]));
    }
}
