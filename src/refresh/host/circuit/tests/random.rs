//! Random sequences of calls.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

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
    fn it_never_permits_two_probes_of_a_sort_nor_stays_open_for_ever(
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
fn twenty_percent_of_failures_do_not_keep_it_open() {
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
