//! `linkspan run`: a container, in a utility VM of its own or in one that runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};
use linkspan_host::{Layers, PortForward, UtilityVm};
use serde_json::json;
use tracing::warn;

use crate::attend::{Local, attend, streams, take_orders};
use crate::control::{LayerFile, NewContainer, Request};
use crate::error::Error;
use crate::images::ImageOptions;
use crate::options::{Global, Process, ProcessOptions, VmOptions, Vmm, Volume};
use crate::progress::Progress;
use crate::registry::Registry;
use crate::signals::Signals;
use crate::{children, client, container_id, output};

/// How long the removal of a container may take before the utility VM goes with it in it.
const REMOVAL: Duration = Duration::from_secs(10);

/// Run a command in a container
///
/// Boots a utility VM, puts a container into it, runs CMD there and takes all of it down again.
/// stdout and stderr are relayed apart, stdin with -i; signals are passed on. A second Ctrl-C
/// within two seconds kills, a further one gives up.
///
/// IMAGE is the name of a container image: one in the store (`linkspan image list`), else one of a
/// registry that the name says (registry.example/app:1). Its command, user, environment and working
/// directory are taken unless others are given. An OCI image layout or an image archive does too.
///
/// ROOTFS is a directory, a tar archive (plain, gzip, zstd, xz), or an ext4 or EROFS image with or
/// without a VHD footer. Neither is changed: what the container writes goes with it.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit code: CMD's; 128 + n if signal n ended it; 125 if linkspan failed, 126 if CMD cannot be
run, 127 if there is no CMD.

Examples:
  linkspan run rootfs.tar.gz -- cat /etc/os-release
  linkspan image pull debian:12 && linkspan run debian:12 -- bash --version
  linkspan run -it --memory-mib 1024 ./rootfs sh
  tar c src | linkspan run -i rootfs.ext4 -- tar t
  linkspan run -p 8080:80 ./rootfs -- httpd -f -h /srv
  linkspan run --volume $PWD:/src:ro ./rootfs -- ls /src
  linkspan run --pmem 8 --root-hash $(linkspan layer verity root app.erofs) app.erofs -- /app
  linkspan run --uvm dev -d --name web ./rootfs -- httpd -f")]
pub(crate) struct Run {
    #[command(flatten)]
    vm: VmOptions,
    #[command(flatten)]
    process: ProcessOptions,
    /// The container's id; made up unless given
    #[arg(long, value_name = "ID", help_heading = "Container")]
    name: Option<String>,
    /// The container's host name; its id unless given
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    hostname: Option<String>,
    /// Size of the disk that takes what the container writes, in MiB
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..), help_heading = "Container")]
    scratch_mib: Option<u64>,
    /// Show a directory of this host in it, with :ro one that it cannot change
    ///
    /// Under QEMU by virtio-fs, for which this host needs virtiofsd and root. A named utility VM has
    /// room for as many at a time as `uvm start --shares` says.
    #[arg(long, value_name = "HOST:GUEST[:ro]", help_heading = "Container")]
    volume: Vec<Volume>,
    /// What the root hash of its layer has to be: the guest refuses any other, and checks each block
    /// that it reads
    ///
    /// The layer has to be an image with a hash tree (`linkspan layer build --verity`). Once for each
    /// layer, the lowest first. For container images, --verity does the like without being told.
    #[arg(long, value_name = "HEX", help_heading = "Container")]
    root_hash: Vec<String>,
    /// Its network: QEMU's user network, by which it reaches what this host reaches, or none
    #[arg(long, value_enum, value_name = "NET", help_heading = "Container")]
    net: Option<Net>,
    /// Let a port of this host lead to one of the container's; all addresses of this host unless
    /// one is given
    #[arg(short, long, value_name = "[ADDRESS:]HOST:GUEST[/udp]", help_heading = "Container")]
    publish: Vec<PortForward>,
    /// Run it in this named utility VM, whose options then are its own
    #[arg(long, value_name = "NAME", help_heading = "Container", conflicts_with_all = [
        "memory_mib", "pmem", "shares", "cpus", "accel", "vmm", "boot_timeout", "log_level",
        "kernel_arg", "qemu_arg", "net", "publish",
    ])]
    uvm: Option<String>,
    /// Leave it running, print its id; see `linkspan logs`, `linkspan wait`
    #[arg(
        short,
        long,
        requires = "uvm",
        conflicts_with = "interactive",
        help_heading = "Container"
    )]
    detach: bool,
    /// With --detach: remove it when it has ended
    #[arg(long, requires = "detach", help_heading = "Container")]
    rm: bool,
    #[command(flatten)]
    images: ImageOptions,
    /// Name of a container image; or a directory, archive or disk image
    #[arg(value_name = "IMAGE|ROOTFS")]
    root: PathBuf,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// What a container is connected with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Net {
    /// QEMU's user network; needs no rights. The default where there is a QEMU
    User,
    /// Nothing but itself
    None,
}

impl Run {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        if self.hostname.as_deref() == Some("") {
            return Err(Error::input("--hostname", "is empty"));
        }
        self.check_network()?;
        let progress = Progress::new(global);
        let mut root = self.images.find(&self.root, progress)?;
        pin(&mut root.layers, &self.root_hash)?;
        let entrypoint = self.images.entrypoint.as_deref();
        let process = self.process.process_of(&root.process, entrypoint, &self.command)?;
        let mut signals = Signals::take_over()?;
        match self.uvm.clone() {
            Some(uvm) => self.in_named(&uvm, root.layers, process, global, &mut signals).await,
            None => self.in_own(root.layers, process, global, &mut signals).await,
        }
    }

    fn check_network(&self) -> Result<(), Error> {
        let loopback = self.vm.vmm == Vmm::Loopback;
        match (self.net, self.publish.first()) {
            (Some(Net::None), Some(forward)) => {
                Err(Error::input("--publish", format!("{forward} with --net none leads nowhere")))
            }
            (Some(Net::User), _) if loopback => {
                let reason = "user is QEMU's network, which --vmm loopback does not have";
                Err(Error::input("--net", reason))
            }
            (None, Some(forward)) if loopback => {
                let reason = format!("{forward}: --vmm loopback has no network");
                Err(Error::input("--publish", reason))
            }
            _ => Ok(()),
        }
    }

    async fn in_own(
        self,
        layers: Vec<LayerFile>,
        process: Process,
        global: &Global,
        signals: &mut Signals,
    ) -> Result<u32, Error> {
        let progress = Progress::new(global);
        let mut vm = self.vm.resolve()?;
        let wanted = u32::try_from(self.volume.len()).unwrap_or(u32::MAX);
        vm.shares = vm.shares.max(wanted);
        let id = self.name.unwrap_or_else(container_id::random);
        let layers = LayerFile::stack(layers);
        let mut layers = layers.ok_or_else(|| Error::input("IMAGE", "has no layers"))?;
        if let Some(size) = self.scratch_mib {
            layers = layers.scratch_mib(size);
        }
        let network = vm.vmm == Vmm::Qemu && self.net != Some(Net::None);
        let (hostname, volumes) = (self.hostname, self.volume);
        let container = Plan { id, layers, hostname, volumes, network, process };
        let booting = progress.spinner("booting the utility VM");
        let mut builder = vm.builder(&container.id);
        if network {
            builder = builder.user_network(self.publish);
        }
        let starting = async { Ok(builder.start().await?) };
        let uvm = children::boot(signals, starting).await?;
        drop(booting);
        let outcome = container.run(&uvm, progress, signals).await;
        // Whoever does not want to wait may go: the machine ends with this process.
        tokio::select! {
            () = uvm.terminate() => {}
            signal = signals.ending() => warn!(signal, "left while the utility VM was ending"),
        }
        outcome
    }

    async fn in_named(
        self,
        uvm: &str,
        layers: Vec<LayerFile>,
        process: Process,
        global: &Global,
        signals: &mut Signals,
    ) -> Result<u32, Error> {
        let place = Registry::open()?.find(Some(uvm))?;
        let local = Local { terminal: process.terminal.is_some(), stdin: process.stdin };
        let request = Request::Run(NewContainer {
            id: self.name,
            layers,
            process,
            hostname: self.hostname,
            scratch_mib: self.scratch_mib,
            volumes: self.volume,
            detach: self.detach,
            remove: self.rm,
        });
        let progress = Progress::new(global);
        let started = signals.interrupt(client::start(&place, &request, progress)).await?;
        if !self.detach {
            return started.attend(local, signals).await;
        }
        match global.json {
            true => {
                output::json(&json!({ "id": started.container, "pid": started.pid, "uvm": uvm }))?
            }
            false => output::line(&started.container)?,
        }
        Ok(0)
    }
}

/// Says what the layers of a root have to be, which may know it themselves.
fn pin(layers: &mut [LayerFile], hashes: &[String]) -> Result<(), Error> {
    if hashes.is_empty() {
        return Ok(());
    }
    if hashes.len() != layers.len() {
        let (given, there) = (hashes.len(), layers.len());
        let reason = format!("is given {given} times for {there} layers; once for each is right");
        return Err(Error::input("--root-hash", reason));
    }
    for (layer, hash) in layers.iter_mut().zip(hashes) {
        let path = layer.path.display();
        match &layer.root_hash {
            Some(known) if !known.eq_ignore_ascii_case(hash) => {
                let reason = format!("{hash} is not that of {path}, which is {known}");
                return Err(Error::input("--root-hash", reason));
            }
            _ => layer.root_hash = Some(hash.clone()),
        }
    }
    Ok(())
}

/// The container of a utility VM of its own.
struct Plan {
    id: String,
    layers: Layers,
    hostname: Option<String>,
    volumes: Vec<Volume>,
    network: bool,
    process: Process,
}

impl Plan {
    async fn run(
        self,
        uvm: &UtilityVm,
        progress: Progress,
        signals: &mut Signals,
    ) -> Result<u32, Error> {
        let bar = progress.layer();
        let mut builder = uvm
            .container(self.id, self.layers)
            .process(self.process.spec())
            .network(self.network)
            .on_progress(move |at| {
                bar.layer_at(&at.path.display().to_string(), at.bytes, at.total, at.entries)
            });
        if let Some(hostname) = self.hostname {
            builder = builder.hostname(hostname);
        }
        for Volume { source, target, read_only } in self.volumes {
            builder = builder.share(source, target, read_only);
        }
        let container = signals.interrupt(builder.create()).await?;
        let local = Local { terminal: self.process.terminal.is_some(), stdin: self.process.stdin };
        let started = signals.interrupt(container.start(self.process.stdio())).await;
        let outcome = match started {
            Ok(mut child) => {
                let process = child.handle().clone();
                let orders = take_orders(process.clone());
                let exit = async { Ok(process.wait().await?.code()) };
                attend(streams(&mut child), local, signals, orders, exit).await
            }
            Err(error) => Err(error),
        };
        match tokio::time::timeout(REMOVAL, container.delete()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "remove the container"),
            Err(_) => warn!("the guest does not remove the container; it goes with its machine"),
        }
        outcome
    }
}
