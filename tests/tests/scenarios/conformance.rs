//! Our agent under the protocol harness, with all that the harness can use.

use std::time::Duration;

use linkspan_conform::guest::STATEMENTS;
use linkspan_conform::machine::Bench;
use linkspan_conform::run::{self, Plan};
use linkspan_conform::session::Session;
use linkspan_conform::statement::Profile;
use linkspan_conform::verdict::Verdict;
use linkspan_host::Builder;
use linkspan_tests::{Backend, block_on, machine, machine_with_vmbus_names, rootfs};

/// The loopback backend has no adapters.
fn conforms(backend: Backend, profile: Profile) {
    let builder = machine("conform", backend);
    match backend {
        Backend::Loopback => check(builder, profile, &[104], false),
        Backend::Qemu => check(builder.user_network([]), profile, &[], false),
    }
}

/// All statements hold but those that cannot be checked there.
fn check(builder: Builder, profile: Profile, unchecked: &[u32], by_instance: bool) {
    block_on(async {
        let started = Bench::start(builder, &rootfs()).await;
        let (bench, target, mut environment) = started.expect("the machine starts");
        // Agents that know VMBus instances alone find it by its id.
        if let Some(nic) = environment.nic.as_mut().filter(|_| by_instance) {
            nic.mac.clear();
        }
        environment.shell = ["/bin/busybox", "sh", "-c"].map(str::to_owned).to_vec();
        let mut session = Session::new(target, environment, profile);
        session.answer = Duration::from_secs(30);
        let plan = Plan { each: Duration::from_secs(100), ..Plan::default() };
        let report = run::guest(&mut session, STATEMENTS, &plan, |_| {}).await;
        bench.end().await;
        println!("{}", report.table());
        assert_eq!(report.deviations(), [0; 0], "statements that do not hold");
        let skipped = report.outcomes.iter().filter(|o| o.verdict == Verdict::Skipped);
        assert_eq!(skipped.map(|outcome| outcome.id).collect::<Vec<_>>(), unchecked);
        assert_eq!(report.outcomes.len(), 111);
    });
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

    #[test]
    fn an_agent_that_looks_for_vmbus_names_conforms() {
        let builder = machine_with_vmbus_names("vmbus").user_network([]);
        check(builder, Profile::Hardened, &[], true);
    }
}
