//! A guest that lies: the host says what is wrong with it, and nothing hangs.

use std::time::{Duration, Instant};

use linkspan_host::{Backend, Builder, Error, UtilityVm};
use linkspan_tests::{Remains, block_on, pid_in};
use tokio::time::timeout;

fn false_guest(lie: &str) -> Builder {
    UtilityVm::builder(lie)
        .backend(Backend::Loopback)
        .agent(env!("CARGO_BIN_EXE_false-agent"))
        .log_level(lie)
        .boot_timeout(Duration::from_secs(3))
}

/// Lies in its first answer; what the error has to say.
fn lies_at_once(lie: &str, said: &[&str]) {
    block_on(async {
        let begun = Instant::now();
        let error = false_guest(lie).start().await.expect_err("such a guest cannot come up");
        assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
        let text = error.to_string();
        println!("{text}");
        for said in said {
            assert!(text.contains(said), "{said:?} is not in: {text}");
        }
    });
}

/// Negotiates as it should and lies in its second answer.
fn lies_later(lie: &str, said: &[&str]) {
    block_on(async {
        let uvm = false_guest(lie).start().await.expect("it negotiates as it should");
        let remains = Remains::of(pid_in(&uvm.vmm().describe()));
        let (one, two) = tokio::join!(
            timeout(Duration::from_secs(40), uvm.dump_stacks()),
            timeout(Duration::from_secs(40), uvm.dump_stacks()),
        );
        for outcome in [one, two] {
            let error = outcome.expect("a call does not hang on a liar").expect_err("it lies");
            let text = error.to_string();
            println!("{text}");
            assert!(matches!(error, Error::Closed { .. } | Error::Answer { .. }), "{error:?}");
            for said in said {
                assert!(text.contains(said), "{said:?} is not in: {text}");
            }
        }
        timeout(Duration::from_secs(5), uvm.closed()).await.expect("the bridge is closed");
        uvm.terminate().await;
        remains.gone_within(Duration::from_secs(5)).await;
    });
}

macro_rules! lies {
    ($($how:ident $name:ident: $lie:literal, $said:expr;)*) => {
        $(#[test]
        fn $name() {
            $how($lie, &$said);
        })*
    };
}

lies! {
    lies_at_once an_oversized_first_frame_is_told: "oversized-first", ["2147483647", "65536"];
    lies_at_once a_first_frame_below_the_header_is_told: "short-first", ["size of 3 bytes"];
    lies_at_once noise_as_first_frame_is_told: "garbage-first", ["size"];
    lies_at_once a_first_answer_that_is_no_json_is_told: "not-json-first", ["negotiate"];
    lies_at_once a_wrong_version_is_told: "version-5", ["version 5"];
    lies_at_once a_guest_that_closes_is_told: "closes", ["negotiate"];
    lies_at_once a_guest_that_never_answers_is_told: "never-answers", ["3 s", "false agent: never-answers"];
    lies_at_once a_guest_that_never_connects_is_told: "silent", ["3 s", "false agent: silent"];
    lies_at_once a_guest_that_ends_is_told: "ends", ["ended", "false agent: ends"];
    lies_later an_oversized_frame_is_told: "oversized", ["65537", "65536"];
    lies_later a_frame_of_four_gibibytes_is_told: "huge", ["4294967295"];
    lies_later a_frame_below_the_header_is_told: "short", ["size of 15 bytes"];
    lies_later noise_is_told: "garbage", ["size"];
    lies_later an_answer_that_is_no_json_is_told: "not-json", [];
    lies_later an_answer_to_nothing_is_told: "unknown-id", ["id"];
    lies_later an_unknown_notification_is_told: "unknown-notification", ["0x30100201"];
    lies_later a_request_from_the_guest_is_told: "request", ["DumpStacks"];
    lies_later an_answer_that_is_cut_off_is_told: "cut", ["clos"];
}
