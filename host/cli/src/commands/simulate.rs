//! `linkspan simulate`: the protocol's two ends under a seeded scheduler.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::{Args, value_parser};
use linkspan_conform::simulation::{Broken, run};

use crate::error::Error;
use crate::options::Global;
use crate::output;

/// Run both ends of the protocol against each other, with faults, in virtual time
///
/// Each seed is one run: processes that write and end, connections that are cut and made anew,
/// slow readers. After every step it is checked that no output is lost or doubled, that no exit is
/// told before its output was taken, and that each is told once. A seed that breaks that is
/// printed, with the command that runs it again; the exit code is 1 then.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan simulate --seeds 100000
  linkspan simulate --seed 4711")]
pub(crate) struct Simulate {
    /// Run this seed alone
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
}

impl Simulate {
    pub(crate) fn run(&self, global: &Global) -> Result<u32, Error> {
        let (first, count) = self.seed.map_or((self.first, self.seeds), |seed| (seed, 1));
        let begun = Instant::now();
        let (next, steps) = (AtomicU64::new(0), AtomicU64::new(0));
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let broken: Option<Broken> = thread::scope(|scope| {
            let work = || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return None;
                    }
                    match run(first.wrapping_add(index), None) {
                        Ok(took) => drop(steps.fetch_add(took as u64, Ordering::Relaxed)),
                        Err(broken) => {
                            next.store(count, Ordering::Relaxed);
                            return Some(broken);
                        }
                    }
                }
            };
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers.into_iter().filter_map(|worker| worker.join().ok().flatten()).next()
        });
        let (steps, seconds) = (steps.into_inner(), begun.elapsed().as_secs_f64());
        if global.json {
            output::json(&serde_json::json!({
                "first": first, "seeds": count, "steps": steps, "seconds": seconds,
                "broken": broken.as_ref().map(|broken| serde_json::json!({
                    "seed": broken.seed, "step": broken.step, "what": broken.what,
                })),
            }))?;
        } else if let Some(broken) = &broken {
            output::line(format!(
                "{broken}\nagain with: linkspan simulate --seed {}",
                broken.seed
            ))?;
        } else {
            output::line(format!("{count} seeds hold, {steps} steps in {seconds:.1} s"))?;
        }
        Ok(u32::from(broken.is_some()))
    }
}
