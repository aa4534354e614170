//! `cargo xtask bench`: what a utility VM costs, each figure beside its floor.
//!
//! Instructions are counted by QEMU (`-icount`): they repeat whatever else the machine does.
//! Times and rates depend on it, so they are taken as ratios within one run.

mod budget;
mod counters;
mod guest;
mod report;
mod storage;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use linkspan_host::protocol::message::ContainerId;
use linkspan_host::{Accel, ProcessSpec, Stdio, UtilityVm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::counters::Counters;
use crate::guest::{Bench, BenchContainer};
use crate::report::{Report, Unit};

/// Measures a utility VM in instructions, time and memory.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory with vmlinux, initrd and agent.
    #[arg(long, env = "LINKSPAN_IMAGE", default_value = "target/linkspan/image")]
    image: PathBuf,
    /// The static program of the floor (`linkspan-floor`, built as the agent is).
    #[arg(long, env = "LINKSPAN_FLOOR")]
    floor: Option<PathBuf>,
    /// A static busybox.
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// Megabytes moved for a rate.
    #[arg(long, default_value_t = 128)]
    megabytes: u64,
    /// Another argument for the utility VMs' kernel, such as `init_on_alloc=1`; may be given more
    /// than once.
    #[arg(long, value_name = "ARG")]
    kernel_arg: Vec<String>,
    /// Write the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail unless the figures meet the goals that the table names.
    #[arg(long)]
    check: bool,
    /// Fail if a counted figure is more than 5 % above what this file has for it.
    #[arg(long, value_name = "FILE")]
    budget: Option<PathBuf>,
    /// Make the counted figures the budget in this file.
    #[arg(long, value_name = "FILE")]
    set_budget: Option<PathBuf>,
    /// Measure only this; may be given more than once. All of it unless told.
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

/// A part of the measurements, each with utility VMs of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The boot, beside the floor's.
    Boot,
    /// Counted instructions, and memory.
    Instructions,
    /// Rates and times, on two processors.
    Rates,
    /// Layers and disks: instructions, and times from attached to mounted.
    Storage,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let bench = Bench::prepare(&arguments.image, &arguments.busybox, &arguments.kernel_arg)?;
    let mut report = Report::default();
    report.size("initrd", std::fs::metadata(arguments.image.join("initrd"))?.len(), 8_920_000, 0.5);
    if let Some(floor) = arguments.floor.as_ref().filter(|_| arguments.wants(Part::Boot)) {
        boot(&bench, floor, &mut report).await?;
    }
    if arguments.wants(Part::Instructions) {
        instructions(&bench, &mut report).await?;
    }
    if arguments.wants(Part::Rates) {
        rates(&bench, arguments.megabytes << 20, &mut report).await?;
    }
    if arguments.wants(Part::Storage) {
        let uvm = bench.start(Accel::Tcg, true).await?;
        let mut counters = Counters::start(&uvm).await?;
        storage::instructions(&uvm, &mut counters, &mut report).await?;
        uvm.terminate().await;
        let uvm = bench.machine(Accel::Auto).pmem(8).start().await?;
        storage::latencies(&uvm, &mut report).await?;
        uvm.terminate().await;
    }
    println!("{report}");
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report.to_json())?)?;
    }
    if let Some(path) = &arguments.set_budget {
        budget::write(path, bench.kernel(), &report.counted())?;
    }
    if let Some(path) = &arguments.budget {
        for remark in budget::check(path, bench.kernel(), &report.counted())? {
            println!("{remark}");
        }
    }
    match arguments.check {
        true => report.check(),
        false => Ok(()),
    }
}

/// From the kernel's start to the first answer, ours and the floor's.
async fn boot(bench: &Bench, floor: &Path, report: &mut Report) -> Result<()> {
    let floor_us = bench.floor_boot(floor).await.context("boot the floor")?;
    let uvm = bench.start(Accel::Tcg, true).await?;
    let text = uvm.dump_stacks().await?;
    uvm.terminate().await;
    let ours = text
        .lines()
        .find_map(|line| line.strip_prefix("negotiated ")?.split(' ').next()?.parse::<u64>().ok())
        .context("the agent does not say when it negotiated")?;
    report.floor("kernel start to negotiated, guest time", ours, floor_us, Unit::Microseconds);
    report.goal("  beyond the floor", ours.saturating_sub(floor_us), 100_000, Unit::Microseconds);
    Ok(())
}

async fn instructions(bench: &Bench, report: &mut Report) -> Result<()> {
    let uvm = bench.start(Accel::Tcg, true).await?;
    let mut counters = Counters::start(&uvm).await?;
    let container = BenchContainer::map(bench, &uvm).await?;

    // The first of each also pays for code that was never touched.
    for _ in 0..2 {
        container.cycle(&uvm, "warm").await?;
    }
    let cost =
        counters.measure(3, async |n| container.cycle(&uvm, &format!("cycle{n}")).await).await?;
    report.instructions("container cycle", cost, 96_100_000, 0.5);

    let running = container.run(&uvm, "execs").await?;
    for _ in 0..2 {
        running.exec(&uvm).await?;
    }
    let cost = counters.measure(5, async |_| running.exec(&uvm).await).await?;
    report.instructions("exec of echo", cost, 51_100_000, 0.5);

    let statistics = async || running.statistics(&uvm).await;
    statistics().await?;
    let cost = counters.measure(20, async |_| statistics().await).await?;
    report.instructions("GetProperties Statistics", cost, 0, 1.0);

    let refused = async || {
        let id = ContainerId::from("nobody");
        let request = linkspan_host::protocol::message::GetProperties::default();
        drop(uvm.request(&id, &request).await);
        Ok(())
    };
    refused().await?;
    let cost = counters.measure(100, async |_| refused().await).await?;
    report.instructions("failing GetProperties", cost, 406_000, 1.0);

    let external = async || {
        let status = uvm.command("/bin/busybox").arg("true").stdio(Stdio::NULL).status().await?;
        anyhow::ensure!(status.success(), "{status}");
        Ok(())
    };
    external().await?;
    let cost = counters.measure(5, async |_| external().await).await?;
    report.instructions("process in the UVM root", cost, 0, 1.0);

    let cost =
        counters.measure(1, async |_| running.output(&uvm, 16 << 20).await.map(drop)).await?;
    report.instructions("16 MiB of container stdout", cost, 93_000_000, 1.0);

    report.memory("agent RSS, idle", counters.agent_rss_kib().await?, 13_415, 1.0 / 3.0);
    running.end(&uvm).await?;
    let mut ten = Vec::new();
    for n in 0..10 {
        ten.push(container.run(&uvm, &format!("ten{n}")).await?);
    }
    report.memory("agent RSS, 10 containers", counters.agent_rss_kib().await?, 16_384, 1.0 / 3.0);
    for container in ten {
        container.end(&uvm).await?;
    }
    uvm.terminate().await;
    Ok(())
}

async fn rates(bench: &Bench, bytes: u64, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let uvm = bench.start(Accel::Auto, false).await?;
    report.time("start to negotiated, wall", began.elapsed());
    let container = BenchContainer::map(bench, &uvm).await?;
    let began = Instant::now();
    container.cycle(&uvm, "first").await?;
    report.time("container cycle, the first, wall", began.elapsed());
    let running = container.run(&uvm, "rates").await?;

    // The raw copy is a process whose stdout is the vsock itself. In turn, because the machine's
    // mood changes.
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        raw.push(raw_output(&uvm, bytes).await?);
        ours.push(running.output(&uvm, bytes).await?);
    }
    report.rate("container stdout", bytes, median(ours), median(raw), 0.8);
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        raw.push(raw_input(&uvm, bytes).await?);
        ours.push(running.input(&uvm, bytes).await?);
    }
    report.rate("container stdin", bytes, median(ours), median(raw), 0.0);

    let began = Instant::now();
    let count = 500;
    for _ in 0..count {
        drop(
            uvm.request(
                &ContainerId::from("nobody"),
                &linkspan_host::protocol::message::GetProperties::default(),
            )
            .await,
        );
    }
    report.per_second("failing GetProperties, one at a time", count, began.elapsed(), 794);
    running.end(&uvm).await?;
    uvm.terminate().await;
    Ok(())
}

fn dd(bytes: u64) -> ProcessSpec {
    let count = format!("count={}", bytes >> 16);
    ProcessSpec::new(["/bin/busybox", "dd", "if=/dev/zero", "bs=65536", &count])
}

/// Swallows its input to the end, and says that it did.
const SINK: &str = "exec /bin/busybox dd of=/dev/null bs=65536 2>&1";

fn swallowed(output: &str) -> Result<()> {
    anyhow::ensure!(output.contains("records in"), "the input was not read: {output:?}");
    Ok(())
}

async fn raw_output(uvm: &UtilityVm, bytes: u64) -> Result<Duration> {
    let mut args = dd(bytes).args.into_iter();
    let program = args.next().context("a program")?;
    let stdio = Stdio { stdin: false, stdout: true, stderr: false };
    let child = uvm.command(program).args(args).stdio(stdio).spawn().await?;
    count_output(child, bytes).await
}

async fn raw_input(uvm: &UtilityVm, bytes: u64) -> Result<Duration> {
    let child = uvm.command("/bin/busybox").args(["sh", "-c", SINK]).spawn().await?;
    feed_input(child, bytes).await
}

async fn count_output(mut child: linkspan_host::Child, bytes: u64) -> Result<Duration> {
    let mut stdout = child.stdout.take().context("stdout")?;
    let mut buffer = vec![0; 1 << 20];
    let (mut seen, mut began) = (0, None);
    loop {
        let len = stdout.read(&mut buffer).await?;
        began.get_or_insert_with(Instant::now);
        seen += len as u64;
        if len == 0 {
            break;
        }
    }
    let took = began.map(|began| began.elapsed()).unwrap_or_default();
    anyhow::ensure!(seen == bytes, "{seen} bytes of {bytes} arrived");
    drop(stdout);
    child.wait().await?;
    Ok(took)
}

async fn feed_input(mut child: linkspan_host::Child, bytes: u64) -> Result<Duration> {
    let mut stdin = child.stdin.take().context("stdin")?;
    let buffer = vec![0; 1 << 20];
    let began = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let len = left.min(buffer.len() as u64) as usize;
        stdin.write_all(&buffer[..len]).await?;
        left -= len as u64;
    }
    drop(stdin);
    let output = child.wait_with_output().await?;
    let took = began.elapsed();
    swallowed(&String::from_utf8_lossy(&output.stdout))?;
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
