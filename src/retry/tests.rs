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
    let retrying = retry(&POLICY, within(60), &cancel, asked, |_, _| {}, || async { Err::<(), _>("busy") });
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
    let (waits, ended) = (RefCell::new(Vec::new()), Cell::new(Instant::now()));
    let (calls, cancel) = (Cell::new(0), CancellationToken::new());
    let done = retry_until_cancelled(
        &cancel,
        |_: &&str| {
            ended.set(Instant::now());
            POLICY.backoff
        },
        || async {
            calls.set(calls.get() + 1);
            if calls.get() > 1 {
                waits.borrow_mut().push(ended.get().elapsed());
            }
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
async fn another_kind_of_error_begins_other_waits() {
    let rarely =
        Backoff { jitter: 0.0, ..Backoff::doubling(Duration::from_secs(10), Duration::from_secs(80)) };
    let (begin, calls, cancel) = (Instant::now(), Cell::new(0), CancellationToken::new());
    let done = retry_until_cancelled(
        &cancel,
        |error: &&str| if *error == "refused" { rarely } else { POLICY.backoff },
        || async {
            calls.set(calls.get() + 1);
            match calls.get() {
                1 | 2 | 4 => Err("refused"),
                3 => Err("lost"),
                _ => Ok("done"),
            }
        },
    );
    assert_eq!(done.await, Some("done"));
    let waited = begin.elapsed();
    assert!(
        waited >= Duration::from_secs(40) && waited < Duration::from_secs(41),
        "10 + 20 + 0.1 + 10: {waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_tried_until_it_is_cancelled_ends_during_a_wait_and_never_during_a_call() {
    let cancel = CancellationToken::new();
    let begin = Instant::now();
    let cancelled = retry_until_cancelled(
        &cancel,
        |(): &()| POLICY.backoff,
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
        assert!((Duration::from_millis(50)..=Duration::from_millis(151)).contains(&delays[0]), "{delays:?}");
        assert!((Duration::from_millis(200)..=Duration::from_millis(601)).contains(&delays[2]), "{delays:?}");
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
