//! Retries: exponential waits with jitter, within a deadline, and cut short by a hard stop.
//!
//! The only module that uses the `backoff` crate, and only for its intervals. The crate's own retry loop measures time
//! with the machine's clock, sleeps past its limit if a `Retry-After` says so, and cannot be cancelled.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::pin;
use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Waits that grow with each try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The first wait, before jitter. Zero means no waits at all.
    pub initial_interval: Duration,
    /// The longest wait, jitter included.
    pub max_interval: Duration,
    /// Each wait is this many times as long as the one before. Less than 1 counts as 1.
    pub multiplier: f64,
    /// From 0 to 1: 0.5 means a random wait between half the interval and one and a half. It keeps workers that failed
    /// together from retrying together.
    pub jitter: f64,
}

/// The endless waits between the tries of one operation.
#[derive(Debug)]
pub struct Delays {
    backoff: Backoff,
    /// Created at the first wait: nearly every operation succeeds at once.
    intervals: Option<Box<ExponentialBackoff>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    pub backoff: Backoff,
    /// The longest `Retry-After` to wait for. After a longer one, the operation is given up.
    pub retry_after_cap: Duration,
}

/// Whether another try makes sense after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Permanent,
    Transient,
    /// Worth another try, but not before this time has passed.
    After(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryEnd<E> {
    /// The error was permanent, or the next try would have been too late.
    GaveUp(E),
    /// Cancelled between two tries, with the last error, or `None` before the first try.
    Cancelled(Option<E>),
}

impl Backoff {
    /// Waits that double, with a jitter of one half.
    pub const fn doubling(initial_interval: Duration, max_interval: Duration) -> Self {
        Self { initial_interval, max_interval, multiplier: 2.0, jitter: 0.5 }
    }

    pub const fn delays(self) -> Delays {
        Delays { backoff: self, intervals: None }
    }

    /// The crate adds jitter to its longest interval, so the interval leaves room for it. Cutting the waits at the limit
    /// instead would make half of them equal.
    fn intervals(&self) -> ExponentialBackoff {
        let jitter = self.jitter.clamp(0.0, 1.0);
        let longest = self.max_interval.div_f64(1.0 + jitter);
        ExponentialBackoffBuilder::new()
            .with_initial_interval(self.initial_interval.min(longest))
            .with_max_interval(longest)
            .with_multiplier(self.multiplier.max(1.0))
            .with_randomization_factor(jitter)
            // The crate measures it with the machine's clock, which tests cannot control. The deadline is ours.
            .with_max_elapsed_time(None)
            .build()
    }
}

impl Delays {
    pub fn next_delay(&mut self) -> Duration {
        let intervals = self.intervals.get_or_insert_with(|| Box::new(self.backoff.intervals()));
        intervals.next_backoff().unwrap_or(self.backoff.max_interval).min(self.backoff.max_interval)
    }

    pub async fn wait(&mut self) {
        sleep(self.next_delay()).await;
    }

    /// The same, unless the wait would end at or after `deadline`. Then it returns false at once.
    pub async fn wait_before(&mut self, deadline: Instant) -> bool {
        let delay = self.next_delay();
        let is_in_time = delay < deadline.saturating_duration_since(Instant::now());
        if is_in_time {
            sleep(delay).await;
        }
        is_in_time
    }

    /// Starts with the first wait again, after a successful try.
    pub fn reset(&mut self) {
        self.intervals = None;
    }
}

/// Calls `operation` until it returns a result, with waits between the calls. Each call gets the length of the wait that
/// follows.
pub async fn retry_forever<T, F>(backoff: Backoff, operation: impl FnMut(Duration) -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let Ok(result) = retry_until(pending::<Infallible>(), backoff, operation).await;
    result
}

/// The same, but gives up once `stop` is ready. That ends a wait early, but no call that is under way.
///
/// # Errors
/// What `stop` gave.
pub async fn retry_until<T, S, F>(
    stop: impl Future<Output = S>,
    backoff: Backoff,
    mut operation: impl FnMut(Duration) -> F,
) -> Result<T, S>
where
    F: Future<Output = Option<T>>,
{
    let (mut delays, mut stop) = (backoff.delays(), pin!(stop));
    loop {
        let delay = delays.next_delay();
        if let Some(result) = operation(delay).await {
            return Ok(result);
        }
        if let Ok(stopped) = timeout(delay, stop.as_mut()).await {
            return Err(stopped);
        }
    }
}

/// Calls `operation` until it gives a result. After each error it asks `notify` for the backoff, and waits for its next delay.
/// None: `cancel` fired during a wait or before the first call. A call is never cut short.
///
/// A call that lasted longer than the longest wait had gone well for a while, so the waits begin anew after it.
pub async fn retry_until_cancelled<T, E, F>(
    cancel: &CancellationToken,
    mut notify: impl FnMut(&E) -> Backoff,
    mut operation: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = Result<T, E>>,
{
    let mut delays: Option<Delays> = None;
    while !cancel.is_cancelled() {
        let begin = Instant::now();
        let error = match operation().await {
            Ok(result) => return Some(result),
            Err(error) => error,
        };
        let (lasted, backoff) = (begin.elapsed(), notify(&error));
        let as_before =
            delays.take().filter(|before| before.backoff == backoff && lasted <= backoff.max_interval);
        let delay = delays.insert(as_before.unwrap_or(backoff.delays())).next_delay();
        cancel.run_until_cancelled(sleep(delay)).await;
    }
    None
}

/// Calls `operation` until it succeeds, fails for good, or another try would start at or after `deadline`.
///
/// `cancel` ends only the waits: a running try is awaited, because the other side may act on it. For the same reason the
/// deadline does not cut a try; give the operation a timeout of its own. Before each wait `notify` gets the error and
/// the wait.
///
/// # Errors
/// [`RetryEnd`] with the last error, so that its `Retry-After` can be passed on.
pub async fn retry<T, E, F>(
    policy: &RetryPolicy,
    deadline: Instant,
    cancel: &CancellationToken,
    classify: impl Fn(&E) -> Verdict,
    mut notify: impl FnMut(&E, Duration),
    mut operation: impl FnMut() -> F,
) -> Result<T, RetryEnd<E>>
where
    F: Future<Output = Result<T, E>>,
{
    if cancel.is_cancelled() {
        return Err(RetryEnd::Cancelled(None));
    }
    let mut delays = policy.backoff.delays();
    loop {
        let error = match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(wait) = next_wait(policy, deadline, classify(&error), &mut delays) else {
            return Err(RetryEnd::GaveUp(error));
        };
        notify(&error, wait);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(RetryEnd::Cancelled(Some(error))),
            () = sleep(wait) => {}
        }
    }
}

/// `None`: another try is pointless or would be too late.
fn next_wait(
    policy: &RetryPolicy,
    deadline: Instant,
    verdict: Verdict,
    delays: &mut Delays,
) -> Option<Duration> {
    let asked = match verdict {
        Verdict::Permanent => return None,
        Verdict::Transient => Duration::ZERO,
        Verdict::After(asked) if asked > policy.retry_after_cap => return None,
        Verdict::After(asked) => asked,
    };
    let wait = delays.next_delay().max(asked);
    (wait < deadline.saturating_duration_since(Instant::now())).then_some(wait)
}

#[cfg(test)]
mod tests;
