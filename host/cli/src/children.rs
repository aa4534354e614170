//! The ends of this process's children.

use std::time::Duration;

use rustix::process::{WaitOptions, wait};
use tracing::warn;

use crate::error::Error;
use crate::signals::Signals;

/// How long children may take to end once nobody wants them any more.
const LIMIT: Duration = Duration::from_secs(5);

/// Boots a machine, unless a signal asks for the end first. Then what has been started so far is
/// told to end by being dropped, and this returns when it has.
pub(crate) async fn boot<T>(
    signals: &mut Signals,
    start: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let outcome = signals.interrupt(start).await;
    if matches!(outcome, Err(Error::Interrupted(_))) {
        let (done, all_ended) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            // Each that ends, until there is none.
            while wait(WaitOptions::empty()).is_ok() {}
            drop(done);
        });
        if tokio::time::timeout(LIMIT, all_ended).await.is_err() {
            warn!("left while the utility VM was ending");
        }
    }
    outcome
}
