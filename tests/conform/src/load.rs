//! How fast an agent is: requests, processes, containers and streams, as a host sees them.
//!
//! Agents are reached as for a conformance run, and measured in turn: one measurement of the first,
//! the same of the second, and so on, round after round, so that whatever the machine does meanwhile
//! meets all of them.
//!
//! | module   | what it holds                                         |
//! |----------|-------------------------------------------------------|
//! | `bridge` | the host's end: any number of requests at a time      |
//! | `agent`  | containers and streams, by hand                       |
//! | `sample` | what was measured: counts, and a histogram of times   |
//! | `plot`   | the same as a picture                                 |

mod agent;
mod bridge;
mod plot;
mod sample;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

pub use sample::{Latency, Sample};

use crate::environment::Environment;
use crate::load::agent::Agent;
use crate::statement::Need;
use crate::target::Target;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// A request that costs next to nothing, one at a time.
    Request,
    /// The same, many at a time.
    Requests,
    /// A container's statistics, one at a time.
    Statistics,
    /// A process in a running container, from its request to its exit code, one at a time.
    Exec,
    /// The same, several at a time.
    Execs,
    /// A container, from its root's mount to its deletion.
    Container,
    /// What a process writes.
    Stdout,
    /// What a process reads.
    Stdin,
}

impl Measure {
    /// All of them, in the order in which they are taken.
    pub const ALL: [Self; 8] = [
        Self::Request,
        Self::Requests,
        Self::Statistics,
        Self::Exec,
        Self::Execs,
        Self::Container,
        Self::Stdout,
        Self::Stdin,
    ];

    /// As on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Requests => "requests",
            Self::Statistics => "statistics",
            Self::Exec => "exec",
            Self::Execs => "execs",
            Self::Container => "container",
            Self::Stdout => "stdout",
            Self::Stdin => "stdin",
        }
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Request => "a cheap request, one at a time",
            Self::Requests => "cheap requests, many at a time",
            Self::Statistics => "a container's statistics",
            Self::Exec => "a process in a container, one at a time",
            Self::Execs => "processes in a container, several at a time",
            Self::Container => "a container: create, start, wait, delete",
            Self::Stdout => "output of a process",
            Self::Stdin => "input of a process",
        }
    }

    /// Whether bytes are what counts.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Stdout | Self::Stdin)
    }

    fn needs(self) -> &'static [Need] {
        match self {
            Self::Request | Self::Requests => &[],
            Self::Statistics | Self::Exec | Self::Execs | Self::Container => &[Need::Layer],
            Self::Stdout | Self::Stdin => &[Need::Layer, Need::Stdio],
        }
    }
}

impl std::str::FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|measure| measure.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is none of {names}")
        })
    }
}

/// How long, and how much at a time.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long one measurement takes.
    pub each: Duration,
    /// How often all are taken.
    pub rounds: u32,
    /// How many cheap requests are under way at a time.
    pub requests: usize,
    /// How many processes are started at a time.
    pub processes: usize,
    /// Bytes that one process writes or reads.
    pub bytes: u64,
    /// How long one answer may take.
    pub answer: Duration,
    /// What is measured.
    pub measures: Vec<Measure>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            each: Duration::from_secs(3),
            rounds: 2,
            requests: 32,
            processes: 4,
            bytes: 64 << 20,
            answer: Duration::from_secs(60),
            measures: Measure::ALL.to_vec(),
        }
    }
}

/// An agent to be measured.
#[derive(Debug)]
pub struct Contender {
    /// What it is called in reports.
    pub name: String,
    /// How it is reached.
    pub target: Target,
    /// What there is beside it.
    pub environment: Environment,
}

/// What came of one measure of one agent.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was measured.
    Measured(Sample),
    /// It cannot be measured the way the agent is reached.
    Skipped(String),
    /// The agent did not do what was asked.
    Failed(String),
}

/// One agent's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Its name.
    pub name: String,
    /// How it was reached.
    pub peer: String,
    /// In the order in which they were taken.
    pub taken: Vec<Taken>,
}

/// What was measured of an agent, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Taken {
    /// What was measured.
    pub measure: Measure,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// In the order in which they were named.
    pub agents: Vec<Figures>,
}

impl Report {
    /// Whether something was measured, and nothing failed.
    pub fn is_good(&self) -> bool {
        let taken = || self.agents.iter().flat_map(|agent| &agent.taken);
        !taken().any(|taken| matches!(taken.outcome, Outcome::Failed(_)))
            && taken().any(|taken| matches!(taken.outcome, Outcome::Measured(_)))
    }

    /// A measure of all agents, where it was taken.
    pub fn samples(&self, measure: Measure) -> Vec<(&str, &Sample)> {
        let place = |agent: &Figures| agent.taken.iter().position(|taken| taken.measure == measure);
        self.agents
            .iter()
            .filter_map(|agent| match &agent.taken[place(agent)?].outcome {
                Outcome::Measured(sample) => Some((agent.name.as_str(), sample)),
                _ => None,
            })
            .collect()
    }

    /// A picture of it: an SVG document.
    ///
    /// # Errors
    /// What the plotting library says.
    pub fn svg(&self) -> Result<String, String> {
        plot::svg(self)
    }
}

/// Measures agents in turn. `tell` is told what is done next: agent, measure, round.
///
/// # Errors
/// When an agent cannot be reached, with its name.
pub async fn run(
    contenders: Vec<Contender>,
    options: &Options,
    mut tell: impl FnMut(&str, Measure, u32),
) -> Result<Report, String> {
    let mut agents = Vec::new();
    for contender in contenders {
        let name = contender.name.clone();
        let opened = Agent::open(contender, options.answer).await;
        agents.push(opened.map_err(|reason| format!("{name}: {reason}"))?);
    }
    let mut all: Vec<Vec<Outcome>> = vec![Vec::new(); agents.len()];
    for round in 0..options.rounds {
        for (at, &measure) in options.measures.iter().enumerate() {
            for (agent, outcomes) in agents.iter().zip(&mut all) {
                if let Some(Outcome::Failed(_) | Outcome::Skipped(_)) = outcomes.get(at) {
                    continue;
                }
                tell(&agent.name, measure, round);
                let outcome = match agent.lacks(measure.needs()) {
                    Some(why) => Outcome::Skipped(why),
                    None => match take(agent, measure, options).await {
                        Ok(sample) => Outcome::Measured(sample),
                        Err(why) => Outcome::Failed(why),
                    },
                };
                match (outcomes.get_mut(at), outcome) {
                    (None, outcome) => outcomes.push(outcome),
                    (Some(Outcome::Measured(before)), Outcome::Measured(sample)) => {
                        before.add(&sample);
                    }
                    (Some(before), outcome) => *before = outcome,
                }
            }
        }
    }
    let mut report = Report { agents: Vec::new() };
    for (agent, outcomes) in agents.into_iter().zip(all) {
        let (name, peer) = (agent.name.clone(), agent.peer.clone());
        agent.close().await;
        let taken = options.measures.iter().zip(outcomes);
        let taken = taken.map(|(&measure, outcome)| Taken { measure, outcome }).collect();
        report.agents.push(Figures { name, peer, taken });
    }
    Ok(report)
}

async fn take(agent: &Arc<Agent>, measure: Measure, options: &Options) -> Result<Sample, String> {
    let (agent, bytes) = (Arc::clone(agent), options.bytes);
    let each = options.each;
    match measure {
        Measure::Request => repeat(1, each, 0, move || request(Arc::clone(&agent))).await,
        Measure::Requests => {
            repeat(options.requests, each, 0, move || request(Arc::clone(&agent))).await
        }
        Measure::Statistics => {
            repeat(1, each, 0, move || {
                let agent = Arc::clone(&agent);
                async move { agent.statistics().await }
            })
            .await
        }
        Measure::Exec => repeat(1, each, 0, move || exec(Arc::clone(&agent))).await,
        Measure::Execs => {
            repeat(options.processes, each, 0, move || exec(Arc::clone(&agent))).await
        }
        Measure::Container => {
            repeat(1, each, 0, move || {
                let agent = Arc::clone(&agent);
                async move { agent.container_cycle().await }
            })
            .await
        }
        Measure::Stdout => {
            repeat(1, each, bytes, move || {
                let agent = Arc::clone(&agent);
                async move { agent.read_output(bytes).await }
            })
            .await
        }
        Measure::Stdin => {
            repeat(1, each, bytes, move || {
                let agent = Arc::clone(&agent);
                async move { agent.write_input(bytes).await }
            })
            .await
        }
    }
}

async fn request(agent: Arc<Agent>) -> Result<Duration, String> {
    agent.cheap_request().await
}

async fn exec(agent: Arc<Agent>) -> Result<Duration, String> {
    agent.exec().await
}

/// Does something again and again, `parallel` at a time, for so long. Each says how long it took.
async fn repeat<F, O>(
    parallel: usize,
    each: Duration,
    bytes: u64,
    operation: F,
) -> Result<Sample, String>
where
    F: Fn() -> O + Send + Sync + 'static,
    O: Future<Output = Result<Duration, String>> + Send + 'static,
{
    let operation = Arc::new(operation);
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..parallel {
        let operation = Arc::clone(&operation);
        workers.spawn(async move {
            let mut sample = Sample::default();
            while sample.operations == 0 || begun.elapsed() < each {
                sample.note(operation().await?, bytes);
            }
            Ok(sample)
        });
    }
    let mut all = Sample::default();
    while let Some(ended) = workers.join_next().await {
        let sample: Result<Sample, String> = ended.map_err(|error| error.to_string())?;
        all.add(&sample?);
    }
    all.seconds = begun.elapsed().as_secs_f64();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_named_and_others_are_refused_with_the_names() {
        for measure in Measure::ALL {
            assert_eq!(measure.name().parse(), Ok(measure));
        }
        let error = "speed".parse::<Measure>().unwrap_err();
        assert!(error.contains("\"speed\"") && error.contains("stdout"), "{error}");
    }

    #[test]
    fn what_is_repeated_ends_in_time_and_is_done_at_least_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sample = runtime
            .block_on(repeat(3, Duration::ZERO, 5, || async { Ok(Duration::from_millis(2)) }));
        let sample = sample.unwrap();
        assert_eq!((sample.operations, sample.bytes), (3, 15));
        let failed = runtime
            .block_on(repeat(2, Duration::from_secs(60), 0, || async { Err("no".to_owned()) }));
        assert_eq!(failed.unwrap_err(), "no");
    }
}
