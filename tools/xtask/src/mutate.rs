//! Plausible defects of our own agent and host, one at a time: whether the harness tells.
//!
//! A mutation is a piece of text in the place of another (`table`). It is made in a copy of the
//! sources, never in the sources themselves, so that nothing of it can be left behind.

mod table;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

pub(crate) use table::MUTATIONS;

use crate::prepare;
use crate::setup::Consent;
use crate::steps::Steps;
use crate::workspace::{Program, Workspace, output};

/// Which, and where it is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// One mutation; all unless told
    name: Option<String>,
    /// Write the table of the documentation
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Which end of the bridge is mutated, and so which is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Guest,
    Host,
}

/// One defect.
#[derive(Debug)]
pub(crate) struct Mutation {
    pub(crate) name: &'static str,
    pub(crate) side: Side,
    /// In words.
    pub(crate) what: &'static str,
    pub(crate) file: &'static str,
    /// Occurs once in the file.
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// The statement that has to tell.
    pub(crate) told_by: u32,
}

/// Makes each mutation, builds it and has the harness judge it.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    consent: Consent,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let chosen: Vec<&Mutation> = match &options.name {
        None => MUTATIONS.iter().collect(),
        Some(name) => {
            let found = MUTATIONS.iter().find(|mutation| mutation.name == name);
            let names = || MUTATIONS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
            vec![found.with_context(|| format!("no mutation {name:?}; there are {}", names()))?]
        }
    };
    prepare::run(workspace, consent, steps)?;
    let copy = Copy::make(workspace)?;
    let mut told = Vec::new();
    for mutation in chosen {
        let by = steps.run(&format!("{:?} that {}", mutation.side, mutation.what), || {
            let _mutated = copy.mutate(mutation)?;
            copy.build(mutation.side)?;
            copy.judge(mutation)
        })?;
        eprintln!("  told by {by:?}");
        told.push((mutation, by));
    }
    let missed: Vec<_> =
        told.iter().filter(|(mutation, by)| !by.contains(&mutation.told_by)).collect();
    if let Some(path) = &options.markdown {
        fs::write(path, markdown(&told))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    for (mutation, by) in &missed {
        let Mutation { name, told_by, .. } = mutation;
        eprintln!("  {name}: told by {by:?}, and not by {told_by}");
    }
    ensure!(missed.is_empty(), "{} of {} mutations are not told", missed.len(), told.len());
    Ok(())
}

fn markdown(told: &[(&Mutation, BTreeSet<u32>)]) -> String {
    let mut text = String::from(
        "# Mutations\n\nDefects that were put into our own agent and host, one at a time, and the \
         statement of the\nharness that has to tell, and does. `cargo xtask mutate --markdown \
         docs/mutations.md` makes them in a\ncopy of the sources, builds each and has it judged; \
         without them nothing fails.\n\n\
         | mutation | in | the defect | told by |\n|---|---|---|---|\n",
    );
    for (mutation, by) in told {
        let Mutation { name, side, what, file, .. } = mutation;
        let side = match side {
            Side::Guest => "guest",
            Side::Host => "host",
        };
        let by: Vec<String> = by.iter().map(u32::to_string).collect();
        let _ = writeln!(text, "| {name} | `{file}` | the {side} {what} | {} |", by.join(", "));
    }
    text
}

/// A copy of the sources with a target directory of its own.
struct Copy<'a> {
    workspace: &'a Workspace,
    tree: PathBuf,
    target: PathBuf,
}

/// Puts a file's contents back.
struct Mutated {
    path: PathBuf,
    contents: String,
}

impl Drop for Mutated {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.contents);
    }
}

impl<'a> Copy<'a> {
    fn make(workspace: &'a Workspace) -> anyhow::Result<Self> {
        let root = workspace.root();
        let base = workspace.mutants();
        let tree = base.join("tree");
        let directory = root.to_string_lossy();
        let list = output("git", &["-C", &directory, "ls-files", "-z"]);
        let list = list.context("cannot list the sources with git")?;
        for name in list.split('\0').filter(|name| !name.is_empty()) {
            let (from, to) = (root.join(name), tree.join(name));
            // Deleted, and git has not been told yet.
            let Ok(bytes) = fs::read(&from) else { continue };
            // What is the same keeps its time, and is not built again.
            if fs::read(&to).is_ok_and(|before| before == bytes) {
                continue;
            }
            let cannot = || format!("cannot write {}", to.display());
            fs::create_dir_all(to.parent().unwrap_or(&tree)).with_context(cannot)?;
            fs::write(&to, bytes).with_context(cannot)?;
        }
        Ok(Self { workspace, tree, target: base.join("target") })
    }

    fn mutate(&self, mutation: &Mutation) -> anyhow::Result<Mutated> {
        let path = self.tree.join(mutation.file);
        let contents =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mutated = mutated(&contents, mutation)?;
        let kept = Mutated { path, contents };
        fs::write(&kept.path, mutated)
            .with_context(|| format!("cannot write {}", kept.path.display()))?;
        Ok(kept)
    }

    fn build(&self, side: Side) -> anyhow::Result<()> {
        let arguments: &[&str] = match side {
            Side::Guest => &["build", "-p", "linkspan-guest"],
            Side::Host => &["build", "-p", "linkspan-conform", "--bin", "driven-host"],
        };
        self.workspace
            .cargo(arguments)
            .args([OsStr::new("--manifest-path"), self.tree.join("Cargo.toml").as_os_str()])
            .env("CARGO_TARGET_DIR", &self.target)
            .run()
    }

    /// Whether the statement that should tell does.
    fn judge(&self, mutation: &Mutation) -> anyhow::Result<BTreeSet<u32>> {
        let Mutation { side, told_by, .. } = mutation;
        let programs = self.target.join("debug");
        let report = self.target.join("report.md");
        let _ = fs::remove_file(&report);
        let conform = |words: &[&str]| {
            Program::new(self.workspace.cli())
                .args(["conform"])
                .args(words)
                .args(["--quiet", "--profile", "hardened", "--answer-timeout", "3"])
                .args(["--only", &told_by.to_string()])
                .args([OsStr::new("--markdown"), report.as_os_str()])
        };
        let program = match side {
            Side::Guest => {
                let image = self.target.join("image");
                link(&programs.join("linkspan-guest"), &image.join("agent"))?;
                conform(&["guest", "--uvm", "--vmm", "loopback", "--shell", "/bin/busybox sh -c"])
                    .args([OsStr::new("--image"), image.as_os_str()])
                    .args([OsStr::new("--rootfs"), self.workspace.rootfs().as_os_str()])
            }
            Side::Host => conform(&["host", "--spawn", "--"]).args([programs.join("driven-host")]),
        };
        // A failure is what is hoped for.
        let ended = program.run();
        let text = fs::read_to_string(&report);
        match (text, ended) {
            (Ok(text), _) => Ok(failed(&text)),
            (Err(_), Err(error)) => Err(error),
            (Err(error), Ok(())) => Err(error.into()),
        }
    }
}

/// The statements of a report in Markdown that do not hold.
fn failed(report: &str) -> BTreeSet<u32> {
    let rows = report.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let bad = |rest: &str| {
        rest.split_once(" | ").is_some_and(|(_, verdict)| {
            !verdict.starts_with("pass") && !verdict.starts_with("skipped")
        })
    };
    rows.filter(|(_, rest)| bad(rest)).filter_map(|(number, _)| number.parse().ok()).collect()
}

fn mutated(contents: &str, mutation: &Mutation) -> anyhow::Result<String> {
    let Mutation { name, file, from, to, .. } = mutation;
    match contents.matches(from).count() {
        1 => Ok(contents.replacen(from, to, 1)),
        count => bail!("{name}: what it replaces occurs {count} times in {file}"),
    }
}

fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot link {} to {}", to.display(), from.display());
    fs::create_dir_all(to.parent().unwrap_or(to)).with_context(cannot)?;
    let _ = fs::remove_file(to);
    std::os::unix::fs::symlink(from, to).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn every_mutation_can_be_made() {
        let mut names = BTreeSet::new();
        for mutation in MUTATIONS {
            let contents = fs::read_to_string(root().join(mutation.file)).expect(mutation.file);
            let changed = mutated(&contents, mutation).unwrap();
            assert_ne!(changed, contents, "{}", mutation.name);
            assert!(names.insert(mutation.name), "{} is there twice", mutation.name);
        }
        assert!(MUTATIONS.len() >= 20);
    }

    #[test]
    fn statements_that_fail_are_read_off_a_report() {
        let report = "| # | statement | verdict |\n|--:|---|---|\n| 1 | It is so | pass |\n\
                      | 2 | It is \\| not | FAIL: no |\n| 3 | Nor this | skipped: why |\n\
                      | 4 | Nor that | tolerated: why |\n";
        assert_eq!(failed(report), BTreeSet::from([2, 4]));
    }
}
