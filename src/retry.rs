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

/// Calls `operation` until it gives a result. After each error this tells `notify` the error and the wait, and waits.
/// None: `cancel` fired during a wait or before the first call. A call is never cut short.
///
/// A call that lasted longer than the longest wait had gone well for a while, so the waits begin anew after it.
pub async fn retry_until_cancelled<T, E, F>(
    backoff: Backoff,
    cancel: &CancellationToken,
    mut notify: impl FnMut(&E, Duration),
    mut operation: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = Result<T, E>>,
{
    let mut delays = backoff.delays();
    while !cancel.is_cancelled() {
        let begin = Instant::now();
        let error = match operation().await {
            Ok(result) => return Some(result),
            Err(error) => error,
        };
        if begin.elapsed() > backoff.max_interval {
            delays.reset();
        }
        let delay = delays.next_delay();
        notify(&error, delay);
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
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        backoff: Backoff::doubling(Duration::from_millis(100), Duration::from_secs(2)),
        retry_after_cap: Duration::from_secs(30),
    };

    fn within(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    /// Runs an operation that always fails with `verdict`. Returns how it ended and when each try started.
    async fn failing(verdict: Verdict, deadline: Instant) -> (RetryEnd<Verdict>, Vec<Duration>) {
        let begin = Instant::now();
        let tries = RefCell::new(Vec::new());
        let end = retry(
            &POLICY,
            deadline,
            &CancellationToken::new(),
            |error| *error,
            |_, _| {},
            || async {
                tries.borrow_mut().push(begin.elapsed());
                assert!(tries.borrow().len() < 1000, "it never gives up");
                Err::<(), _>(verdict)
            },
        )
        .await;
        let Err(end) = end else { unreachable!("it always fails") };
        (end, tries.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn a_transient_error_is_tried_again_until_it_goes_well() {
        let tries = Cell::new(0);
        let told = RefCell::new(Vec::new());
        let notify = |error: &&'static str, wait: Duration| told.borrow_mut().push((*error, wait));
        let begin = Instant::now();
        let done = retry(
            &POLICY,
            within(60),
            &CancellationToken::new(),
            |_| Verdict::Transient,
            notify,
            || async {
                tries.set(tries.get() + 1);
                if tries.get() < 3 { Err("not yet") } else { Ok("done") }
            },
        )
        .await;
        assert_eq!((done, tries.get()), (Ok("done"), 3));
        let told = told.into_inner();
        assert_eq!(told.len(), 2);
        let waited: Duration = told.iter().map(|(_, wait)| *wait).sum();
        // The runtime's timer rounds up to milliseconds.
        assert!(begin.elapsed() >= waited && begin.elapsed() < waited + Duration::from_millis(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_is_not_tried_again() {
        let (end, tries) = failing(Verdict::Permanent, within(60)).await;
        assert_eq!((end, tries), (RetryEnd::GaveUp(Verdict::Permanent), vec![Duration::ZERO]));
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_up_at_once_when_the_next_try_would_come_after_the_deadline() {
        let begin = Instant::now();
        let (end, tries) = failing(Verdict::Transient, within(10)).await;
        assert_eq!(end, RetryEnd::GaveUp(Verdict::Transient));
        let last = tries.last().copied().unwrap_or_default();
        assert!(tries.len() > 5 && last < Duration::from_secs(10), "{tries:?}");
        assert_eq!(begin.elapsed(), last, "it slept after the last try");
    }

    #[tokio::test(start_paused = true)]
    async fn with_no_time_left_there_is_still_one_try() {
        let (end, tries) = failing(Verdict::Transient, within(0)).await;
        assert_eq!((end, tries.len()), (RetryEnd::GaveUp(Verdict::Transient), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_comes_back_earlier_than_asked() {
        let (_, tries) = failing(Verdict::After(Duration::from_secs(7)), within(60)).await;
        assert!(tries.len() > 5, "{tries:?}");
        assert!(tries.windows(2).all(|pair| pair[1] >= pair[0] + Duration::from_secs(7)), "{tries:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn being_asked_back_at_once_does_not_switch_the_backoff_off() {
        let (_, tries) = failing(Verdict::After(Duration::ZERO), within(60)).await;
        assert!(tries.len() < 120, "{} tries in a minute", tries.len());
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_up_at_once_when_asked_to_stay_away_for_longer_than_it_may_wait() {
        for (asked, deadline) in [(31, 60), (20, 10), (u64::MAX, 60)] {
            let asked = Verdict::After(Duration::from_secs(asked));
            let (end, tries) = failing(asked, within(deadline)).await;
            assert_eq!((end, tries), (RetryEnd::GaveUp(asked), vec![Duration::ZERO]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_cuts_a_wait_short_and_keeps_the_last_error() {
        let cancel = CancellationToken::new();
        let begin = Instant::now();
        let asked = |_: &&str| Verdict::After(Duration::from_secs(20));
        let retrying =
            retry(&POLICY, within(60), &cancel, asked, |_, _| {}, || async { Err::<(), _>("busy") });
        let stop = async {
            sleep(Duration::from_secs(1)).await;
            cancel.cancel();
        };
        let (end, ()) = tokio::join!(retrying, stop);
        assert_eq!(end, Err(RetryEnd::Cancelled(Some("busy"))));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_does_not_drop_a_try_that_is_under_way() {
        let cancel = CancellationToken::new();
        let retrying = retry(
            &POLICY,
            within(60),
            &cancel,
            |_: &&str| Verdict::Transient,
            |_, _| {},
            || async {
                cancel.cancel();
                sleep(Duration::from_secs(5)).await;
                Ok("rotated")
            },
        );
        assert_eq!(retrying.await, Ok("rotated"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_operation_is_not_tried_at_all() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let end = retry(
            &POLICY,
            within(60),
            &cancel,
            |(): &()| Verdict::Transient,
            |(), _| {},
            || async { Ok("tried") },
        );
        assert_eq!(end.await, Err(RetryEnd::Cancelled(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_without_a_deadline_is_tried_until_it_gives_a_result() {
        let begin = Instant::now();
        let waits = RefCell::new(Vec::new());
        let tries = retry_forever(POLICY.backoff, |wait| {
            waits.borrow_mut().push(wait);
            let tries = waits.borrow().len();
            async move { (tries == 100).then_some(tries) }
        });
        assert_eq!(tries.await, 100);
        let waited: Duration = waits.into_inner().iter().take(99).sum();
        assert!(begin.elapsed() >= waited && begin.elapsed() < waited + Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_ends_a_wait_and_no_call_that_is_under_way() {
        let begin = Instant::now();
        let calls = Cell::new(0);
        let call = |_| {
            calls.set(calls.get() + 1);
            async {
                sleep(Duration::from_secs(5)).await;
                None::<()>
            }
        };
        let slow = Backoff::doubling(Duration::from_secs(60), Duration::from_secs(60));
        assert_eq!(retry_until(sleep(Duration::from_secs(7)), slow, call).await, Err(()));
        assert_eq!((calls.get(), begin.elapsed()), (1, Duration::from_secs(7)), "in the first wait");
        let begin = Instant::now();
        assert_eq!(retry_until(sleep(Duration::from_secs(1)), slow, call).await, Err(()));
        assert_eq!((calls.get(), begin.elapsed()), (2, Duration::from_secs(5)), "after the call");
        let result = retry_until(pending::<()>(), slow, |_| async { Some(7) });
        assert_eq!(result.await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_would_end_too_late_does_not_begin() {
        let (begin, mut delays) = (Instant::now(), POLICY.backoff.delays());
        let deadline = within(1);
        while delays.wait_before(deadline).await {}
        assert!(begin.elapsed() > Duration::ZERO && Instant::now() < deadline, "{:?}", begin.elapsed());
        assert!(!delays.wait_before(begin).await, "it is over already");
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_begin_anew_after_a_call_that_went_well_for_a_while() {
        let waits = RefCell::new(Vec::new());
        let (calls, cancel) = (Cell::new(0), CancellationToken::new());
        let done = retry_until_cancelled(
            POLICY.backoff,
            &cancel,
            |_: &&str, wait| waits.borrow_mut().push(wait),
            || async {
                calls.set(calls.get() + 1);
                match calls.get() {
                    10 => sleep(Duration::from_secs(3)).await,
                    11 => return Ok("done"),
                    _ => {}
                }
                Err("lost")
            },
        );
        assert_eq!(done.await, Some("done"));
        let waits = waits.into_inner();
        assert!(waits[8] >= Duration::from_millis(666), "{waits:?}");
        assert!(waits[9] <= Duration::from_millis(151), "{waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_tried_until_it_is_cancelled_ends_during_a_wait_and_never_during_a_call() {
        let cancel = CancellationToken::new();
        let begin = Instant::now();
        let cancelled = retry_until_cancelled(
            POLICY.backoff,
            &cancel,
            |(): &(), _| {},
            || async {
                cancel.cancel();
                sleep(Duration::from_secs(5)).await;
                Err::<(), _>(())
            },
        );
        assert_eq!(cancelled.await, None);
        assert_eq!(begin.elapsed(), Duration::from_secs(5));
    }

    #[test]
    fn after_a_reset_the_first_wait_comes_again() {
        let mut delays = POLICY.backoff.delays();
        for _ in 0..10 {
            delays.next_delay();
        }
        delays.reset();
        assert!(delays.next_delay() <= Duration::from_millis(151));
    }

    fn first_delays(backoff: Backoff, count: usize) -> Vec<Duration> {
        let mut delays = backoff.delays();
        (0..count).map(|_| delays.next_delay()).collect()
    }

    #[test]
    fn delays_grow_with_jitter_up_to_the_longest_and_never_end() {
        let backoff = POLICY.backoff;
        let mut distinct = std::collections::HashSet::new();
        for _ in 0..200 {
            let delays = first_delays(backoff, 20);
            assert!(
                (Duration::from_millis(50)..=Duration::from_millis(151)).contains(&delays[0]),
                "{delays:?}"
            );
            assert!(
                (Duration::from_millis(200)..=Duration::from_millis(601)).contains(&delays[2]),
                "{delays:?}"
            );
            assert!(delays.iter().all(|delay| *delay <= backoff.max_interval), "{delays:?}");
            // A third of the longest wait is the lower end of the last interval with jitter.
            assert!(delays[10..].iter().all(|delay| *delay >= Duration::from_millis(666)), "{delays:?}");
            distinct.extend(delays[10..].iter().copied());
        }
        assert!(distinct.len() > 1900, "the waits pile up: {} of 2000 are distinct", distinct.len());
    }

    #[test]
    fn settings_that_make_no_sense_still_wait() {
        let odd = Backoff { multiplier: 0.0, jitter: 0.0, ..POLICY.backoff };
        assert!(first_delays(odd, 50).iter().all(|delay| *delay == odd.initial_interval));
        let long_first = Backoff { initial_interval: Duration::from_secs(60), ..POLICY.backoff };
        assert!(first_delays(long_first, 50).iter().all(|delay| *delay <= long_first.max_interval));
    }
}
