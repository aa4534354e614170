//! The harness on hosts of our own library: the right one meets every statement, broken ones are
//! told by the statements that they break, and by no others.

use std::ffi::OsString;
use std::rc::Rc;
use std::time::Duration;

use linkspan_conform::broken::Broken;
use linkspan_conform::driven::{BROKEN, Defect};
use linkspan_conform::host::{HostReach, HostSession, STATEMENTS};
use linkspan_conform::run::{self, Plan, Report};
use linkspan_conform::statement::Profile;
use linkspan_conform::verdict::Verdict;
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};

/// Statements that take as long as hosts wait: with broken hosts they are looked at only where they
/// tell.
const SLOW: [u32; 3] = [40, 41, 43];

/// So many hosts at a time.
const AT_A_TIME: usize = 16;

async fn check(defect: Option<Defect>, profile: Profile, plan: Plan) -> Report {
    let mut command = vec![OsString::from(env!("CARGO_BIN_EXE_driven-host"))];
    if let Some(defect) = defect {
        command.extend(["--defect".into(), format!("{defect:?}").into()]);
    }
    let mut session = HostSession::new(HostReach::Spawn(command), profile);
    if defect.is_some() {
        // Many of them do nothing more at some point, and all of that adds up.
        session.answer = Duration::from_secs(3);
    }
    run::host(&mut session, STATEMENTS, &plan, |_| {}).await
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), future)
}

#[test]
fn our_host_meets_every_statement_in_both_profiles() {
    let (lenient, hardened) = block_on(async {
        // Five minutes of silence, a migration's destination, and Windows.
        let plan = || Plan { each: Duration::from_secs(100), ..Plan::default() };
        tokio::join!(check(None, Profile::V4Lcow, plan()), check(None, Profile::Hardened, plan()))
    });
    for report in [lenient, hardened] {
        println!("{}", report.table());
        assert_eq!(report.deviations(), Vec::<u32>::new());
        let skipped = report.outcomes.iter().filter(|o| o.verdict == Verdict::Skipped);
        assert_eq!(skipped.map(|o| o.id).collect::<Vec<_>>(), [40, 45, 50]);
        assert_eq!(report.outcomes.len(), 50);
        if report.profile == Profile::Hardened {
            let kept = include_str!("../../../docs/conformance-host.md");
            assert_eq!(report.markdown(), kept, "docs/conformance-host.md is out of date");
        }
    }
}

#[test]
fn the_documentation_has_every_broken_host() {
    let text = include_str!("../../../docs/conformance.md");
    for broken in BROKEN {
        let ids: Vec<String> = broken.told_by.iter().map(u32::to_string).collect();
        let row = format!("| {} | {} |", broken.what, ids.join(", "));
        assert!(text.contains(&row), "docs/conformance.md has no row {row}");
    }
}

#[test]
fn a_host_that_does_nothing_is_told_by_the_first_statement_alone() {
    let report = block_on(async {
        let reach = HostReach::Spawn(vec!["true".into()]);
        let mut session = HostSession::new(reach, Profile::Hardened);
        run::host(&mut session, STATEMENTS, &Plan::default(), |_| {}).await
    });
    assert_eq!(report.deviations(), [1]);
    assert_eq!(report.count(Verdict::Skipped), 49, "{}", report.table());
}

#[test]
fn each_broken_host_is_told_by_the_statements_that_it_breaks() {
    assert!(BROKEN.len() >= 55);
    let only = std::env::var("LINKSPAN_DEFECT").ok();
    let chosen = |broken: &&Broken<Defect>| {
        only.as_ref().is_none_or(|only| *only == format!("{:?}", broken.defect))
    };
    let outcomes = block_on(async {
        let permits = Rc::new(Semaphore::new(AT_A_TIME));
        let mut checks = Vec::new();
        for broken in BROKEN.iter().filter(chosen) {
            let permits = Rc::clone(&permits);
            checks.push((
                broken,
                spawn_local(async move {
                    let _permit = permits.acquire().await;
                    let quick = |id: &u32| !SLOW.contains(id) || broken.told_by.contains(id);
                    let only =
                        STATEMENTS.iter().map(|statement| statement.id).filter(quick).collect();
                    // Statement 40 allows for five minutes, which a host that it tells does not take.
                    let slow = broken.told_by.contains(&40);
                    let each = Duration::from_secs(if slow { 340 } else { 100 });
                    let plan = Plan { only, each, ..Plan::default() };
                    let begun = std::time::Instant::now();
                    let report = check(Some(broken.defect), Profile::Hardened, plan).await;
                    println!("{:?}: {:?}", broken.defect, begun.elapsed());
                    report
                }),
            ));
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
