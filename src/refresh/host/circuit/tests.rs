use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

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
fn the_fifth_entry_that_fails_in_a_row_opens_it_and_not_the_fourth() {
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
fn one_entry_does_not_open_it_however_often_it_fails() {
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
fn entries_that_failed_while_others_were_answered_count_again_only_once_they_were_answered() {
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
fn where_none_failed_whose_refreshes_went_well_before_they_go_on_being_let_through() {
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
fn a_probe_of_one_who_failed_before_delays_nobody_and_one_of_a_newcomer_other_newcomers_alone() {
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
fn a_lone_entry_that_failed_finds_the_host_back_by_itself() {
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
fn each_probe_that_fails_doubles_the_time_up_to_the_longest_and_a_good_one_starts_over() {
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
fn one_probe_at_a_time_is_let_through_and_one_that_was_not_made_makes_room() {
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
fn what_a_call_of_an_earlier_state_says_does_not_count() {
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
fn a_host_that_asks_two_entries_to_stay_away_is_left_alone_at_once_and_for_the_longest_stay_at_most() {
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
fn two_entries_that_are_asked_to_stay_away_count_only_at_the_same_time_with_no_answer_in_between() {
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
fn what_is_kept_of_entries_that_fail_is_bounded() {
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

fn call_end() -> impl Strategy<Value = CallOutcome> {
    prop_oneof![
        4 => Just(CallOutcome::Answered),
        8 => Just(CallOutcome::Unavailable),
        1 => (31_u64..10_000).prop_map(|secs| CallOutcome::Pause(Duration::from_secs(secs))),
    ]
}

impl Circuit {
    fn serves_proven(&self) -> bool {
        self.probes.serves_proven()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Begin(Caller),
    End(prop::sample::Index, CallOutcome),
    Abandon(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let caller = (0_i64..12, any::<bool>()).prop_map(|(entry, proven)| Caller { entry, proven });
    prop_oneof![
        2 => (0_u64..30).prop_map(Step::Wait),
        4 => caller.prop_map(Step::Begin),
        4 => (any::<prop::sample::Index>(), call_end()).prop_map(|(which, end)| Step::End(which, end)),
        1 => any::<prop::sample::Index>().prop_map(Step::Abandon),
    ]
}

proptest! {
    /// Any number of calls that overlap as they like.
    #[test]
    fn it_never_lets_two_probes_of_a_sort_through_nor_stays_shut_for_ever(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut run = Run::new();
        let mut under_way: Vec<(CircuitPermit, CircuitState)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(secs) => run.wait(secs),
                Step::Begin(caller) => {
                    let could = run.circuit.check(caller, run.now);
                    let permit = run.circuit.acquire(caller, run.now);
                    prop_assert_eq!(could, permit.map(drop), "checking and acquiring agree");
                    if let Ok(permit) = permit {
                        under_way.push((permit, run.circuit.phase()));
                    }
                }
                Step::End(which, end) if !under_way.is_empty() => {
                    let (permit, _) = under_way.swap_remove(which.index(under_way.len()));
                    let before = run.circuit.phase();
                    run.circuit.record(permit, end, run.now);
                    let after = run.circuit.phase();
                    let closed_by_success = after != CircuitState::Closed || before == CircuitState::Closed || end == CallOutcome::Answered;
                    prop_assert!(closed_by_success, "{end:?} closed it");
                    let reopened = before == CircuitState::HalfOpen && after == CircuitState::Open;
                    let good_past = permit.probe.is_some_and(|probe| probe.candidate == Candidate::Proven);
                    prop_assert!(!reopened || good_past, "{permit:?} opened it again");
                    let evidence = run.circuit.failing.iter().filter(|(_, failing)| failing.counts).count();
                    prop_assert_eq!(run.circuit.evidence as usize, evidence);
                }
                Step::Abandon(which) if !under_way.is_empty() => {
                    let (permit, _) = under_way.swap_remove(which.index(under_way.len()));
                    run.circuit.release(permit);
                }
                Step::End(..) | Step::Abandon(_) => {}
            }
            for sort in [Candidate::Proven, Candidate::Unproven] {
                if sort == Candidate::Proven && run.circuit.serves_proven() {
                    continue;
                }
                let probes = under_way
                    .iter()
                    .filter(|(permit, _)| permit.epoch == run.circuit.epoch)
                    .filter(|(permit, _)| permit.probe.is_some_and(|probe| probe.candidate == sort))
                    .count();
                prop_assert!(probes <= 1, "{probes} probes at once: {sort:?}");
            }
            for caller in (0..12).map(LOGIN).chain((0..12).map(PROVEN)) {
                if let Err(NotNow(wait)) = run.circuit.check(caller, run.now) {
                    prop_assert!(wait > Duration::ZERO && wait <= POLICY.pause_at_most, "{wait:?}");
                }
            }
        }
        // Whatever happened: once everybody is back and the longest stay is over, a call goes through and closes it,
        // also of one who failed.
        for (permit, _) in under_way {
            run.circuit.release(permit);
        }
        run.wait(300);
        prop_assert_eq!(run.call_of(LOGIN(0), CallOutcome::Answered), Some(CircuitState::Closed));
    }
}

/// Storms in which each call fails with a chance of one in five, ten calls a second for twenty minutes: always the same
/// ones, since of chance storms a rare one is bad enough to keep any circuit open for half of the time.
#[test]
fn a_storm_of_20_percent_failures_does_not_keep_it_shut() {
    let mut runner = TestRunner::deterministic();
    let storm = prop::collection::vec(0_u8..5, 12_000);
    let mut refused: Vec<usize> =
        (0..64).map(|_| refused_in(&storm.new_tree(&mut runner).unwrap().current())).collect();
    refused.sort_unstable();
    assert!(refused[32] < 12_000 / 4, "in every other storm more than {} were turned away", refused[32]);
    assert!(refused[63] < 12_000 * 3 / 4, "in one storm {} were turned away", refused[63]);
}

/// How many calls of a storm are turned away; those of kind 0 fail.
fn refused_in(storm: &[u8]) -> usize {
    let mut run = Run::new();
    let mut refused = 0;
    for kind in storm {
        let end = if *kind == 0 { CallOutcome::Unavailable } else { CallOutcome::Answered };
        refused += usize::from(run.call(end).is_none());
        run.now += Duration::from_millis(100);
    }
    assert!(run.now - run.begin >= Duration::from_secs(1_199));
    refused
}
