//! What a process has written of late, for any number of readers.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// How many bytes are kept; the oldest go first.
pub(super) const KEPT: usize = 8 << 20;

/// As long as one piece gets.
const PIECE: usize = 64 << 10;

/// Where something was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Stdout,
    Stderr,
}

/// A bounded log with as many writers as it is opened for.
#[derive(Debug)]
pub(super) struct Log {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    kept: usize,
}

#[derive(Debug)]
struct State {
    pieces: VecDeque<(Origin, Vec<u8>)>,
    /// How many pieces have gone.
    gone: u64,
    bytes: usize,
    writers: usize,
}

/// How far a reader is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    piece: u64,
    offset: usize,
}

impl Log {
    /// An empty log of at most `kept` bytes.
    pub(super) fn new(writers: usize, kept: usize) -> Self {
        let state = State { pieces: VecDeque::new(), gone: 0, bytes: 0, writers };
        Self { state: Mutex::new(state), changed: watch::Sender::new(()), kept }
    }

    pub(super) fn append(&self, origin: Origin, mut bytes: &[u8]) {
        let mut state = self.lock();
        while !bytes.is_empty() {
            if state.pieces.back().is_none_or(|(of, piece)| *of != origin || piece.len() >= PIECE) {
                state.pieces.push_back((origin, Vec::new()));
            }
            let Some((_, piece)) = state.pieces.back_mut() else { return };
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - piece.len()));
            piece.extend_from_slice(now);
            state.bytes += now.len();
            bytes = later;
        }
        while state.bytes > self.kept && state.pieces.len() > 1 {
            if let Some((_, piece)) = state.pieces.pop_front() {
                state.bytes -= piece.len();
                state.gone += 1;
            }
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// One writer has come to its end.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.writers = state.writers.saturating_sub(1);
        drop(state);
        self.changed.send_replace(());
    }

    /// What comes after `position`, which moves on; `None` at the end. The end is where nothing
    /// more is there, or with `follow`, where nothing more will come.
    pub(super) async fn next(
        &self,
        position: &mut Position,
        follow: bool,
    ) -> Option<(Origin, Vec<u8>)> {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let state = self.lock();
                if position.piece < state.gone {
                    *position = Position { piece: state.gone, offset: 0 };
                }
                let at = usize::try_from(position.piece - state.gone).unwrap_or(usize::MAX);
                if let Some((origin, piece)) = state.pieces.get(at) {
                    let part = piece[position.offset..].to_vec();
                    position.offset = piece.len();
                    if at + 1 < state.pieces.len() {
                        *position = Position { piece: position.piece + 1, offset: 0 };
                    }
                    if !part.is_empty() {
                        return Some((*origin, part));
                    }
                    if at + 1 < state.pieces.len() {
                        continue;
                    }
                }
                if !follow || state.writers == 0 {
                    return None;
                }
            }
            changed.changed().await.ok()?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(log: &Log) -> Vec<(Origin, Vec<u8>)> {
        let (mut position, mut read) = (Position::default(), Vec::new());
        while let Some(part) = log.next(&mut position, false).await {
            read.push(part);
        }
        read
    }

    #[tokio::test]
    async fn what_was_written_is_read_in_its_order_with_its_origin() {
        let log = Log::new(2, KEPT);
        log.append(Origin::Stdout, b"a");
        log.append(Origin::Stdout, b"b");
        log.append(Origin::Stderr, b"c");
        let expected = vec![(Origin::Stdout, b"ab".to_vec()), (Origin::Stderr, b"c".to_vec())];
        assert_eq!(all(&log).await, expected);
    }

    #[tokio::test]
    async fn the_oldest_goes_when_there_is_too_much() {
        let log = Log::new(1, 2 * PIECE);
        for byte in 0..4 {
            log.append(Origin::Stdout, &vec![byte; PIECE]);
        }
        let bytes: Vec<u8> = all(&log).await.iter().map(|(_, piece)| piece[0]).collect();
        assert_eq!(bytes, [2, 3]);
    }

    #[tokio::test]
    async fn a_follower_gets_what_comes_later_and_ends_with_the_last_writer() {
        let log = std::sync::Arc::new(Log::new(1, KEPT));
        log.append(Origin::Stdout, b"early ");
        let reading = std::sync::Arc::clone(&log);
        let (began, beginning) = tokio::sync::oneshot::channel();
        let reader = tokio::spawn(async move {
            let mut position = Position::default();
            let mut text = reading.next(&mut position, true).await.unwrap().1;
            began.send(()).unwrap();
            while let Some((_, part)) = reading.next(&mut position, true).await {
                text.extend(part);
            }
            text
        });
        beginning.await.unwrap();
        log.append(Origin::Stdout, b"late");
        log.close();
        assert_eq!(reader.await.unwrap(), b"early late");
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_goes_on_with_the_oldest_that_is_left() {
        let log = Log::new(1, PIECE);
        let mut position = Position::default();
        log.append(Origin::Stdout, &vec![0; PIECE]);
        log.next(&mut position, false).await.unwrap();
        for byte in 1..4 {
            log.append(Origin::Stdout, &vec![byte; PIECE]);
        }
        assert_eq!(log.next(&mut position, false).await.unwrap().1[0], 3);
        assert_eq!(log.next(&mut position, false).await, None);
    }
}
