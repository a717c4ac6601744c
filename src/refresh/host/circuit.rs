//! The circuit breaker of one host: a pure state machine. `now` is an argument, and nothing here waits.
//!
//! If entry after entry fails, the circuit opens, and nobody calls the host for a while. Then probes find out whether the host
//! is back ([`Probes`]). Each entry counts once, however often it fails: a refresh token that makes the endpoint fail says
//! nothing about the host. When any entry is answered, earlier failures stop counting. An entry with such a failure counts again
//! only after it was answered itself. If no proven entry failed, the circuit opens only for unproven ones, until a proven one
//! fails. It also opens once two entries in a row are asked for a long pause.
//!
//! Every call needs a [`CircuitPermit`]. The outcome of a call that began in an earlier state is ignored: a call that hung since
//! before the circuit opened must not open it again after it has closed.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::probes::{Caller, Candidate, NotNow, Probe, Probes};
use crate::telemetry::CircuitState;

/// The most entries of a host that are remembered as failing. [`CircuitPolicy::failures`] is never that large.
pub(super) const MOST_FAILING: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_023);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitPolicy {
    /// How many failed entries in a row open it. Also how many failed calls end a refresh.
    pub failures: u32,
    /// How long it stays open at first. Each failed probe doubles this.
    pub open_for: Duration,
    /// The longest time that it stays open by itself.
    pub open_at_most: Duration,
    /// The longest pause that a provider may ask for (`Retry-After`). Probes follow it, so a host that asked for a year is
    /// found to be back before.
    pub pause_at_most: Duration,
}

#[derive(Debug)]
pub(super) struct Circuit {
    policy: CircuitPolicy,
    state: State,
    /// Counts the states so far. A permit of an earlier state is void.
    epoch: u64,
    /// Who may call while it is not closed.
    probes: Probes,
    /// The entries that failed and have not been answered since.
    failing: LruCache<i64, Failing>,
    /// How many of them count.
    evidence: u32,
    /// The last pause that the provider asked for, if nobody has been answered since.
    pause: Option<Pause>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    /// No calls until a probe is due. `length`: for how long it was opened, which the next failure doubles.
    Open {
        length: Duration,
    },
    HalfOpen {
        length: Duration,
    },
}

#[derive(Debug, Clone, Copy)]
struct Failing {
    /// From when it may probe again.
    again_from: Instant,
    /// Whether it is evidence against the host.
    counts: bool,
    proven: bool,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    caller: Caller,
    until: Instant,
}

/// The circuit's permit for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CircuitPermit {
    epoch: u64,
    caller: Caller,
    /// Some: the call finds out whether the host is back.
    probe: Option<Probe>,
}

/// What a call says about the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallOutcome {
    /// The host answered, if only with a refusal.
    Answered,
    /// The host gave no usable answer.
    Unavailable,
    /// The provider asked for a pause that is longer than any refresh waits.
    Pause(Duration),
}

impl Circuit {
    pub(super) fn new(policy: CircuitPolicy, now: Instant) -> Self {
        Self {
            policy,
            state: State::Closed,
            epoch: 0,
            probes: Probes::new(now),
            failing: LruCache::new(MOST_FAILING),
            evidence: 0,
            pause: None,
        }
    }

    pub(super) const fn phase(&self) -> CircuitState {
        match self.state {
            State::Closed => CircuitState::Closed,
            State::Open { .. } => CircuitState::Open,
            State::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// As metrics show it: half open as soon as anybody may probe, even if nobody asks.
    pub(super) fn phase_at(&self, now: Instant) -> CircuitState {
        match self.phase() {
            CircuitState::Open if self.probes.check(Candidate::Unproven, now).is_ok() => {
                CircuitState::HalfOpen
            }
            phase => phase,
        }
    }

    /// Whether this entry could call now.
    pub(super) fn check(&self, caller: Caller, now: Instant) -> Result<(), NotNow> {
        match self.state {
            State::Closed => Ok(()),
            State::Open { .. } | State::HalfOpen { .. } => self.probes.check(self.candidate(caller), now),
        }
    }

    /// A permit for a call. Afterwards it is recorded or released.
    pub(super) fn acquire(&mut self, caller: Caller, now: Instant) -> Result<CircuitPermit, NotNow> {
        self.check(caller, now)?;
        let probe = match self.state {
            State::Closed => None,
            State::Open { length, .. } => {
                self.enter(State::HalfOpen { length });
                Some(self.probes.begin(self.candidate(caller), now))
            }
            State::HalfOpen { .. } => Some(self.probes.begin(self.candidate(caller), now)),
        };
        Ok(CircuitPermit { epoch: self.epoch, caller, probe })
    }

    /// Records the outcome of a call.
    pub(super) fn record(&mut self, permit: CircuitPermit, outcome: CallOutcome, now: Instant) {
        self.release(permit);
        if permit.epoch != self.epoch {
            return;
        }
        match outcome {
            CallOutcome::Answered => self.answered(permit.caller),
            CallOutcome::Unavailable => self.failed(permit, None, now),
            CallOutcome::Pause(pause) => {
                self.failed(permit, Some(now + pause.min(self.policy.pause_at_most)), now);
            }
        }
    }

    /// Gives back a permit whose call was not made, or says nothing about the host.
    pub(super) fn release(&mut self, permit: CircuitPermit) {
        if let Some(probe) = permit.probe {
            self.probes.end(probe);
        }
    }

    fn candidate(&self, caller: Caller) -> Candidate {
        match self.failing.peek(&caller.entry) {
            Some(failing) => Candidate::Failed { again_from: failing.again_from },
            None if caller.proven => Candidate::Proven,
            None => Candidate::Unproven,
        }
    }

    fn answered(&mut self, caller: Caller) {
        self.pause = None;
        // Those that failed before did not fail because of the host.
        if self.evidence > 0 {
            self.failing.iter_mut().for_each(|(_, failing)| failing.counts = false);
            self.evidence = 0;
        }
        self.failing.pop(&caller.entry);
        match self.state {
            State::Closed => {}
            State::HalfOpen { .. } | State::Open { .. } => self.enter(State::Closed),
        }
    }

    /// `pause_until`: the end of the pause that the provider asked for.
    fn failed(&mut self, permit: CircuitPermit, pause_until: Option<Instant>, now: Instant) {
        let caller = permit.caller;
        match (self.state, permit.probe) {
            (State::Closed, _) => {
                let counts = self.note_failing(caller, now);
                let length = self.policy.open_for;
                if let Some(first) =
                    pause_until.filter(|_| counts).and_then(|until| self.note_pause(caller, until, now))
                {
                    self.open(pause_until.unwrap_or(now), length, first.proven || caller.proven, now);
                } else if self.evidence >= self.policy.failures {
                    let proven = self.failing.iter().any(|(_, failing)| failing.counts && failing.proven);
                    self.open(now + length, length, proven, now);
                }
            }
            (State::HalfOpen { length }, Some(probe)) => {
                let longer = (length * 2).min(self.policy.open_at_most);
                let held_until = |wait| pause_until.unwrap_or(now).max(now + wait);
                match probe.candidate {
                    Candidate::Failed { .. } => {
                        self.note_failing(caller, held_until(length));
                    }
                    Candidate::Unproven => {
                        self.note_failing(caller, held_until(longer));
                        self.probes.delay(probe.candidate, now + longer);
                        self.state = State::HalfOpen { length: longer };
                    }
                    Candidate::Proven => {
                        self.note_failing(caller, held_until(longer));
                        let paused_again =
                            pause_until.filter(|until| self.note_pause(caller, *until, now).is_some());
                        match paused_again {
                            // The pause that it asked for is no measure for the next failure that names none.
                            Some(until) => self.open(until, self.policy.open_for, true, now),
                            None => self.open(now + longer, longer, true, now),
                        }
                    }
                }
            }
            // No permits are given in these states.
            (State::Open { .. }, _) | (State::HalfOpen { .. }, None) => {}
        }
    }

    /// Whether this failure counts against the host.
    fn note_failing(&mut self, caller: Caller, again_from: Instant) -> bool {
        if let Some(failing) = self.failing.get_mut(&caller.entry) {
            failing.again_from = again_from;
            return failing.counts;
        }
        let failing = Failing { again_from, counts: true, proven: caller.proven };
        let forgotten = self.failing.push(caller.entry, failing);
        self.evidence += 1;
        self.evidence -= u32::from(forgotten.is_some_and(|(_, failing)| failing.counts));
        true
    }

    /// The other entry that was asked to pause, if its pause is not over and nobody has been answered since.
    fn note_pause(&mut self, caller: Caller, until: Instant, now: Instant) -> Option<Caller> {
        let before = self.pause.replace(Pause { caller, until })?;
        (before.caller.entry != caller.entry && now < before.until).then_some(before.caller)
    }

    /// `proven`: whether a proven entry failed.
    fn open(&mut self, until: Instant, length: Duration, proven: bool, now: Instant) {
        self.probes.restart(until);
        if !proven {
            self.probes.admit_proven(now);
        }
        self.enter(State::Open { length });
    }

    const fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests;
