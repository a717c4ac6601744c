//! The circuit breaker of one host: a pure state machine. `now` comes in as a value, nothing here waits.
//!
//! A host that fails call after call is left alone for a while; then one probe at a time finds out whether it is
//! back. Every call is made with a [`Ticket`]. One of an earlier state says nothing about this one: a call that began
//! before the circuit opened and fails after it closed again must not open it once more.

use std::time::Duration;

use tokio::time::Instant;

/// The longest stay that a provider can ask for (`Retry-After`). Behind it is a probe, so a host that asked for a
/// year is found to be back after an hour.
const LONGEST_STAY: Duration = Duration::from_secs(3_600);

/// When to ask again while somebody else's probe is under way.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// When a circuit opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitPolicy {
    /// So many failed calls in a row open it.
    pub failures: u32,
    /// How long it stays open at first; twice as long after each probe that failed.
    pub open_for: Duration,
    /// It never stays open for longer than this by itself.
    pub open_at_most: Duration,
}

/// One host's circuit.
#[derive(Debug, Clone)]
pub(super) struct Circuit {
    policy: CircuitPolicy,
    state: State,
    /// Counts states and probes: a ticket of an earlier one is void.
    epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Calls go through. So many failed in a row.
    Closed { failures: u32 },
    /// No calls until then. `length`: how long it was opened for, from which the next time grows.
    Open { until: Instant, length: Duration },
    /// One call at a time goes through.
    HalfOpen { probing: bool, length: Duration },
}

/// A state by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Calls go through.
    Closed,
    /// One probe at a time goes through.
    HalfOpen,
    /// No calls.
    Open,
}

impl Phase {
    /// Every phase, from good to bad.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// The name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The right to make one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    epoch: u64,
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

/// No call now; ask again after this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotNow(pub(super) Duration);

impl Circuit {
    pub(super) const fn new(policy: CircuitPolicy) -> Self {
        Self { policy, state: State::Closed { failures: 0 }, epoch: 0 }
    }

    pub(super) const fn phase(&self) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// Whether a call could go through now.
    pub(super) fn look(&self, now: Instant) -> Result<(), NotNow> {
        match self.state {
            State::Closed { .. } | State::HalfOpen { probing: false, .. } => Ok(()),
            State::Open { until, .. } if until <= now => Ok(()),
            State::Open { until, .. } => Err(NotNow(until - now)),
            State::HalfOpen { probing: true, .. } => Err(NotNow(PROBE_PATIENCE)),
        }
    }

    /// Lets a call through. Each one is settled or abandoned afterwards.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Ticket, NotNow> {
        self.look(now)?;
        match self.state {
            State::Closed { .. } => {}
            State::Open { length, .. } | State::HalfOpen { length, .. } => {
                self.enter(State::HalfOpen { probing: true, length });
            }
        }
        Ok(Ticket { epoch: self.epoch })
    }

    /// Takes note of how a call ended.
    pub(super) fn settle(&mut self, ticket: Ticket, end: CallEnd, now: Instant) {
        if ticket.epoch != self.epoch {
            return;
        }
        match (self.state, end) {
            (State::Closed { .. }, CallEnd::Answered) => self.state = State::Closed { failures: 0 },
            (State::Closed { failures }, CallEnd::Unavailable) if failures + 1 < self.policy.failures => {
                self.state = State::Closed { failures: failures + 1 };
            }
            (State::Closed { .. }, CallEnd::Unavailable) => self.open(now, self.policy.open_for),
            (State::HalfOpen { .. }, CallEnd::Answered) => self.enter(State::Closed { failures: 0 }),
            (State::HalfOpen { length, .. }, CallEnd::Unavailable) => {
                self.open(now, (length * 2).min(self.policy.open_at_most));
            }
            (State::Closed { .. } | State::HalfOpen { .. }, CallEnd::StayAway(wish)) => {
                // What it asked for says nothing about how long to stay away when it next fails without a word.
                let until = now + wish.min(LONGEST_STAY);
                self.enter(State::Open { until, length: self.policy.open_for });
            }
            // No ticket is given out in this state.
            (State::Open { .. }, _) => {}
        }
    }

    /// Takes note that a call was not made after all.
    pub(super) fn abandon(&mut self, ticket: Ticket) {
        if let State::HalfOpen { probing: true, length } = self.state
            && ticket.epoch == self.epoch
        {
            self.enter(State::HalfOpen { probing: false, length });
        }
    }

    fn open(&mut self, now: Instant, length: Duration) {
        self.enter(State::Open { until: now + length, length });
    }

    const fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests;
