use super::*;
use crate::packet::{HOST_CID, STREAM};

const BUFFER: u32 = 1000;
const BOTH: u32 = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;

fn packet(operation: Operation) -> Header {
    Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: 1,
        dst_port: 2,
        len: 0,
        kind: STREAM,
        operation,
        flags: 0,
        buf_alloc: 4096,
        fwd_cnt: 0,
    }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..packet(Operation::SHUTDOWN) }
}

fn data(len: u32) -> Header {
    Header { len, ..packet(Operation::DATA) }
}

fn open() -> Connection {
    let mut connection = Connection::accepted(&packet(Operation::REQUEST), BUFFER);
    assert_eq!(control(&mut connection), Some(Operation::RESPONSE));
    connection
}

fn control(connection: &mut Connection) -> Option<Operation> {
    assert_eq!(connection.owes_control(), {
        let mut copy = connection.clone();
        copy.poll_control().is_some()
    });
    connection.poll_control().map(|control| control.operation)
}

fn told(connection: &mut Connection) -> Option<u32> {
    connection.poll_control().map(|control| {
        assert_eq!(control.operation, Operation::SHUTDOWN);
        control.flags
    })
}

#[test]
fn a_guest_that_sends_no_more_closes_the_write_side_once_everything_is_delivered() {
    let mut connection = open();
    assert_eq!(connection.handle_packet(&data(100)), Reaction::Deliver);
    connection.handle_packet(&shutdown(SHUTDOWN_SEND));
    assert_eq!(connection.poll_host(), None);
    connection.delivered(60);
    assert_eq!(connection.poll_host(), None);
    connection.delivered(40);
    assert_eq!(connection.poll_host(), Some(HostStep::ShutdownWrite));
    assert_eq!(connection.poll_host(), None);
    assert_eq!(connection.window(), 4096, "the other direction stays open");
    assert_eq!(connection.poll_control(), None);
}

#[test]
fn a_host_that_sends_no_more_tells_the_guest_only_that() {
    let mut connection = open();
    connection.host_sends_no_more();
    assert_eq!(told(&mut connection), Some(SHUTDOWN_SEND));
    assert_eq!(told(&mut connection), None);
    assert_eq!(connection.window(), 0);
    assert_eq!(connection.handle_packet(&data(10)), Reaction::Deliver);
    assert_eq!(connection.poll_host(), None);
}

#[test]
fn a_guest_that_receives_no_more_stops_reading_and_can_still_send() {
    let mut connection = open();
    connection.handle_packet(&shutdown(SHUTDOWN_RECEIVE));
    assert_eq!(connection.poll_host(), Some(HostStep::ShutdownRead));
    assert_eq!(connection.window(), 0);
    assert_eq!(connection.handle_packet(&data(10)), Reaction::Deliver);
}

#[test]
fn a_guest_that_closes_is_answered_when_everything_is_delivered() {
    for steps in [&[BOTH][..], &[SHUTDOWN_SEND, SHUTDOWN_RECEIVE], &[SHUTDOWN_RECEIVE, BOTH]] {
        let mut connection = open();
        connection.handle_packet(&data(100));
        for &flags in steps {
            connection.handle_packet(&shutdown(flags));
        }
        assert_ne!(connection.poll_host(), Some(HostStep::Finish));
        connection.delivered(100);
        assert_eq!(connection.poll_host(), Some(HostStep::Finish));
        assert!(!connection.guest_reset());
    }
}

#[test]
fn a_reset_after_an_orderly_close_still_delivers_and_is_not_answered() {
    let mut connection = open();
    connection.handle_packet(&data(100));
    connection.handle_packet(&shutdown(BOTH));
    assert_eq!(connection.handle_packet(&packet(Operation::RESET)), Reaction::Reset);
    assert_eq!(connection.poll_host(), None);
    connection.delivered(100);
    assert_eq!(connection.poll_host(), Some(HostStep::Finish));
    assert!(connection.guest_reset());
    assert_eq!(connection.poll_control(), None);
}

#[test]
fn a_reset_out_of_nothing_ends_the_connection_at_once() {
    let mut connection = open();
    connection.handle_packet(&data(100));
    assert_eq!(connection.handle_packet(&packet(Operation::RESET)), Reaction::Abort);
}

#[test]
fn a_host_that_is_gone_makes_the_guests_writes_fail_and_frees_what_was_queued() {
    let mut connection = open();
    connection.handle_packet(&data(800));
    connection.host_receives_no_more();
    assert_eq!(connection.undelivered(), 0);
    assert_eq!(told(&mut connection), Some(SHUTDOWN_RECEIVE));
    assert_eq!(connection.handle_packet(&data(900)), Reaction::Continue, "under way, dropped");
    assert_eq!(connection.window(), 4096, "what the host wrote before is still read");
    connection.host_sends_no_more();
    assert_eq!(told(&mut connection), Some(BOTH));
}

#[test]
fn both_half_closes_in_either_order_leave_nothing_but_the_answer_to_the_close() {
    for host_first in [true, false] {
        let mut connection = open();
        if host_first {
            connection.host_sends_no_more();
            assert_eq!(told(&mut connection), Some(SHUTDOWN_SEND));
        }
        connection.handle_packet(&shutdown(SHUTDOWN_SEND));
        assert_eq!(connection.poll_host(), Some(HostStep::ShutdownWrite));
        if !host_first {
            connection.host_sends_no_more();
            assert_eq!(told(&mut connection), Some(SHUTDOWN_SEND));
        }
        assert_eq!(connection.poll_host(), None);
        connection.host_receives_no_more(); // the kernel reports a hang-up when both sides are shut
        assert_eq!(told(&mut connection), Some(BOTH));
        connection.handle_packet(&shutdown(BOTH));
        assert_eq!(connection.poll_host(), Some(HostStep::Finish));
    }
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut connection = open();
    assert_eq!(connection.window(), 4096);
    connection.host_sent(4000);
    assert_eq!(connection.window(), 96);
    connection.host_sent(96);
    assert_eq!(connection.window(), 0);
    connection.starved();
    assert_eq!(control(&mut connection), Some(Operation::CREDIT_REQUEST));
    connection.starved();
    assert_eq!(control(&mut connection), None, "one question is enough");
    connection.handle_packet(&Header { fwd_cnt: 4096, ..packet(Operation::CREDIT_UPDATE) });
    assert_eq!(connection.window(), 4096);
}

#[test]
fn a_guest_that_claims_more_than_it_got_or_shrinks_its_buffer_gets_no_credit() {
    let mut connection = open();
    connection.host_sent(100);
    connection.handle_packet(&Header { fwd_cnt: 5000, ..packet(Operation::CREDIT_UPDATE) });
    assert_eq!(connection.window(), 0);
    connection.handle_packet(&Header { buf_alloc: 50, ..packet(Operation::CREDIT_UPDATE) });
    assert_eq!(connection.window(), 0);
}

#[test]
fn counters_wrap() {
    let mut connection = open();
    for _ in 0..10_000_000 / 100 {
        assert_eq!(connection.handle_packet(&data(900)), Reaction::Deliver);
        connection.delivered(900);
        connection.credit_fields();
        connection.host_sent(65536);
        let fwd_cnt = connection.sent;
        connection.handle_packet(&Header { fwd_cnt, ..packet(Operation::CREDIT_UPDATE) });
        assert_eq!(connection.window(), 4096);
    }
    assert!(100_000u64 * 65536 > u64::from(u32::MAX));
}

#[test]
fn the_guest_learns_of_room_when_half_of_the_buffer_came_free_and_not_before() {
    let mut connection = open();
    connection.credit_fields();
    connection.handle_packet(&data(1000));
    connection.delivered(499);
    assert_eq!(control(&mut connection), None);
    connection.delivered(1);
    assert_eq!(control(&mut connection), Some(Operation::CREDIT_UPDATE));
    assert_eq!(connection.credit_fields(), (BUFFER, 500));
    assert_eq!(control(&mut connection), None);
    connection.handle_packet(&packet(Operation::CREDIT_REQUEST));
    assert_eq!(control(&mut connection), Some(Operation::CREDIT_UPDATE));
}

#[test]
fn a_guest_with_a_smaller_buffer_than_ours_learns_of_room_by_its_own_measure() {
    let mut connection = open();
    let small = Header { buf_alloc: 100, ..data(100) };
    connection.handle_packet(&small);
    connection.delivered(100);
    assert_eq!(control(&mut connection), Some(Operation::CREDIT_UPDATE));
    connection.credit_fields();
    connection.handle_packet(&Header { buf_alloc: 0, ..data(0) });
    assert_eq!(control(&mut connection), None, "nothing came free");
}

#[test]
fn a_guest_that_sends_beyond_its_credit_or_its_own_end_breaks_a_rule() {
    let mut connection = open();
    assert_eq!(connection.handle_packet(&data(1000)), Reaction::Deliver);
    assert_eq!(connection.handle_packet(&data(1)), Reaction::Violation);
    assert_eq!(open().handle_packet(&data(u32::MAX)), Reaction::Violation);
    let mut connection = open();
    connection.handle_packet(&shutdown(SHUTDOWN_SEND));
    assert_eq!(connection.handle_packet(&data(1)), Reaction::Violation);
    assert_eq!(open().handle_packet(&packet(Operation::REQUEST)), Reaction::Violation);
    assert_eq!(open().handle_packet(&packet(Operation::RESPONSE)), Reaction::Violation);
    assert_eq!(open().handle_packet(&packet(Operation(77))), Reaction::Violation);
}

#[test]
fn a_connection_the_host_asks_for_says_nothing_else_until_it_is_answered() {
    let mut connection = Connection::requested(BUFFER);
    assert_eq!(control(&mut connection), Some(Operation::REQUEST));
    connection.host_sends_no_more();
    assert_eq!(control(&mut connection), None);
    assert_eq!(connection.window(), 0);
    assert_eq!(connection.handle_packet(&packet(Operation::RESPONSE)), Reaction::Established);
    assert_eq!(told(&mut connection), Some(SHUTDOWN_SEND));
    let mut refused = Connection::requested(BUFFER);
    assert_eq!(refused.handle_packet(&packet(Operation::RESET)), Reaction::Abort);
    let mut early = Connection::requested(BUFFER);
    assert_eq!(early.handle_packet(&data(1)), Reaction::Violation);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

    /// Whatever a guest sends and a host does, in any order: what is held stays within the buffer, the write
    /// side closes after delivery, and nothing panics.
    #[test]
    fn no_order_of_events_breaks_an_invariant(
        events in proptest::collection::vec((0u16..12, proptest::prelude::any::<u32>()), 0..200),
    ) {
        let mut connection = open();
        for (event, value) in events {
            match event {
                0..=7 => {
                    let header = Header { len: value % 1200, flags: value, fwd_cnt: value, ..packet(Operation(event)) };
                    let reaction = connection.handle_packet(&header);
                    if matches!(reaction, Reaction::Violation | Reaction::Abort) {
                        return Ok(());
                    }
                }
                8 => connection.delivered(value % 700),
                9 => connection.host_sends_no_more(),
                10 => connection.host_receives_no_more(),
                _ => connection.host_sent(connection.window().min(value)),
            }
            connection.starved();
            while let Some(step) = connection.poll_host() {
                if step == HostStep::ShutdownRead {
                    proptest::prop_assert_eq!(connection.window(), 0);
                } else {
                    proptest::prop_assert_eq!(connection.undelivered(), 0);
                }
                if step == HostStep::Finish {
                    return Ok(());
                }
            }
            proptest::prop_assert!(connection.undelivered() <= BUFFER);
            while connection.poll_control().is_some() {
                connection.credit_fields();
            }
            proptest::prop_assert!(!connection.owes_control());
        }
    }
}
