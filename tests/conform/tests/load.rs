//! Measuring agents: two in turn, what cannot be measured, and one that does not do what is asked.

use std::process::Stdio;
use std::time::Duration;

use linkspan_conform::environment::{Environment, Reach};
use linkspan_conform::load::{self, Contender, Measure, Options, Outcome, Report};
use tempfile::TempDir;
use tokio::process::{Child, Command};

const GUEST: &str = env!("CARGO_BIN_EXE_simulated-guest");

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Short and small.
fn options() -> Options {
    Options {
        each: Duration::from_millis(50),
        rounds: 2,
        requests: 8,
        bytes: 3 << 20,
        answer: Duration::from_secs(10),
        ..Options::default()
    }
}

/// A simulated guest that dials the bench.
fn dialling(directory: &TempDir, name: &str, defect: Option<&str>) -> (Child, Contender) {
    let base = format!("hybrid:{}", directory.path().join(name).display());
    let mut command = Command::new(GUEST);
    command.args(["--dial", &base]).args(defect.into_iter().flat_map(|name| ["--defect", name]));
    let guest = command.stdin(Stdio::null()).kill_on_drop(true).spawn().expect("start a guest");
    let target = Reach::Listen(base.parse().expect("an address")).target();
    let environment = Environment::from(Some("/simulated".to_owned()));
    (guest, Contender { name: name.to_owned(), target, environment })
}

fn outcome<'a>(report: &'a Report, agent: &str, measure: Measure) -> &'a Outcome {
    let agent = report.agents.iter().find(|known| known.name == agent).expect("the agent");
    let taken = agent.taken.iter().find(|taken| taken.measure == measure);
    &taken.expect("the measure").outcome
}

#[test]
fn two_agents_are_measured_in_turn_and_drawn() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (_one, first) = dialling(&directory, "first", None);
        let (_other, second) = dialling(&directory, "second", None);
        let mut order = Vec::new();
        let told = |name: &str, measure, round| order.push((name.to_owned(), measure, round));
        let report = load::run(vec![first, second], &options(), told).await.expect("a report");
        assert!(report.is_good(), "{report:?}");
        assert_eq!(order.len(), 2 * 2 * Measure::ALL.len());
        assert_eq!(order[1], ("second".to_owned(), Measure::Request, 0));
        assert_eq!(order[2], ("first".to_owned(), Measure::Requests, 0));
        for measure in Measure::ALL {
            let samples = report.samples(measure);
            assert_eq!(samples.len(), 2, "{measure:?}");
            for (_, sample) in samples {
                assert!(sample.operations >= 2, "{measure:?}: {sample:?}");
                assert!(sample.latency().p50 <= sample.latency().max);
                let bytes = if measure.is_stream() { sample.operations * (3 << 20) } else { 0 };
                assert_eq!(sample.bytes, bytes, "{measure:?}");
            }
        }
        let text = serde_json::to_value(&report).expect("JSON");
        let measured = &text["agents"][1]["taken"][0]["measured"];
        assert!(measured["latency_us"]["p99"].is_u64(), "{text}");
        let svg = report.svg().expect("a plot");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for shown in ["first", "second", "output of a process", "milliseconds", "p99"] {
            assert!(svg.contains(shown), "no {shown:?} in the plot");
        }
    });
}

#[test]
fn what_pipes_do_not_allow_is_skipped_with_a_reason() {
    block_on(async {
        let command = [GUEST, "--pipes"].map(Into::into).to_vec();
        let target = Reach::Spawn(command, None).target();
        let environment = Environment::default();
        let contender = Contender { name: "piped".to_owned(), target, environment };
        let report = load::run(vec![contender], &options(), |_, _, _| {}).await.expect("a report");
        assert!(report.is_good(), "{report:?}");
        assert!(matches!(outcome(&report, "piped", Measure::Requests), Outcome::Measured(_)));
        let Outcome::Skipped(why) = outcome(&report, "piped", Measure::Exec) else {
            panic!("{report:?}")
        };
        assert!(why.contains("no layer"), "{why}");
    });
}

#[test]
fn an_agent_that_loses_output_fails_and_is_not_called_fast() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (_guest, contender) = dialling(&directory, "broken", Some("CutsOutput"));
        let report = load::run(vec![contender], &options(), |_, _, _| {}).await.expect("a report");
        assert!(!report.is_good(), "{report:?}");
        let Outcome::Failed(why) = outcome(&report, "broken", Measure::Stdout) else {
            panic!("{report:?}")
        };
        assert!(why.contains("of 3145728 bytes have come"), "{why}");
        assert!(matches!(outcome(&report, "broken", Measure::Exec), Outcome::Measured(_)));
    });
}

#[test]
fn an_agent_that_does_not_come_is_named() {
    let mut options = options();
    options.answer = Duration::from_millis(100);
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("hybrid:{}", directory.path().join("nobody").display());
    let target = Reach::Listen(address.parse().expect("an address")).target();
    let contender =
        Contender { name: "absent".to_owned(), target, environment: Environment::default() };
    let error = block_on(load::run(vec![contender], &options, |_, _, _| {})).unwrap_err();
    assert!(error.starts_with("absent: ") && error.contains("100ms"), "{error}");
}
