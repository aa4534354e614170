//! The harness tells a right guest from broken ones, and each by the statements that are broken.

use std::rc::Rc;
use std::time::Duration;

use linkspan_conform::environment::Environment;
use linkspan_conform::guest::STATEMENTS;
use linkspan_conform::inner::Network;
use linkspan_conform::run::{self, Plan, Report};
use linkspan_conform::session::Session;
use linkspan_conform::simulated::{BROKEN, Defect, Guest, Way};
use linkspan_conform::statement::Profile;
use linkspan_conform::target::{Listen, Target};
use tokio::task::{LocalSet, spawn_local};

async fn check(defect: Option<Defect>, profile: Profile) -> Report {
    let network = Network::default();
    let guest = spawn_local(Rc::clone(&Guest::new(Way::Inner(network.clone()), defect)).run());
    let environment = Environment {
        layer: Some("/simulated".to_owned()),
        silence: Duration::from_millis(200),
        ..Environment::default()
    };
    let mut session = Session::new(Target::listen(Listen::Inner(network)), environment, profile);
    session.answer = Duration::from_secs(8);
    session.target.open().await.expect("listen within the process");
    let report = run::guest(&mut session, STATEMENTS, &Plan::default(), |_| {}).await;
    guest.abort();
    report
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), future)
}

#[test]
fn a_right_guest_meets_every_statement_in_both_profiles() {
    for profile in [Profile::V4Lcow, Profile::Hardened] {
        let report = block_on(check(None, profile));
        println!("{}", report.table());
        assert_eq!(report.deviations(), Vec::<u32>::new());
        assert!(report.outcomes.iter().filter(|o| o.reason.is_some()).count() < 15);
    }
}

#[test]
fn each_broken_guest_is_told_by_the_statements_that_it_breaks() {
    assert!(BROKEN.len() >= 25);
    let outcomes = block_on(async {
        let mut checks = Vec::new();
        for broken in BROKEN {
            checks.push((broken, spawn_local(check(Some(broken.defect), Profile::Hardened))));
        }
        let mut outcomes = Vec::new();
        for (broken, check) in checks {
            outcomes.push((broken, check.await.expect("a check does not panic")));
        }
        outcomes
    });
    let wrong: Vec<String> =
        outcomes.iter().filter_map(|(broken, report)| broken.mistold(report)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_documentation_has_every_broken_guest_and_every_mutation() {
    let text = include_str!("../../../docs/conformance.md");
    for broken in BROKEN {
        let ids: Vec<String> = broken.told_by.iter().map(u32::to_string).collect();
        let row = format!("| {} | {} |", broken.what, ids.join(", "));
        assert!(text.contains(&row), "docs/conformance.md has no row {row}");
    }
    for mutation in linkspan_conform::simulation::MUTATIONS {
        assert!(text.contains(&format!("`{mutation:?}`")), "{mutation:?}");
    }
}

#[test]
fn what_is_tolerated_is_no_failure_where_hosts_live_with_it() {
    let report = block_on(check(Some(Defect::NoRecords), Profile::V4Lcow));
    assert_eq!(report.deviations(), [33]);
    assert!(report.is_good(), "{}", report.table());
}
