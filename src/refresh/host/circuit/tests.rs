mod random;

use super::*;

const POLICY: CircuitPolicy = CircuitPolicy {
    failures: 5,
    open_for: Duration::from_secs(10),
    open_at_most: Duration::from_secs(60),
    pause_at_most: Duration::from_secs(300),
};

const LOGIN: fn(i64) -> Caller = |entry| Caller { entry, proven: false };
const PROVEN: fn(i64) -> Caller = |entry| Caller { entry, proven: true };

/// A circuit, and a time that goes on.
struct Run {
    circuit: Circuit,
    begin: Instant,
    now: Instant,
    /// Every call without a name is somebody else's.
    last: i64,
}

impl Run {
    fn new() -> Self {
        let now = Instant::now();
        Self { circuit: Circuit::new(POLICY, now), begin: now, now, last: 1_000_000 }
    }

    fn wait(&mut self, secs: u64) {
        self.now += Duration::from_secs(secs);
    }

    fn somebody(&mut self) -> Caller {
        self.last += 1;
        PROVEN(self.last)
    }

    /// One whole call of an entry that was refreshed before. None: it was not permitted.
    fn call(&mut self, end: CallOutcome) -> Option<CircuitState> {
        let caller = self.somebody();
        self.call_of(caller, end)
    }

    fn call_of(&mut self, caller: Caller, end: CallOutcome) -> Option<CircuitState> {
        let permit = self.circuit.acquire(caller, self.now).ok()?;
        self.circuit.record(permit, end, self.now);
        Some(self.circuit.phase())
    }

    /// Opens it, and tells for how many seconds.
    fn fail_until_open(&mut self) -> u64 {
        while self.call(CallOutcome::Unavailable).is_some() {}
        self.stays_open_for()
    }

    fn stays_open_for(&mut self) -> u64 {
        let caller = self.somebody();
        self.stays_open_for_this(caller)
    }

    fn stays_open_for_this(&self, caller: Caller) -> u64 {
        self.circuit.check(caller, self.now).err().map_or(0, |NotNow(wait)| wait.as_secs())
    }
}

#[test]
fn the_fifth_failing_entry_in_a_row_opens_the_circuit() {
    let mut run = Run::new();
    for _ in 0..4 {
        assert_eq!(run.call(CallOutcome::Unavailable), Some(CircuitState::Closed));
    }
    assert_eq!(run.call(CallOutcome::Answered), Some(CircuitState::Closed));
    for _ in 0..4 {
        assert_eq!(run.call(CallOutcome::Unavailable), Some(CircuitState::Closed));
    }
    assert_eq!(run.call(CallOutcome::Unavailable), Some(CircuitState::Open));
    assert_eq!(run.stays_open_for(), 10);
    assert_eq!(run.call(CallOutcome::Answered), None, "nobody may call");
}

#[test]
fn metrics_show_it_half_open_as_soon_as_a_probe_may_come_though_nobody_asks() {
    let mut run = Run::new();
    run.fail_until_open();
    assert_eq!(run.circuit.phase_at(run.now), CircuitState::Open);
    run.wait(10);
    assert_eq!(run.circuit.phase_at(run.now), CircuitState::HalfOpen);
    assert_eq!(run.circuit.phase(), CircuitState::Open, "it has not changed");
}

#[test]
fn one_entry_alone_never_opens_the_circuit() {
    for caller in [LOGIN(1), PROVEN(1)] {
        let mut run = Run::new();
        for _ in 0..3 {
            run.call(CallOutcome::Unavailable);
        }
        for _ in 0..1_000 {
            assert_eq!(run.call_of(caller, CallOutcome::Unavailable), Some(CircuitState::Closed));
        }
        assert_eq!(
            run.call(CallOutcome::Unavailable),
            Some(CircuitState::Open),
            "it is the fourth, and this the fifth"
        );
    }
}

#[test]
fn an_entry_that_failed_beside_answered_ones_counts_again_only_after_an_answer() {
    let mut run = Run::new();
    for _ in 0..100 {
        for entry in 1..5 {
            assert_eq!(run.call_of(PROVEN(entry), CallOutcome::Unavailable), Some(CircuitState::Closed));
        }
        assert_eq!(run.call(CallOutcome::Answered), Some(CircuitState::Closed));
        for _ in 0..4 {
            assert_eq!(run.call(CallOutcome::Unavailable), Some(CircuitState::Closed));
        }
        assert_eq!(
            run.call_of(PROVEN(1), CallOutcome::Unavailable),
            Some(CircuitState::Closed),
            "it fails for itself"
        );
        assert_eq!(run.call(CallOutcome::Answered), Some(CircuitState::Closed));
    }
    run.call_of(PROVEN(1), CallOutcome::Answered);
    for _ in 0..4 {
        run.call(CallOutcome::Unavailable);
    }
    assert_eq!(run.call_of(PROVEN(1), CallOutcome::Unavailable), Some(CircuitState::Open));
}

#[test]
fn proven_entries_pass_an_open_circuit_until_one_of_them_fails() {
    let mut run = Run::new();
    for entry in 1..=5 {
        run.call_of(LOGIN(entry), CallOutcome::Unavailable);
    }
    assert_eq!(run.circuit.phase(), CircuitState::Open);
    assert_eq!(run.stays_open_for_this(LOGIN(6)), 10);
    let several: Vec<CircuitPermit> =
        (11..14).map(|entry| run.circuit.acquire(PROVEN(entry), run.now).unwrap()).collect();
    for permit in several {
        run.circuit.record(permit, CallOutcome::Answered, run.now);
        assert_eq!(run.circuit.phase(), CircuitState::Closed);
    }

    let mut down = Run::new();
    for entry in 1..=5 {
        down.call_of(LOGIN(entry), CallOutcome::Unavailable);
    }
    let together = down.circuit.acquire(PROVEN(11), down.now).unwrap();
    assert_eq!(down.call(CallOutcome::Unavailable), Some(CircuitState::Open));
    assert_eq!(down.stays_open_for(), 20, "then it is the host");
    down.circuit.record(together, CallOutcome::Unavailable, down.now);
    assert_eq!(down.stays_open_for(), 20, "once");
}

#[test]
fn a_probe_of_a_failed_entry_delays_nobody_and_one_of_an_unproven_entry_only_unproven_ones() {
    let mut run = Run::new();
    for entry in 1..=4 {
        run.call_of(LOGIN(entry), CallOutcome::Unavailable);
    }
    run.call_of(PROVEN(5), CallOutcome::Unavailable);
    run.wait(10);
    assert_eq!(run.call_of(LOGIN(1), CallOutcome::Unavailable), Some(CircuitState::HalfOpen));
    assert_eq!(run.stays_open_for_this(LOGIN(1)), 10, "for itself");
    assert_eq!(
        run.call_of(LOGIN(6), CallOutcome::Unavailable),
        Some(CircuitState::HalfOpen),
        "it did not delay this one"
    );
    assert_eq!((run.stays_open_for_this(LOGIN(6)), run.stays_open_for_this(LOGIN(7))), (20, 20));
    assert_eq!(
        run.call(CallOutcome::Answered),
        Some(CircuitState::Closed),
        "nor did any of them delay this one"
    );
}

#[test]
fn a_single_failing_entry_can_close_the_circuit_again() {
    let mut run = Run::new();
    for entry in 1..=5 {
        run.call_of(PROVEN(entry), CallOutcome::Unavailable);
    }
    run.wait(10);
    assert_eq!(run.call_of(PROVEN(5), CallOutcome::Unavailable), Some(CircuitState::HalfOpen));
    assert_eq!(run.call_of(PROVEN(5), CallOutcome::Unavailable), None);
    run.wait(10);
    assert_eq!(run.call_of(PROVEN(5), CallOutcome::Answered), Some(CircuitState::Closed));
}

#[test]
fn a_failed_probe_doubles_the_open_time_up_to_a_limit_and_a_good_one_resets_it() {
    let mut run = Run::new();
    run.fail_until_open();
    for longer in [20, 40, 60, 60] {
        let wait = run.stays_open_for();
        run.wait(wait);
        assert_eq!(run.call(CallOutcome::Unavailable), Some(CircuitState::Open));
        assert_eq!(run.stays_open_for(), longer);
    }
    run.wait(60);
    assert_eq!(run.call(CallOutcome::Answered), Some(CircuitState::Closed));
    assert_eq!(run.fail_until_open(), 10);
}

#[test]
fn one_probe_runs_at_a_time_and_an_abandoned_one_makes_room() {
    let mut run = Run::new();
    run.fail_until_open();
    run.wait(9);
    assert!(run.circuit.acquire(PROVEN(1), run.now).is_err(), "too early");
    run.wait(1);
    let first = run.circuit.acquire(PROVEN(1), run.now).unwrap();
    assert_eq!(run.circuit.phase(), CircuitState::HalfOpen);
    assert_eq!(run.circuit.acquire(PROVEN(2), run.now), Err(NotNow(Duration::from_secs(1))));
    run.circuit.release(first);
    let second = run.circuit.acquire(PROVEN(2), run.now).unwrap();
    run.circuit.release(first);
    assert!(run.circuit.acquire(PROVEN(3), run.now).is_err(), "the permit that was given back is void");
    run.circuit.record(second, CallOutcome::Answered, run.now);
    assert_eq!(run.circuit.phase(), CircuitState::Closed);
}

#[test]
fn a_call_that_began_in_an_earlier_state_does_not_count() {
    let mut run = Run::new();
    let late: Vec<CircuitPermit> =
        (0..20).map(|entry| run.circuit.acquire(PROVEN(entry), run.now).unwrap()).collect();
    run.fail_until_open();
    run.circuit.record(late[0], CallOutcome::Answered, run.now);
    assert_eq!(run.circuit.phase(), CircuitState::Open);
    run.wait(10);
    assert_eq!(run.call(CallOutcome::Answered), Some(CircuitState::Closed));
    for permit in late {
        run.circuit.record(permit, CallOutcome::Unavailable, run.now);
    }
    assert_eq!(
        run.circuit.phase(),
        CircuitState::Closed,
        "calls that hung since before it opened do not open it again"
    );
}

#[test]
fn two_entries_that_are_asked_to_pause_open_the_circuit_at_once_up_to_the_longest_pause() {
    for (asked, stays) in [(45, 45), (300, 300), (1_000_000_000, 300)] {
        let away = CallOutcome::Pause(Duration::from_secs(asked));
        let mut run = Run::new();
        for _ in 0..100 {
            assert_eq!(run.call_of(PROVEN(1), away), Some(CircuitState::Closed), "one is not enough");
        }
        assert_eq!(run.call_of(PROVEN(2), away), Some(CircuitState::Open));
        assert_eq!(run.stays_open_for(), stays);
        run.wait(stays);
        assert_eq!(run.call(CallOutcome::Unavailable), Some(CircuitState::Open));
        assert_eq!(run.stays_open_for(), 20, "what it asked for does not grow");
    }
}

#[test]
fn pauses_count_together_only_without_an_answer_in_between() {
    let away = CallOutcome::Pause(Duration::from_secs(45));
    let mut run = Run::new();
    run.call_of(PROVEN(1), away);
    run.call(CallOutcome::Answered);
    assert_eq!(run.call_of(PROVEN(2), away), Some(CircuitState::Closed), "others were answered");
    run.wait(45);
    assert_eq!(run.call_of(PROVEN(3), away), Some(CircuitState::Closed), "the first one's time is over");
    assert_eq!(run.call_of(PROVEN(4), away), Some(CircuitState::Open));
}

#[test]
fn the_memory_of_failing_entries_is_bounded() {
    let mut run = Run::new();
    let permits: Vec<CircuitPermit> =
        (0..5_000).map(|entry| run.circuit.acquire(LOGIN(entry), run.now).unwrap()).collect();
    for permit in permits {
        run.circuit.record(permit, CallOutcome::Unavailable, run.now);
    }
    for _ in 0..3_000 {
        run.wait(60);
        let caller = run.somebody();
        run.call_of(LOGIN(caller.entry), CallOutcome::Unavailable);
    }
    assert_eq!(run.circuit.failing.len(), MOST_FAILING.get());
    assert_eq!(run.call(CallOutcome::Answered), Some(CircuitState::Closed));
}
