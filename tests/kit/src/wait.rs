//! Patience: waiting for a condition instead of sleeping.

use std::time::Duration;

/// How long the kit waits for what ought to happen at once. Long enough for a loaded machine; a test that
/// waits this long fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Asks `probe` until it has an answer, and panics, naming `what`, when there is none within `timeout`.
///
/// ```
/// # use std::time::Duration;
/// # use tokenkeeper_testkit::wait::eventually;
/// # async fn worker_state() -> &'static str { "ready" }
/// # async fn example() {
/// let state = eventually("the worker to be ready", Duration::from_secs(5), async || {
///     let state = worker_state().await;
///     (state == "ready").then_some(state)
/// })
/// .await;
/// # }
/// ```
pub async fn eventually<T>(what: &str, timeout: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(answer) = probe().await {
                return answer;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    within(what, timeout, polling).await
}

/// Awaits `work`, and panics, naming `what`, when it is not done within `timeout`.
pub async fn within<T>(what: &str, timeout: Duration, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(timeout, work).await;
    done.unwrap_or_else(|_| panic!("waited {timeout:?} in vain for {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_becomes_true_is_returned() {
        let mut asked = 0;
        let answer = eventually("the third question", PATIENCE, async || {
            asked += 1;
            (asked == 3).then_some("yes")
        })
        .await;
        assert_eq!((answer, asked), ("yes", 3));
    }

    #[tokio::test]
    #[should_panic(expected = "in vain for the moon to be cheese")]
    async fn what_never_becomes_true_fails_and_says_what_was_waited_for() {
        eventually("the moon to be cheese", Duration::from_millis(50), async || None::<()>).await;
    }
}
