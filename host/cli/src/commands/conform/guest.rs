//! `linkspan conform guest`: a guest agent under the harness.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use linkspan_conform::environment::{DiskAddress, Environment, Nic, Reach};
use linkspan_conform::guest::STATEMENTS;
use linkspan_conform::machine::Bench;
use linkspan_conform::run;
use linkspan_conform::session::Session;
use linkspan_conform::target::{Dial, Listen};

use super::{CheckOptions, print};
use crate::error::{Context, Error};
use crate::options::{Global, VmOptions, Vmm};
use crate::progress::Progress;

/// How long the check of one statement may take, in seconds.
const EACH: u32 = 30;

/// Check a guest agent against the 111 statements of the protocol
///
/// The harness plays the host. The agent dials it (--listen), is dialled (--connect), is started
/// on pipes (--spawn), or runs in a utility VM that is started for it (--uvm). What cannot be
/// checked the way the agent is reached is skipped, with the reason.
///
/// Ends with 0 if no statement failed, with 1 if one did, with 125 if nothing could be checked.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan conform guest --list
  linkspan conform guest --spawn -- ./gcs -v4 -use-inouterr
  linkspan conform guest --listen hybrid:/tmp/vm.sock --layer /run/layers/base --shell '/bin/sh -c'
  linkspan conform guest --uvm --vmm loopback --rootfs ./rootfs --shell '/bin/sh -c' --junit out.xml

A machine's agent dials vsock ports. At hybrid:/tmp/vm.sock they are the Unix sockets
/tmp/vm.sock_PORT, the bridge's /tmp/vm.sock_1073741824; at tcp:ADDRESS:PORT the bridge's is PORT and
stdio ports follow it.

WARNING: an agent that is started with --spawn acts on this machine: with --layer it makes
containers here. Without --layer and --shell nothing is asked of it that changes anything.")]
pub(crate) struct Guest {
    /// Listen for the agent at hybrid:PATH, vsock:CID, vsock:any or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Listen>(), group = "reach")]
    listen: Option<Listen>,
    /// Dial the agent at unix:PATH, hybrid-host:PATH:PORT, vsock:CID:PORT or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Dial>(), group = "reach")]
    connect: Option<Dial>,
    /// Start the agent, COMMAND, and speak with it on its standard input and output
    #[arg(long, group = "reach", requires = "command")]
    spawn: bool,
    /// Start a utility VM with the boot image's agent
    #[arg(long, group = "reach", requires = "rootfs")]
    uvm: bool,
    /// With --connect and --spawn: where the agent's stdio connections come, as for --listen
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Listen>())]
    stdio: Option<Listen>,
    /// The agent's command line, for --spawn
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    beside: Beside,
    #[command(flatten)]
    check: CheckOptions,
    #[command(flatten)]
    vm: VmOptions,
}

/// What there is beside the agent.
#[derive(Args, Debug)]
#[command(next_help_heading = "Beside the agent")]
struct Beside {
    /// With --uvm: a root file system with busybox in /bin, for containers
    #[arg(long, value_name = "DIR|TAR|IMAGE")]
    rootfs: Option<PathBuf>,
    /// The words that run a script in the utility VM's root, divided at spaces: '/bin/sh -c'
    #[arg(long, value_name = "WORDS")]
    shell: Option<String>,
    /// Where a root file system with busybox lies in the guest, for containers
    #[arg(long, value_name = "GUESTPATH")]
    layer: Option<String>,
    /// A disk with such a root file system: CONTROLLER:LUN
    #[arg(long, value_name = "DISK", value_parser = disk)]
    layer_disk: Option<DiskAddress>,
    /// A disk with a second layer
    #[arg(long, value_name = "DISK", value_parser = disk)]
    second_layer: Option<DiskAddress>,
    /// A blank disk, whose contents may be lost
    #[arg(long, value_name = "DISK", value_parser = disk)]
    blank_disk: Option<DiskAddress>,
    /// A network adapter that nobody uses: its id, and the MAC address by which it is found
    #[arg(long, value_name = "ID[,MAC]", value_parser = nic)]
    nic: Option<Nic>,
}

fn disk(text: &str) -> Result<DiskAddress, String> {
    let form = || format!("{text:?} is not CONTROLLER:LUN, such as 0:1");
    let (controller, lun) = text.split_once(':').ok_or_else(form)?;
    let controller = controller.parse().ok().filter(|&n: &u8| n < 4).ok_or_else(form)?;
    let lun = lun.parse().ok().filter(|&n: &u8| n < 64).ok_or_else(form)?;
    Ok(DiskAddress { controller, lun })
}

fn nic(text: &str) -> Result<Nic, String> {
    let (id, mac) = text.split_once(',').unwrap_or((text, ""));
    match id.is_empty() {
        true => Err(format!("{text:?} is not ID or ID,MAC")),
        false => Ok(Nic { id: id.to_owned(), mac: mac.replace(':', "-").to_uppercase() }),
    }
}

impl Guest {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        if self.check.list {
            return self.check.print_list(STATEMENTS, global);
        }
        let plan = self.check.plan(STATEMENTS, EACH)?;
        let (bench, target, mut environment) = match (self.listen, self.connect) {
            (Some(listen), _) => (None, Reach::Listen(listen).target(), Environment::default()),
            (_, Some(dial)) => {
                (None, Reach::Connect(dial, self.stdio).target(), Environment::default())
            }
            _ if self.spawn => {
                (None, Reach::Spawn(self.command, self.stdio).target(), Environment::default())
            }
            _ if self.uvm => {
                let rootfs = self.beside.rootfs.clone().unwrap_or_default();
                let has_network = self.vm.vmm == Vmm::Qemu;
                let mut builder = self.vm.resolve()?.builder("conform");
                if has_network {
                    builder = builder.user_network([]);
                }
                let progress = Progress::new(global).spinner("start a utility VM");
                let (bench, target, environment) = Bench::start(builder, &rootfs).await?;
                drop(progress);
                (Some(bench), target, environment)
            }
            _ => {
                let reason = "is missing: say how the agent is reached, with --listen, --connect, \
                              --spawn or --uvm";
                return Err(Error::input("--listen", reason));
            }
        };
        self.beside.complete(&mut environment);
        // A machine of our own has been listened to since its start.
        if let Some(listen) = target.stdio().filter(|_| bench.is_none()) {
            let log = environment.log.listen(listen).await;
            log.context(|| "listen for the agent's log".into())?;
        }
        let mut session = Session::new(target, environment, self.check.profile);
        session.answer = self.check.answer();
        let opened = session.target.open().await;
        opened.context(|| "listen for the agent".into())?;
        let report =
            run::guest(&mut session, STATEMENTS, &plan, |outcome| print(outcome, global)).await;
        if let Some(bench) = bench {
            bench.end().await;
        }
        self.check.tell(&report, global)
    }
}

impl Beside {
    fn complete(self, environment: &mut Environment) {
        if let Some(shell) = self.shell {
            environment.shell = shell.split_whitespace().map(str::to_owned).collect();
        }
        environment.layer = self.layer;
        environment.nic = self.nic.or_else(|| environment.nic.take());
        environment.layer_disk = self.layer_disk.or(environment.layer_disk);
        environment.second_layer = self.second_layer.or(environment.second_layer);
        environment.blank_disk = self.blank_disk.or(environment.blank_disk);
    }
}
