//! Ctrl-C and SIGTERM while a command works: the first ends it after the step in hand, the second at once.

use anyhow::{Context, anyhow};
use tokenkeeper::app::lifecycle::StopSignals;
use tokio_util::sync::CancellationToken;

use super::ending::Interrupted;
use super::output::note;
use super::{Ending, Failure};

/// Said at the first signal.
pub(super) const FINISHING: &str = "Interrupted: finishing what is in hand. A second signal stops at once.";

/// Runs a command that looks at `stop` between its steps, and then fails by [`Interrupted`] with how far it came and how to go on.
/// `left` says what a second signal leaves behind.
pub(super) async fn stoppable(
    stop: &CancellationToken,
    left: &str,
    command: impl Future<Output = Result<Ending, Failure>>,
) -> Result<Ending, Failure> {
    let mut signals = StopSignals::listen().context("cannot listen for signals")?;
    let interrupted_twice = async {
        signals.next().await;
        note(FINISHING);
        stop.cancel();
        signals.next().await;
    };
    tokio::select! {
        ended = command => ended,
        () = interrupted_twice => {
            Err(anyhow!(Interrupted).context(format!("interrupted twice, so stopped at once; {left}")).into())
        }
    }
}
