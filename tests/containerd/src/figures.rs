//! What a container costs with our runtime, beside the stock one.
//!
//! Wall times and resident memory on this machine, of medians; the ratio is what can be compared.
//! Our server writes into containerd's log how long its parts of a start took.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::ctr::Ctr;
use crate::daemon::Daemon;
use crate::{OURS, STOCK};

/// How often each is measured.
const RUNS: usize = 5;

/// Measures both and prints a table.
pub(crate) fn print(daemon: &Daemon, ctr: &Ctr) -> Result<()> {
    let (stock, ours) = (ctr.with(STOCK), ctr.with(OURS));
    // The first run makes the images of layers.
    let first = to_output(&ours)?;
    let (stock_ms, ours_ms) = (median(&stock)?, median(&ours)?);
    println!("\n{:40} {:>10} {:>10} {:>8}", "", "stock", "ours", "ratio");
    let row = |what: &str, stock: f64, ours: f64| {
        println!("{what:40} {stock:10.1} {ours:10.1} {:8.1}", ours / stock);
    };
    row("ctr run to its first output, ms", stock_ms, ours_ms);
    println!("{:40} {:>10} {first:10.1}", "  the very first", "");
    for phase in ["layers_ms", "machine_ms", "create_ms", "start_ms"] {
        let mut values = phases(daemon, phase)?;
        println!("{:40} {:>10} {:10.1}", format!("  {phase}"), "", middle(&mut values));
    }
    let memory = |ctr: &Ctr, server: &str| -> Result<(f64, f64)> {
        ctr.detached(&[], "weighed", &["sleep", "1000"])?;
        let weighed =
            (resident(server, ctr.namespace())?, resident("qemu-system", ctr.namespace()));
        ctr.end("weighed", "SIGKILL")?;
        Ok((weighed.0, weighed.1.unwrap_or(0.0)))
    };
    let (stock_server, _) = memory(&stock, "containerd-shim-runc-v2")?;
    let (our_server, machine) = memory(&ours, "containerd-shim-linkspan-v1")?;
    row("shim, resident MiB", stock_server, our_server);
    println!("{:40} {:>10} {machine:10.1}", "utility VM, resident MiB", "");
    Ok(())
}

fn median(ctr: &Ctr) -> Result<f64> {
    let mut times = (0..RUNS).map(|_| to_output(ctr)).collect::<Result<Vec<_>>>()?;
    Ok(middle(&mut times))
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Milliseconds from `ctr run` to the container's first output.
fn to_output(ctr: &Ctr) -> Result<f64> {
    let args = ctr.container_args(&["--rm"], "timed", &["echo", "here"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let began = Instant::now();
    let mut child = ctr.command(&args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    let took = began.elapsed().as_secs_f64() * 1000.0;
    let status = child.wait()?;
    ensure!(status.success() && line == "here\n", "{status}: {line:?}");
    Ok(took)
}

/// What our server has written of a phase, but for the first time.
fn phases(daemon: &Daemon, phase: &str) -> Result<Vec<f64>> {
    let log = fs::read_to_string(daemon.directory().join("log"))?;
    let values = log.lines().filter_map(|line| {
        let (_, after) = line.split_once(&format!("{phase}="))?;
        after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    });
    let values: Vec<f64> = values.skip(1).collect();
    ensure!(!values.is_empty(), "containerd's log says nothing of {phase}");
    Ok(values)
}

/// MiB of a process's own that are in memory.
fn resident(program: &str, mark: &str) -> Result<f64> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let first = line.split(' ').next().unwrap_or_default();
        if !first.contains(program) || !line.contains(mark) {
            continue;
        }
        let status = fs::read_to_string(entry.path().join("status"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = kib.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        return Ok(kib.context("no VmRSS")? / 1024.0);
    }
    bail!("{program} does not run")
}
