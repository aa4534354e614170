//! Our agent under the protocol harness, with all that the harness can use.

use std::time::Duration;

use linkspan_conform::guest::STATEMENTS;
use linkspan_conform::machine::Bench;
use linkspan_conform::run::{self, Plan, Report};
use linkspan_conform::session::Session;
use linkspan_conform::statement::Profile;
use linkspan_conform::verdict::Verdict;
use linkspan_tests::{Backend, block_on, machine, rootfs};

/// Statements that our agent does not meet yet. One that it does meet by now may go at any time.
const KNOWN: &[u32] = &[
    108, // SecurityPolicy
];

/// Statements that nothing of ours can be checked for here.
const SKIPPED: &[u32] = &[104, 111];

fn conforms(backend: Backend, profile: Profile) {
    block_on(async {
        let builder = machine("conform", backend);
        let started = Bench::start(builder, &rootfs()).await;
        let (bench, target, mut environment) = started.expect("the machine starts");
        environment.shell = ["/bin/busybox", "sh", "-c"].map(str::to_owned).to_vec();
        let mut session = Session::new(target, environment, profile);
        session.answer = Duration::from_secs(30);
        let plan = Plan { each: Duration::from_secs(100), ..Plan::default() };
        let report = run::guest(&mut session, STATEMENTS, &plan, |_| {}).await;
        bench.end().await;
        judge(&report);
    });
}

fn judge(report: &Report) {
    let of = |verdict| {
        let outcomes = report.outcomes.iter().filter(move |outcome| outcome.verdict == verdict);
        outcomes.map(|outcome| outcome.id).collect::<Vec<_>>()
    };
    let holds: Vec<u32> =
        KNOWN.iter().copied().filter(|id| of(Verdict::Pass).contains(id)).collect();
    println!("{}", report.table());
    if !holds.is_empty() {
        println!("these hold by now and can leave the list of known failures: {holds:?}");
    }
    let unknown: Vec<u32> =
        report.deviations().into_iter().filter(|id| !KNOWN.contains(id)).collect();
    assert!(
        unknown.is_empty(),
        "{unknown:?}: statements that do not hold and are not known not to"
    );
    assert_eq!(report.outcomes.len(), 111);
    let skipped: Vec<u32> = of(Verdict::Skipped);
    let surprising: Vec<u32> = skipped.into_iter().filter(|id| !SKIPPED.contains(id)).collect();
    assert!(surprising.is_empty(), "{surprising:?}: statements that were not checked");
}

mod loopback {
    use super::*;

    #[test]
    fn the_agent_conforms_as_hcsshim_does() {
        conforms(Backend::Loopback, Profile::V4Lcow);
    }

    #[test]
    fn the_agent_conforms_when_hardened() {
        conforms(Backend::Loopback, Profile::Hardened);
    }
}

mod qemu {
    use super::*;

    #[test]
    fn the_agent_conforms_when_hardened() {
        conforms(Backend::Qemu, Profile::Hardened);
    }
}
