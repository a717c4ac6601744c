//! The circuit breaker of one host: a pure state machine. `now` comes in as a value, nothing here waits.
//!
//! A host that fails entry after entry is left alone for a while; then probes find out whether it is back
//! ([`Probes`]). What one entry says counts once: a refresh token that makes the endpoint fail says nothing about the
//! host, however often it is sent. Nor does one that failed while others were answered, until it is answered itself.
//! And where nobody failed whose refreshes went well before, the circuit opens for the others alone, until one of those
//! fails too.
//!
//! Every call is made with a [`Ticket`]. One of an earlier state says nothing about this one: a call that began
//! before the circuit opened and fails after it closed again must not open it once more.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::probes::{Caller, Candidate, NotNow, Probe, Probes};
use crate::telemetry::CircuitState;

/// Entries of a host that are known to fail, at most. More than [`CircuitPolicy::failures`] can be.
pub(super) const MOST_FAILING: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_023);

/// When a circuit opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitPolicy {
    /// So many entries that fail in a row open it; and so many failed calls end a refresh.
    pub failures: u32,
    /// How long it stays open at first; twice as long after each probe that failed.
    pub open_for: Duration,
    /// It never stays open for longer than this by itself.
    pub open_at_most: Duration,
    /// Nor for longer than this because the provider asked for it (`Retry-After`). Behind it are probes, so a host
    /// that asked for a year is found to be back before.
    pub stay_at_most: Duration,
}

/// One host's circuit.
#[derive(Debug)]
pub(super) struct Circuit {
    policy: CircuitPolicy,
    state: State,
    /// Counts states: a ticket of an earlier one is void.
    epoch: u64,
    /// Who gets through while it is not closed.
    probes: Probes,
    /// The entries that failed and were not answered since.
    failing: LruCache<i64, Failing>,
    /// How many of these count.
    evidence: u32,
    /// Who was asked last to stay away, and until when, since anybody was answered.
    asked_away: Option<AskedAway>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Calls go through.
    Closed,
    /// No calls until [`Probes`] let one through. `length`: how long it was opened for, from which the next time grows.
    Open { length: Duration },
    /// Probes go through.
    HalfOpen { length: Duration },
}

#[derive(Debug, Clone, Copy)]
struct Failing {
    /// From when it may be a probe again.
    again_from: Instant,
    /// Whether it is evidence against the host, and not one that fails for itself.
    counts: bool,
    /// Whether its refreshes went well before.
    proven: bool,
}

#[derive(Debug, Clone, Copy)]
struct AskedAway {
    caller: Caller,
    until: Instant,
}

/// The right to make one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    epoch: u64,
    caller: Caller,
    /// Some: it is to find out whether the host is back.
    probe: Option<Probe>,
}

/// What a call says about the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallEnd {
    /// It is there: it answered, and be it with a refusal.
    Answered,
    /// It gave no usable answer.
    Unavailable,
    /// It wants to be left alone for longer than anybody waits.
    StayAway(Duration),
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
            asked_away: None,
        }
    }

    pub(super) const fn phase(&self) -> CircuitState {
        match self.state {
            State::Closed => CircuitState::Closed,
            State::Open { .. } => CircuitState::Open,
            State::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// Whether a call of this one could go through now.
    pub(super) fn look(&self, caller: Caller, now: Instant) -> Result<(), NotNow> {
        match self.state {
            State::Closed => Ok(()),
            State::Open { .. } | State::HalfOpen { .. } => self.probes.look(self.candidate(caller), now),
        }
    }

    /// Lets a call through. Each one is settled or abandoned afterwards.
    pub(super) fn admit(&mut self, caller: Caller, now: Instant) -> Result<Ticket, NotNow> {
        self.look(caller, now)?;
        let probe = match self.state {
            State::Closed => None,
            State::Open { length, .. } => {
                self.enter(State::HalfOpen { length });
                Some(self.probes.begin(self.candidate(caller), now))
            }
            State::HalfOpen { .. } => Some(self.probes.begin(self.candidate(caller), now)),
        };
        Ok(Ticket { epoch: self.epoch, caller, probe })
    }

    /// Takes note of how a call ended.
    pub(super) fn settle(&mut self, ticket: Ticket, end: CallEnd, now: Instant) {
        self.abandon(ticket);
        if ticket.epoch != self.epoch {
            return;
        }
        match end {
            CallEnd::Answered => self.answered(ticket.caller),
            CallEnd::Unavailable => self.failed(ticket, None, now),
            CallEnd::StayAway(wish) => {
                self.failed(ticket, Some(now + wish.min(self.policy.stay_at_most)), now);
            }
        }
    }

    /// Takes note that a call was not made after all, or says nothing about the host.
    pub(super) fn abandon(&mut self, ticket: Ticket) {
        if let Some(probe) = ticket.probe {
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
        self.asked_away = None;
        // Whoever failed before did so for itself.
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

    /// `stay_until`: until when it wants to be left alone.
    fn failed(&mut self, ticket: Ticket, stay_until: Option<Instant>, now: Instant) {
        let caller = ticket.caller;
        match (self.state, ticket.probe) {
            (State::Closed, _) => {
                let counts = self.note_failing(caller, now);
                let length = self.policy.open_for;
                if let Some(first) =
                    stay_until.filter(|_| counts).and_then(|until| self.note_away(caller, until, now))
                {
                    self.open(stay_until.unwrap_or(now), length, first.proven || caller.proven, now);
                } else if self.evidence >= self.policy.failures {
                    let proven = self.failing.iter().any(|(_, failing)| failing.counts && failing.proven);
                    self.open(now + length, length, proven, now);
                }
            }
            (State::HalfOpen { length }, Some(probe)) => {
                let longer = (length * 2).min(self.policy.open_at_most);
                let held_until = |wait| stay_until.unwrap_or(now).max(now + wait);
                match probe.candidate {
                    Candidate::Failed { .. } => {
                        self.note_failing(caller, held_until(length));
                    }
                    Candidate::Unproven => {
                        self.note_failing(caller, held_until(longer));
                        self.probes.hold_back(probe.candidate, now + longer);
                        self.state = State::HalfOpen { length: longer };
                    }
                    Candidate::Proven => {
                        self.note_failing(caller, held_until(longer));
                        let asked_again =
                            stay_until.filter(|until| self.note_away(caller, *until, now).is_some());
                        match asked_again {
                            // What it asked for says nothing about how long to stay away when it next fails without a
                            // word.
                            Some(until) => self.open(until, self.policy.open_for, true, now),
                            None => self.open(now + longer, longer, true, now),
                        }
                    }
                }
            }
            // No ticket of these is given out.
            (State::Open { .. }, _) | (State::HalfOpen { .. }, None) => {}
        }
    }

    /// Whether it counts against the host that this one failed.
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

    /// The one that was asked to stay away before this one, where it still is and nobody was answered in between.
    fn note_away(&mut self, caller: Caller, until: Instant, now: Instant) -> Option<Caller> {
        let before = self.asked_away.replace(AskedAway { caller, until })?;
        (before.caller.entry != caller.entry && now < before.until).then_some(before.caller)
    }

    /// `proven`: whether anybody failed whose refreshes went well before.
    fn open(&mut self, until: Instant, length: Duration, proven: bool, now: Instant) {
        self.probes.restart(until);
        if !proven {
            self.probes.let_proven_through(now);
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
