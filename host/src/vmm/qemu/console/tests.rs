use std::io::Write;

use super::*;
use crate::vmm::FollowConsole;

fn phase_after(pieces: &[&str]) -> Phase {
    let mut tracker = PhaseTracker::default();
    pieces.iter().for_each(|piece| tracker.push(piece.as_bytes()));
    tracker.phase
}

#[test]
fn phases_follow_the_console() {
    assert_eq!(phase_after(&[]), Phase::Started);
    assert_eq!(phase_after(&["["]), Phase::Kernel);
    assert_eq!(phase_after(&["linkspan: pha", "se=init\r", "\n"]), Phase::Init);
    assert_eq!(phase_after(&["[ 1.2] x linkspan: phase=agent\r\n"]), Phase::Agent);
    assert_eq!(phase_after(&["linkspan: phase=agent\nlinkspan: phase=init\n"]), Phase::Agent);
    assert_eq!(phase_after(&["linkspan: phase=other\n", "linkspan: phase=init"]), Phase::Kernel);
}

#[test]
fn a_line_of_any_length_takes_bounded_memory() {
    let mut tracker = PhaseTracker::default();
    tracker.push(&vec![b'x'; 10 * MARK_LIMIT]);
    assert_eq!(tracker.line.len(), MARK_LIMIT);
    tracker.push(b"\nlinkspan: phase=init\n");
    assert_eq!(tracker.phase, Phase::Init);
}

#[test]
fn the_ring_keeps_the_newest_bytes() {
    let mut state = State::default();
    for number in 0..100_000 {
        state.push(format!("{number}\n").as_bytes());
    }
    assert_eq!(state.ring.len(), KEPT);
    let (start, bytes) = state.from(0);
    assert_eq!(start, state.dropped);
    assert!(bytes.ends_with(b"\n99998\n99999\n"));
    let (start, bytes) = state.from(state.dropped + KEPT as u64 - 6);
    assert_eq!((start, bytes.as_slice()), (state.dropped + KEPT as u64 - 6, &b"99999\n"[..]));
    assert!(state.from(u64::MAX).1.is_empty());
}

#[test]
fn nothing_in_shown_text_is_obeyed_by_a_terminal() {
    assert_eq!(harmless(b"\x1b[31mred\x07\x7f\r\n"), "^[[31mred^G^?\n");
    assert_eq!(harmless("a\u{9b}2Jb\u{202e}c".as_bytes()), "a\u{fffd}2Jb\u{fffd}c");
    assert_eq!(harmless(b"good\revil\r\r\n"), "good\nevil\n");
    assert_eq!(harmless(b"\xff\tx"), "\u{fffd}\tx");
}

#[test]
fn the_tail_is_the_last_lines() {
    assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
    assert_eq!(last_lines("a\nb\nc", 3), "a\nb\nc");
    assert_eq!(last_lines("", 3), "");
}

#[test]
fn characters_are_not_cut() {
    let text = "ä€😀x".as_bytes();
    for end in 0..=text.len() {
        let shown = whole_characters(&text[..end]);
        assert!(std::str::from_utf8(&text[..shown]).is_ok(), "{end}");
        assert!(end - shown < 4);
    }
    assert_eq!(whole_characters(b"\xff\xff"), 2);
    assert_eq!(whole_characters(b"\x80\x80\x80\x80"), 4);
    assert_eq!(whole_characters(b"a\r"), 1);
}

#[tokio::test]
async fn a_follower_reads_all_up_to_the_end() {
    let (ours, mut theirs) = StdUnixStream::pair().unwrap();
    let console = Console::new(ours).unwrap();
    let mut follower = console.follow();
    theirs.write_all("one\r\nzw\u{f6}".as_bytes()).unwrap();
    assert!(console.says("one").await);
    let mut text = follower.next().await.unwrap();
    theirs.write_all(b"lf\r").unwrap();
    drop(theirs);
    while let Some(more) = follower.next().await {
        text.push_str(&more);
    }
    assert_eq!(text, "one\nzw\u{f6}lf");
    console.ended().await;
    assert_eq!(console.tail(), "one\nzw\u{f6}lf");
}

#[tokio::test]
async fn a_console_that_ends_does_not_say_more() {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let console = Console::new(ours).unwrap();
    drop(theirs);
    assert!(!console.says("x").await);
    assert_eq!(console.phase(), Phase::Started);
}
