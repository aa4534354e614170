//! Every way to reach a peer: the verdicts are the same over all of them, but for what a way does
//! not allow.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use linkspan_conform::driven;
use linkspan_conform::environment::{Environment, Reach};
use linkspan_conform::guest;
use linkspan_conform::host::{self, HostReach, HostSession, SOCKETS};
use linkspan_conform::run::{self, Plan, Report};
use linkspan_conform::session::Session;
use linkspan_conform::statement::Profile;
use linkspan_conform::target::Listen;
use linkspan_conform::verdict::Verdict;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const GUEST: &str = env!("CARGO_BIN_EXE_simulated-guest");
const HOST: &str = env!("CARGO_BIN_EXE_driven-host");

/// What a simulated guest cannot be asked, however it is reached: it has no machine.
const NO_MACHINE: [u32; 10] = [49, 53, 54, 55, 63, 100, 102, 104, 105, 111];

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// An address of the loopback network on which every port is free: nobody else has it.
fn address(number: u8) -> String {
    let pid = std::process::id();
    format!("127.{}.{}.{number}", 64 + pid % 128, pid / 128 % 256)
}

fn simulated(arguments: &[&str]) -> Child {
    let mut command = Command::new(GUEST);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command.spawn().expect("start the simulated guest")
}

async fn check(reach: Reach) -> Report {
    let environment = Environment {
        layer: Some("/simulated".to_owned()),
        silence: Duration::from_millis(200),
        ..Environment::default()
    };
    let mut session = Session::new(reach.target(), environment, Profile::Hardened);
    session.answer = Duration::from_secs(8);
    session.target.open().await.expect("listen for the guest");
    run::guest(&mut session, guest::STATEMENTS, &Plan::default(), |_| {}).await
}

fn skipped(report: &Report) -> Vec<u32> {
    let skipped = report.outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Skipped);
    skipped.map(|outcome| outcome.id).filter(|id| !NO_MACHINE.contains(id)).collect()
}

#[track_caller]
fn judge(report: &Report, unchecked: &[u32]) {
    assert_eq!(report.deviations(), [0; 0], "{}", report.table());
    assert_eq!(skipped(report), unchecked, "{}", report.table());
}

/// A guest that dials `listen`.
async fn dialling(listen: &str) -> Report {
    let _guest = simulated(&["--dial", listen]);
    check(Reach::Listen(listen.parse().expect("an address"))).await
}

#[test]
fn a_guest_that_dials_unix_sockets_is_checked_in_full() {
    let directory = tempfile::tempdir().expect("a directory");
    let base = format!("hybrid:{}", directory.path().join("vsock").display());
    judge(&block_on(dialling(&base)), &[]);
}

#[test]
fn a_guest_that_dials_tcp_is_checked_in_full() {
    judge(&block_on(dialling(&format!("tcp:{}:20000", address(1)))), &[]);
}

/// What takes an agent that dials.
const DIALLING: [u32; 2] = [1, 2];

#[test]
fn a_guest_that_listens_is_dialled_over_tcp_and_over_unix_sockets() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent").display().to_string();
        let tcp = format!("tcp:{}:20000", address(2));
        for (bridge, dial, stdio) in [
            (tcp.clone(), tcp, format!("tcp:{}:30000", address(2))),
            (format!("unix:{path}"), format!("unix:{path}"), format!("hybrid:{path}.stdio")),
        ] {
            let mut guest = simulated(&["--listen", &bridge, "--stdio", &stdio]);
            let mut said = BufReader::new(guest.stdout.take().expect("is piped")).lines();
            assert_eq!(said.next_line().await.expect("read").as_deref(), Some("listening"));
            let stdio: Listen = stdio.parse().expect("an address");
            let dial = dial.parse().expect("an address");
            judge(&check(Reach::Connect(dial, Some(stdio))).await, &DIALLING);
        }
    });
}

#[test]
fn a_guest_on_pipes_is_checked_as_far_as_pipes_go() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let base = format!("hybrid:{}", directory.path().join("stdio").display());
        let command = |more: &[&str]| {
            let words = [&[GUEST, "--pipes"], more].concat();
            words.into_iter().map(OsString::from).collect::<Vec<_>>()
        };
        let stdio = Some(base.parse().expect("an address"));
        let report = check(Reach::Spawn(command(&["--stdio", &base]), stdio)).await;
        // A lost pipe is the end of its agent.
        judge(&report, &[1, 2, 14, 15, 30, 88, 89]);
        let report = check(Reach::Spawn(command(&[]), None)).await;
        assert_eq!(report.deviations(), [0; 0], "{}", report.table());
        assert!(skipped(&report).contains(&60), "{}", report.table());
        let broken = command(&["--defect", "CutsOutput", "--stdio", &base]);
        let stdio = Some(base.parse().expect("an address"));
        let report = check(Reach::Spawn(broken, stdio)).await;
        assert_eq!(report.deviations(), [60], "{}", report.table());
    });
}

/// A program that listens again and again.
async fn again_and_again(base: &str, defect: Option<&str>) {
    loop {
        let mut command = Command::new(HOST);
        command.args(defect.into_iter().flat_map(|name| ["--defect", name]));
        command.env(SOCKETS, base).kill_on_drop(true);
        let mut host = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start");
        host.wait().await.expect("wait for the host");
    }
}

async fn connected(defect: Option<&str>) -> Report {
    let directory = tempfile::tempdir().expect("a directory");
    let base = directory.path().join("vsock").display().to_string();
    let address = format!("hybrid:{base}").parse().expect("an address");
    let mut session = HostSession::new(HostReach::Connect(address), Profile::Hardened);
    let plan = Plan { each: Duration::from_secs(100), ..Plan::default() };
    tokio::select! {
        report = run::host(&mut session, host::STATEMENTS, &plan, |_| {}) => report,
        () = again_and_again(&base, defect) => unreachable!(),
    }
}

#[test]
fn a_host_that_listens_already_is_judged_but_for_how_it_ends() {
    let report = block_on(connected(None));
    assert_eq!(report.deviations(), [0; 0], "{}", report.table());
    let skipped = report.outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Skipped);
    // Exit codes, five minutes, the end of a lost host, a migration's destination, Windows.
    let skipped: Vec<u32> = skipped.map(|outcome| outcome.id).collect();
    assert_eq!(skipped, [24, 40, 43, 45, 50], "{}", report.table());
}

#[test]
fn a_broken_host_that_listens_already_is_told() {
    let defect = driven::Defect::ClosesInput;
    let report = block_on(connected(Some(&format!("{defect:?}"))));
    assert_eq!(report.deviations(), [33], "{}", report.table());
}
