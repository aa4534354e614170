//! `linkspan bench`: how fast a guest agent is, and which of two is faster.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, value_parser};
use linkspan_conform::environment::Reach;
use linkspan_conform::load::{self, Contender, Measure, Options, Outcome, Report, Sample};
use linkspan_conform::machine::Bench as Machine;
use linkspan_conform::target::{Dial, Listen};

use crate::error::{Context, Error};
use crate::options::{Global, VmOptions, absolute};
use crate::output;
use crate::progress::Progress;

/// Measure how fast a guest agent is, or which of two is faster
///
/// The agent is reached as for `linkspan conform guest`, and does the same work over the same
/// protocol, whoever wrote it: cheap requests, processes in a container, whole containers, streams.
/// Several agents are measured in turn, round after round, so that whatever else the machine does
/// meets all of them. What cannot be measured the way an agent is reached is skipped, with the
/// reason.
///
/// Ends with 0 if all that could be measured was, with 1 if an agent did not do what was asked.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan bench --agent uvm --rootfs ./rootfs --svg bench.svg
  linkspan bench --agent ours=uvm --agent theirs=uvm:./image-with-gcs --rootfs ./rootfs --json
  linkspan bench --agent 'spawn:./gcs -v4 -use-inouterr' --only request,requests
  linkspan bench --agent listen:hybrid:/tmp/vm.sock --layer /run/layers/base

An agent is [NAME=]REACH:
  uvm[:IMAGE]       a utility VM is started for it, with this boot image
  listen:ADDRESS    it dials hybrid:PATH, vsock:CID, vsock:any or tcp:ADDRESS:PORT
  connect:ADDRESS   it is dialled at unix:PATH, hybrid-host:PATH:PORT, vsock:CID:PORT or tcp:ADDRESS:PORT
  spawn:COMMAND     it is started, and spoken with on its standard input and output

WARNING: an agent that is started with spawn: acts on this machine: with --layer it makes containers
here.")]
pub(crate) struct Bench {
    /// An agent; up to four may be given
    #[arg(long, value_name = "[NAME=]REACH", required = true)]
    agent: Vec<Named>,
    /// With uvm: a root file system with busybox in /bin, for containers
    #[arg(long, value_name = "DIR|TAR|IMAGE")]
    rootfs: Option<PathBuf>,
    /// With the others: where such a root file system lies in the guest
    #[arg(long, value_name = "GUESTPATH")]
    layer: Option<String>,
    /// With connect: and spawn:, where the agent's stdio connections come, as for listen:
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Listen>())]
    stdio: Option<Listen>,
    /// Measure only these, divided at commas: request, requests, statistics, exec, execs, container,
    /// stdout, stdin
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = |text: &str| text.parse::<Measure>(), help_heading = "Measurements")]
    only: Vec<Measure>,
    /// How long each measurement takes, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 3, value_parser = value_parser!(u32).range(1..), help_heading = "Measurements")]
    seconds: u32,
    /// How often all of them are taken
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u32).range(1..), help_heading = "Measurements")]
    rounds: u32,
    /// How many cheap requests are under way at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u32).range(1..=1024), help_heading = "Measurements")]
    in_flight: u32,
    /// How many processes are started at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u32).range(1..=256), help_heading = "Measurements")]
    parallel: u32,
    /// How many MiB one process writes or reads
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u64).range(1..=65536), help_heading = "Measurements")]
    mib: u64,
    /// Write a plot of all of it
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    vm: VmOptions,
}

/// How an agent is reached.
#[derive(Clone, Debug)]
enum Way {
    Uvm(Option<PathBuf>),
    Listen(Listen),
    Connect(Dial),
    Spawn(Vec<OsString>),
}

#[derive(Clone, Debug)]
struct Named {
    name: String,
    way: Way,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is not [NAME=]REACH, where REACH is uvm, uvm:IMAGE, listen:ADDRESS, \
                 connect:ADDRESS or spawn:COMMAND"
            )
        };
        // An address or a command may have an equals sign, too.
        let named = text.split_once('=').filter(|(name, _)| !name.contains([':', ' ', '/']));
        let (name, reach) = named.map_or((None, text), |(name, reach)| (Some(name), reach));
        let (kind, rest) = reach.split_once(':').map_or((reach, None), |(k, r)| (k, Some(r)));
        let way = match (kind, rest.filter(|rest| !rest.is_empty())) {
            ("uvm", image) => Way::Uvm(image.map(PathBuf::from)),
            ("listen", Some(address)) => Way::Listen(address.parse()?),
            ("connect", Some(address)) => Way::Connect(address.parse()?),
            ("spawn", Some(command)) => {
                Way::Spawn(command.split_whitespace().map(OsString::from).collect())
            }
            _ => return Err(form()),
        };
        match name.unwrap_or(kind) {
            "" => Err(form()),
            name => Ok(Self { name: name.to_owned(), way }),
        }
    }
}

impl Bench {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        self.check()?;
        let options = Options {
            each: Duration::from_secs(self.seconds.into()),
            rounds: self.rounds,
            requests: self.in_flight as usize,
            processes: self.parallel as usize,
            bytes: self.mib << 20,
            measures: match self.only.is_empty() {
                true => Measure::ALL.to_vec(),
                false => self.only.clone(),
            },
            ..Options::default()
        };
        let progress = Progress::new(global);
        let (mut machines, mut contenders) = (Vec::new(), Vec::new());
        for Named { name, way } in self.agent {
            let (target, environment) = match way {
                Way::Uvm(image) => {
                    let mut vm = self.vm.clone();
                    vm.image = image.map(absolute).transpose()?.or(vm.image);
                    let _started = progress.spinner(format!("start a utility VM for {name}"));
                    let builder = vm.resolve()?.builder(&name);
                    let rootfs = self.rootfs.clone().unwrap_or_default();
                    let (machine, target, environment) = Machine::start(builder, &rootfs).await?;
                    machines.push(machine);
                    (target, environment)
                }
                Way::Listen(listen) => (Reach::Listen(listen).target(), self.layer.clone().into()),
                Way::Connect(dial) => {
                    let reach = Reach::Connect(dial, self.stdio.clone());
                    (reach.target(), self.layer.clone().into())
                }
                Way::Spawn(command) => {
                    let reach = Reach::Spawn(command, self.stdio.clone());
                    (reach.target(), self.layer.clone().into())
                }
            };
            contenders.push(Contender { name, target, environment });
        }
        let mut shown = None;
        let report = load::run(contenders, &options, |name, measure, round| {
            let (round, rounds) = (round + 1, options.rounds);
            drop(shown.take());
            let text = format!("{name}: {} (round {round} of {rounds})", measure.text());
            shown = Some(progress.spinner(text));
        });
        let report = report.await;
        drop(shown);
        for machine in machines {
            machine.end().await;
        }
        let report = report.map_err(|reason| Error::input("--agent", reason))?;
        if let Some(path) = &self.svg {
            let text = report.svg().map_err(std::io::Error::other);
            let written = text.and_then(|text| std::fs::write(path, text));
            written.context(|| format!("plot into {}", path.display()))?;
        }
        match global.json {
            true => output::json(&report)?,
            false => table(&report)?,
        }
        Ok(u32::from(!report.is_good()))
    }

    fn check(&self) -> Result<(), Error> {
        let mut names: Vec<&str> = self.agent.iter().map(|agent| agent.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let reason = format!("{:?} is there twice: name them, as in ours=uvm", twice[0]);
            return Err(Error::input("--agent", reason));
        }
        if self.agent.len() > 4 {
            return Err(Error::input("--agent", "is there more than four times"));
        }
        let is_uvm = |agent: &Named| matches!(agent.way, Way::Uvm(_));
        if self.rootfs.is_none() && self.agent.iter().any(is_uvm) {
            return Err(Error::input("--rootfs", "is missing: containers are made of it"));
        }
        Ok(())
    }
}

fn table(report: &Report) -> Result<(), Error> {
    let mut rows = Vec::new();
    for measure in Measure::ALL {
        for agent in &report.agents {
            let taken = agent.taken.iter().find(|taken| taken.measure == measure);
            let Some(taken) = taken else { continue };
            let said = |text: String| [text, String::new(), String::new(), String::new()];
            let [rate, p50, p99, max] = match &taken.outcome {
                Outcome::Measured(sample) => cells(measure, sample),
                Outcome::Skipped(why) => said(format!("skipped: {why}")),
                Outcome::Failed(why) => said(format!("FAILED: {why}")),
            };
            rows.push([measure.name().to_owned(), agent.name.clone(), rate, p50, p99, max]);
        }
    }
    output::table(["MEASURE", "AGENT", "RATE", "P50 ms", "P99 ms", "MAX ms"], &rows)
}

fn cells(measure: Measure, sample: &Sample) -> [String; 4] {
    let latency = sample.latency();
    let rate = match measure.is_stream() {
        true => format!("{:.0} MiB/s", sample.mib_per_second()),
        false => format!("{:.1} per s", sample.rate()),
    };
    let time = |micros: u64| format!("{:.2}", micros as f64 / 1000.0);
    [rate, time(latency.p50), time(latency.p99), time(latency.max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_have_names_of_their_own_or_that_of_their_reach() {
        let read = |text: &str| text.parse::<Named>().unwrap();
        let plain = read("uvm");
        assert!(plain.name == "uvm" && matches!(plain.way, Way::Uvm(None)));
        let named = read("theirs=uvm:./a=b");
        assert!(named.name == "theirs" && matches!(named.way, Way::Uvm(Some(_))));
        let spawned = read("spawn:./gcs -log=x");
        let Way::Spawn(words) = spawned.way else { panic!("{spawned:?}") };
        assert_eq!((spawned.name.as_str(), words.len()), ("spawn", 2));
        for wrong in ["", "x", "=uvm", "listen:", "listen:nowhere", "spawn:", "connect"] {
            let error = wrong.parse::<Named>().unwrap_err();
            assert!(error.contains(wrong.strip_prefix("listen:").unwrap_or(wrong)), "{error}");
        }
    }
}
