//! Runs the fuzz targets without libFuzzer: on their seeds, then on mutations of them, the same
//! ones each time. It sees nothing of what an input reaches, so it is no fuzzing; it is what a
//! change can be tried with anywhere in seconds.
//!
//! `smoke [--seconds N] [TARGET]` runs one target or all, each for so long; `smoke TARGET FILE`
//! tries one input.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use linkspan_fuzz::{TARGETS, Target};

/// How long one input may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest input, in bytes.
const LONGEST: usize = 64 << 10;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("smoke: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let mut seconds = 10;
    if let Some(at) = words.iter().position(|word| word == "--seconds") {
        let value = words.get(at + 1).ok_or("--seconds needs a number")?;
        seconds = value.parse().map_err(|_| format!("--seconds {value:?} is no number"))?;
        words.drain(at..at + 2);
    }
    let known = || TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let named = |name: &str| {
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        found.copied().ok_or_else(|| format!("no target {name:?}; there are {}", known()))
    };
    match words.as_slice() {
        [] => TARGETS.iter().try_for_each(|&target| smoke(target, seconds)),
        [name] => smoke(named(name)?, seconds),
        [name, file] => {
            let input = fs::read(file).map_err(|error| format!("read {file}: {error}"))?;
            named(name)?.1(&input);
            Ok(())
        }
        _ => Err(format!("usage: smoke [--seconds N] [TARGET [FILE]], TARGET is {}", known())),
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn seeds(name: &str) -> Result<Vec<Vec<u8>>, String> {
    let directory = root().join("seeds").join(name);
    let cannot = |error| format!("read {}: {error}", directory.display());
    let entries = fs::read_dir(&directory).map_err(cannot)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<Result<_, _>>().map_err(cannot)?;
    paths.sort();
    paths.iter().map(fs::read).collect::<Result<_, _>>().map_err(cannot)
}

fn smoke((name, target): Target, seconds: u64) -> Result<(), String> {
    let seeds = seeds(name)?;
    if seeds.is_empty() {
        return Err(format!("{name} has no seeds"));
    }
    let (begun, limit) = (Instant::now(), Duration::from_secs(seconds));
    let mut chance = Chance(0x4c69_6e6b_7370_616e);
    let mut count = 0;
    for input in &seeds {
        attempt(name, target, input)?;
    }
    while begun.elapsed() < limit {
        let input = mutated(&seeds, &mut chance);
        attempt(name, target, &input)?;
        count += 1;
    }
    eprintln!("  {name}: {} seeds and {count} mutations hold", seeds.len());
    Ok(())
}

fn attempt(name: &str, target: fn(&[u8]), input: &[u8]) -> Result<(), String> {
    let (done, waiting) = mpsc::channel::<()>();
    let keep = |what: &str| {
        let path = root().join("artifacts").join(format!("{name}-{what}"));
        let _ = fs::create_dir_all(root().join("artifacts"));
        let kept = fs::write(&path, input).map_or_else(
            |error| format!("which cannot be kept: {error}"),
            |()| format!("try it again with `smoke {name} {}`", path.display()),
        );
        format!("{name}: an input {what}s; {kept}")
    };
    let keep = &keep;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("smoke: {}", keep("hang"));
                std::process::exit(1);
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
        drop(done);
        outcome.map_err(|_| keep("panic"))
    })
}

/// A seed with a few things done to it.
fn mutated(seeds: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(6) {
        let at = chance.below(input.len() + 1);
        match chance.below(8) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..input.len().min(at + 1 + chance.below(16)))),
            2 => {
                let piece = &seeds[chance.below(seeds.len())];
                let from = chance.below(piece.len() + 1);
                let to = piece.len().min(from + chance.below(64));
                input.splice(at..at, piece[from..to].iter().copied());
            }
            3 => {
                let edge = EDGES[chance.below(EDGES.len())];
                for (offset, byte) in edge.iter().enumerate() {
                    if let Some(place) = input.get_mut(at + offset) {
                        *place = *byte;
                    }
                }
            }
            4 => drop(input.splice(at..at, EDGES[chance.below(EDGES.len())].iter().copied())),
            _ => {
                let bit = 1 << chance.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bit;
                }
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// What lengths and texts trip over.
const EDGES: [&[u8]; 12] = [
    &[0],
    &[0xff; 4],
    &[0xff; 8],
    &[0, 0, 0, 0x80],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0x0f, 0, 0, 0],
    b"null",
    b"-1",
    b"18446744073709551616",
    b"\"\\u0000\"",
    b"[[[[[[[[",
    b"\xf0\x9f",
];

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or(0)
    }
}
