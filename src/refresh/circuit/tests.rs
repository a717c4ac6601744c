use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

const POLICY: CircuitPolicy =
    CircuitPolicy { failures: 5, open_for: Duration::from_secs(10), open_at_most: Duration::from_secs(60) };

/// A circuit, and a time that goes on.
struct Run {
    circuit: Circuit,
    begin: Instant,
    now: Instant,
}

impl Run {
    fn new() -> Self {
        let now = Instant::now();
        Self { circuit: Circuit::new(POLICY), begin: now, now }
    }

    fn wait(&mut self, secs: u64) {
        self.now += Duration::from_secs(secs);
    }

    /// One call from beginning to end; none: it was not let through.
    fn call(&mut self, end: CallEnd) -> Option<Phase> {
        let ticket = self.circuit.admit(self.now).ok()?;
        self.circuit.settle(ticket, end, self.now);
        Some(self.circuit.phase())
    }

    /// Opens it, and tells for how many seconds.
    fn fail_until_open(&mut self) -> u64 {
        while self.call(CallEnd::Unavailable).is_some() {}
        self.stays_open_for()
    }

    fn stays_open_for(&self) -> u64 {
        self.circuit.look(self.now).err().map_or(0, |NotNow(wait)| wait.as_secs())
    }
}

#[test]
fn the_fifth_failure_in_a_row_opens_it_and_not_the_fourth() {
    let mut run = Run::new();
    for _ in 0..4 {
        assert_eq!(run.call(CallEnd::Unavailable), Some(Phase::Closed));
    }
    assert_eq!(run.call(CallEnd::Answered), Some(Phase::Closed));
    for _ in 0..4 {
        assert_eq!(run.call(CallEnd::Unavailable), Some(Phase::Closed));
    }
    assert_eq!(run.call(CallEnd::Unavailable), Some(Phase::Open));
    assert_eq!(run.stays_open_for(), 10);
    assert_eq!(run.call(CallEnd::Answered), None, "nobody is let through");
}

#[test]
fn each_probe_that_fails_doubles_the_time_up_to_the_longest_and_a_good_one_starts_over() {
    let mut run = Run::new();
    run.fail_until_open();
    for longer in [20, 40, 60, 60] {
        run.wait(run.stays_open_for());
        assert_eq!(run.call(CallEnd::Unavailable), Some(Phase::Open));
        assert_eq!(run.stays_open_for(), longer);
    }
    run.wait(60);
    assert_eq!(run.call(CallEnd::Answered), Some(Phase::Closed));
    assert_eq!(run.fail_until_open(), 10);
}

#[test]
fn one_probe_at_a_time_is_let_through_and_one_that_was_not_made_makes_room() {
    let mut run = Run::new();
    run.fail_until_open();
    run.wait(9);
    assert!(run.circuit.admit(run.now).is_err(), "too early");
    run.wait(1);
    let first = run.circuit.admit(run.now).unwrap();
    assert_eq!(run.circuit.phase(), Phase::HalfOpen);
    assert_eq!(run.circuit.admit(run.now), Err(NotNow(PROBE_PATIENCE)));
    run.circuit.abandon(first);
    let second = run.circuit.admit(run.now).unwrap();
    run.circuit.settle(first, CallEnd::Unavailable, run.now);
    assert_eq!(run.circuit.phase(), Phase::HalfOpen, "the ticket that was given back is void");
    run.circuit.settle(second, CallEnd::Answered, run.now);
    assert_eq!(run.circuit.phase(), Phase::Closed);
}

#[test]
fn what_a_call_of_an_earlier_state_says_does_not_count() {
    let mut run = Run::new();
    let late: Vec<Ticket> = (0..20).map(|_| run.circuit.admit(run.now).unwrap()).collect();
    run.fail_until_open();
    run.circuit.settle(late[0], CallEnd::Answered, run.now);
    assert_eq!(run.circuit.phase(), Phase::Open);
    run.wait(10);
    assert_eq!(run.call(CallEnd::Answered), Some(Phase::Closed));
    for ticket in late {
        run.circuit.settle(ticket, CallEnd::Unavailable, run.now);
    }
    assert_eq!(
        run.circuit.phase(),
        Phase::Closed,
        "calls that hung since before it opened do not open it again"
    );
}

#[test]
fn a_host_that_wants_to_be_left_alone_is_left_alone_at_once_and_for_an_hour_at_most() {
    for (wish, stays) in [(45, 45), (3_600, 3_600), (1_000_000_000, 3_600)] {
        let mut run = Run::new();
        assert_eq!(run.call(CallEnd::StayAway(Duration::from_secs(wish))), Some(Phase::Open));
        assert_eq!(run.stays_open_for(), stays);
        run.wait(stays);
        assert_eq!(run.call(CallEnd::Unavailable), Some(Phase::Open));
        assert_eq!(run.stays_open_for(), 20, "what it asked for does not grow");
    }
}

fn call_end() -> impl Strategy<Value = CallEnd> {
    prop_oneof![
        4 => Just(CallEnd::Answered),
        4 => Just(CallEnd::Unavailable),
        1 => (31_u64..10_000).prop_map(|secs| CallEnd::StayAway(Duration::from_secs(secs))),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Begin,
    End(prop::sample::Index, CallEnd),
    Abandon(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_u64..30).prop_map(Step::Wait),
        4 => Just(Step::Begin),
        4 => (any::<prop::sample::Index>(), call_end()).prop_map(|(which, end)| Step::End(which, end)),
        1 => any::<prop::sample::Index>().prop_map(Step::Abandon),
    ]
}

proptest! {
    /// Any number of calls that overlap as they like.
    #[test]
    fn it_never_lets_two_probes_through_nor_stays_shut_for_ever(steps in prop::collection::vec(step(), 1..200)) {
        let mut run = Run::new();
        let mut under_way: Vec<(Ticket, Phase)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(secs) => run.wait(secs),
                Step::Begin => {
                    let could = run.circuit.look(run.now);
                    let ticket = run.circuit.admit(run.now);
                    prop_assert_eq!(could, ticket.map(drop), "looking and being let through agree");
                    if let Ok(ticket) = ticket {
                        under_way.push((ticket, run.circuit.phase()));
                    }
                }
                Step::End(which, end) if !under_way.is_empty() => {
                    let (ticket, _) = under_way.swap_remove(which.index(under_way.len()));
                    let before = run.circuit.phase();
                    run.circuit.settle(ticket, end, run.now);
                    let after = run.circuit.phase();
                    let closed_by_success = after != Phase::Closed || before == Phase::Closed || end == CallEnd::Answered;
                    prop_assert!(closed_by_success, "{end:?} closed it");
                }
                Step::Abandon(which) if !under_way.is_empty() => {
                    let (ticket, _) = under_way.swap_remove(which.index(under_way.len()));
                    run.circuit.abandon(ticket);
                }
                Step::End(..) | Step::Abandon(_) => {}
            }
            let probes = under_way
                .iter()
                .filter(|(ticket, phase)| *phase == Phase::HalfOpen && ticket.epoch == run.circuit.epoch)
                .count();
            prop_assert!(probes <= 1, "{probes} probes at once");
            if let Err(NotNow(wait)) = run.circuit.look(run.now) {
                prop_assert!(wait > Duration::ZERO && wait <= LONGEST_STAY, "{wait:?}");
            }
        }
        // Whatever happened: once everybody is back and the longest stay is over, a call goes through and closes it.
        for (ticket, _) in under_way {
            run.circuit.abandon(ticket);
        }
        run.wait(3_600);
        prop_assert_eq!(run.call(CallEnd::Answered), Some(Phase::Closed));
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
        let end = if *kind == 0 { CallEnd::Unavailable } else { CallEnd::Answered };
        refused += usize::from(run.call(end).is_none());
        run.now += Duration::from_millis(100);
    }
    assert!(run.now - run.begin >= Duration::from_secs(1_199));
    refused
}
