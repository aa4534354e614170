//! `linkspan image`: boot images, and the commands of container images.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use linkspan_host::boot_image;
use linkspan_initrd::{
    BootFile, Compression, ForeignAgent, GROUPS, ImageBuilder, KernelPackage, Modules,
    PackageCache, source_date_epoch,
};
use serde_json::{Value, json};

use crate::commands::images;
use crate::error::{Context, Error};
use crate::options::Global;
use crate::output;
use crate::progress::Progress;

/// Container images: pull, import, list; and the boot image: build
#[derive(Args, Debug)]
pub(crate) struct Image {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Subcommand, Debug)]
enum ImageCommand {
    Pull(images::Pull),
    Import(images::Import),
    List(images::List),
    Inspect(images::Inspect),
    Remove(images::Remove),
    Build(Build),
}

/// Build a boot image: kernel, initrd, agent
///
/// Takes the kernel from a Debian package, fetched through apt unless one is given. Equal inputs
/// give equal bytes.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan image build
  linkspan image build --out ./image --modules +share --compression zstd:3
  linkspan image build --agent ./gcs --agent-args -v4 --add ./runc:/sbin/runc --vmbus-compat

An agent that was written for Hyper-V finds SCSI controllers and adapters by their VMBus instances
alone; with --vmbus-compat /init presents QEMU's virtio devices under such names before it starts it.")]
struct Build {
    /// Where it is put [default: where `linkspan run` looks for it]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Our agent, which is /init [default: linkspan-guest beside this program]
    #[arg(long, value_name = "FILE")]
    guest_agent: Option<PathBuf>,
    /// Another agent that serves the bridge in place of ours; /init supervises it
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Arguments of --agent, divided at spaces; may be given again
    #[arg(long, value_name = "ARGS", requires = "agent", allow_hyphen_values = true)]
    agent_args: Vec<String>,
    /// Give virtio disks and adapters the names that --agent, written for Hyper-V, looks for
    #[arg(long, requires = "agent")]
    vmbus_compat: bool,
    /// Add a file
    #[arg(long, value_name = "FILE:GUESTPATH")]
    add: Vec<String>,
    /// The kernel: a .deb or a directory that one was unpacked in
    #[arg(long, value_name = "FILE")]
    kernel_package: Option<PathBuf>,
    /// none, gzip[:0-9], zstd[:1-22] or lz4[:1-12]
    #[arg(long, value_name = "HOW", default_value_t)]
    compression: Compression,
    /// Module groups to add (+NAME) or leave out (-NAME), divided at commas
    #[arg(long, value_name = "GROUPS", value_delimiter = ',', allow_hyphen_values = true)]
    modules: Vec<String>,
    /// Leave out vmlinux, the uncompressed kernel, which boots faster
    #[arg(long)]
    no_vmlinux: bool,
}

impl Image {
    pub(crate) fn run(self, global: &Global) -> Result<u32, Error> {
        match self.command {
            ImageCommand::Pull(pull) => pull.run(global),
            ImageCommand::Import(import) => import.run(global),
            ImageCommand::List(list) => list.run(global),
            ImageCommand::Inspect(inspect) => inspect.run(global),
            ImageCommand::Remove(remove) => remove.run(global),
            ImageCommand::Build(build) => build.run(global),
        }
    }
}

impl Build {
    fn run(self, global: &Global) -> Result<u32, Error> {
        let out = self.out.clone().or_else(boot_image::default_directory);
        let out = out.ok_or_else(|| Error::input("--out", "is needed without HOME"))?;
        let agent = self.guest_agent()?;
        let modules = modules(&self.modules)?;
        let mut progress = Progress::new(global).image();
        let package = match self.kernel_package {
            Some(package) => package,
            None => {
                let cache = PackageCache::for_user()?;
                cache.fetch(PackageCache::DEFAULT_PACKAGE, &mut progress)?.path
            }
        };
        let kernel = KernelPackage::open_with(&package, &mut progress)?;
        let mut builder = ImageBuilder::new(&kernel, &agent)
            .modules(modules)
            .compression(self.compression)
            .mtime(source_date_epoch()?.unwrap_or(0))
            .vmlinux(!self.no_vmlinux);
        for spec in &self.add {
            builder = builder.add_spec(spec)?;
        }
        if let Some(foreign) = self.agent {
            let words = self.agent_args.iter().flat_map(|args| args.split_whitespace());
            let args = words.map(str::to_owned).collect();
            builder = builder.foreign_agent(ForeignAgent::new(foreign, args)?);
            builder = builder.vmbus_compat(self.vmbus_compat);
        }
        let image = builder.build(&out, &mut progress)?;
        drop(progress);
        install(&agent, &out.join("agent"))?;
        let stale = out.join("vmlinux");
        if self.no_vmlinux && stale.exists() {
            fs::remove_file(&stale).context(|| format!("remove {}", stale.display()))?;
        }
        let files: Vec<_> = [Some(&image.vmlinuz), image.vmlinux.as_ref(), Some(&image.initrd)]
            .into_iter()
            .flatten()
            .collect();
        if global.json {
            let categories: Vec<Value> = image
                .sizes
                .by_category()
                .iter()
                .map(|(category, (raw, compressed))| {
                    json!({ "category": category.to_string(), "bytes": raw, "compressed": compressed })
                })
                .collect();
            output::json(&json!({
                "directory": out,
                "kernel_release": image.release,
                "files": files.iter().map(|file| described(file)).collect::<Vec<_>>(),
                "initrd_contents": categories,
            }))?;
        } else {
            output::line(&image.sizes)?;
            output::line("")?;
            for file in files {
                let size = output::bytes(file.bytes);
                output::line(format!("{size:>9}  {}  {}", file.sha256, file.path.display()))?;
            }
        }
        Ok(0)
    }

    fn guest_agent(&self) -> Result<PathBuf, Error> {
        if let Some(agent) = &self.guest_agent {
            return Ok(agent.clone());
        }
        let executable = std::env::current_exe().context(|| "find this program".into())?;
        // Beside it where it is installed; a cargo target directory has a place for each target.
        let mut places = vec![executable.with_file_name("linkspan-guest")];
        if let Some(target) = executable.ancestors().find(|path| path.ends_with("target")) {
            let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
            places.push(target.join(triple).join("guest/linkspan-guest"));
        }
        places.iter().find(|place| place.is_file()).cloned().ok_or_else(|| {
            let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
            let reason = format!("name our agent's file; it is not at {}", looked.join(" or "));
            Error::input("--guest-agent", reason)
        })
    }
}

fn modules(changes: &[String]) -> Result<Modules, Error> {
    let mut modules = Modules::default();
    for change in changes {
        modules = match change.split_at_checked(1) {
            Some(("+", group)) => modules.with(group)?,
            Some(("-", group)) => modules.without(group)?,
            _ => {
                let groups: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
                let reason = format!("{change:?} is not +GROUP or -GROUP of {}", groups.join(", "));
                return Err(Error::input("--modules", reason));
            }
        };
    }
    Ok(modules)
}

fn described(file: &BootFile) -> Value {
    json!({ "path": file.path, "bytes": file.bytes, "sha256": file.sha256 })
}

/// Copies a program, whole or not at all.
fn install(from: &Path, to: &Path) -> Result<(), Error> {
    let copy = || {
        let new = to.with_extension("new");
        fs::copy(from, &new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        fs::rename(&new, to)
    };
    copy().context(|| format!("copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_added_and_left_out_by_their_sign() {
        let names = |modules: Modules| modules.groups().map(|group| group.name).collect::<Vec<_>>();
        let chosen = names(modules(&["+share".into(), "-verity".into()]).unwrap());
        assert!(chosen.contains(&"share") && !chosen.contains(&"verity"));
        let error = modules(&["share".into()]).unwrap_err().to_string();
        assert!(error.contains("\"share\" is not +GROUP or -GROUP"), "{error}");
    }
}
