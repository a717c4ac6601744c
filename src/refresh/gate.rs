//! Who may call a token endpoint now: the circuit of each host, and the probes of a host that refuses everybody.
//!
//! Every call takes a [`Pass`] first and says afterwards how it went. What is decided here is known to this process
//! alone, except that a host refuses everybody: that stands in the database (`store/refusal.rs`) and comes with the
//! provider.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::circuit::{CallEnd, Circuit, NotNow, Phase, Ticket};
use super::{CircuitPolicy, FailedFlight, Order};
use crate::clock::Timestamp;
use crate::events::Events;
use crate::message::Event;
use crate::oauth::RefreshError;
use crate::provider::Provider;
use crate::store::FailureKind;
use crate::telemetry;

/// Decides which calls are made.
#[derive(Debug)]
pub(super) struct Gate {
    policy: CircuitPolicy,
    /// The longest `Retry-After` that is waited for.
    retry_after_cap: Duration,
    hosts: Mutex<HashMap<String, HostGate>>,
    events: Events,
}

#[derive(Debug)]
struct HostGate {
    circuit: Circuit,
    /// Some while the host is known to refuse everybody.
    probation: Option<Probation>,
}

/// A host that refuses everybody is asked again now and then.
#[derive(Debug, Clone, Copy)]
struct Probation {
    since: Timestamp,
    next_probe: Instant,
}

/// The right to make one call. Dropped without a word, it was not made.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    host: &'a str,
    ticket: Option<Ticket>,
}

/// No call now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEntry {
    /// The circuit is open.
    Open {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The host has refused everybody since then, so it is the provider that is set up wrong.
    Refusing {
        /// When that began.
        since: Timestamp,
    },
}

impl Gate {
    pub(super) fn new(policy: CircuitPolicy, retry_after_cap: Duration, events: Events) -> Self {
        Self { policy, retry_after_cap, hosts: Mutex::default(), events }
    }

    /// Whether a call could be made now.
    pub(super) fn look(&self, provider: &Provider, now: Instant) -> Result<(), NoEntry> {
        let mut hosts = self.hosts();
        self.host(&mut hosts, provider, now).look(now)
    }

    /// Lets one call through.
    pub(super) fn admit<'a>(&'a self, provider: &'a Provider, now: Instant) -> Result<Pass<'a>, NoEntry> {
        let mut hosts = self.hosts();
        let host = self.host(&mut hosts, provider, now);
        host.look(now)?;
        let before = host.circuit.phase();
        let ticket = host.circuit.admit(now).map_err(NoEntry::from)?;
        if let Some(probation) = &mut host.probation {
            probation.next_probe = now + self.policy.open_for;
        }
        note_phase(&provider.host, before, host.circuit.phase());
        Ok(Pass { gate: self, host: &provider.host, ticket: Some(ticket) })
    }

    fn host<'a>(
        &self,
        hosts: &'a mut HashMap<String, HostGate>,
        provider: &Provider,
        now: Instant,
    ) -> &'a mut HostGate {
        let host = match hosts.entry(provider.host.clone()) {
            Slot::Occupied(known) => known.into_mut(),
            Slot::Vacant(unknown) => {
                telemetry::circuit_known(&provider.host);
                unknown.insert(HostGate { circuit: Circuit::new(self.policy), probation: None })
            }
        };
        host.note_refusing(provider, now + self.policy.open_for);
        host
    }

    fn settle(&self, host_name: &str, ticket: Ticket, end: CallEnd, now: Instant) -> Option<Turn> {
        let mut hosts = self.hosts();
        let host = hosts.get_mut(host_name)?;
        let before = host.circuit.phase();
        host.circuit.settle(ticket, end, now);
        let after = host.circuit.phase();
        note_phase(host_name, before, after);
        match (before, after) {
            (Phase::Closed, Phase::Open) => {
                let retry_after = host.circuit.look(now).err().map(|NotNow(wait)| wait);
                Some(Turn::Opened { retry_after: retry_after.unwrap_or_default() })
            }
            (Phase::HalfOpen, Phase::Closed) => Some(Turn::Closed),
            _ => None,
        }
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<String, HostGate>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What upstream is told.
enum Turn {
    Opened { retry_after: Duration },
    Closed,
}

impl HostGate {
    fn look(&self, now: Instant) -> Result<(), NoEntry> {
        match self.probation {
            Some(Probation { since, next_probe }) if now < next_probe => Err(NoEntry::Refusing { since }),
            Some(_) | None => Ok(self.circuit.look(now)?),
        }
    }

    /// Follows what the database says, as far as the provider that was loaded from it says so.
    fn note_refusing(&mut self, provider: &Provider, next_probe: Instant) {
        let known = self.probation.map(|probation| probation.since);
        if known == provider.refusing_since {
            return;
        }
        self.probation = provider.refusing_since.map(|since| Probation { since, next_probe });
        telemetry::host_refusing(&provider.host, provider.refusing_since);
    }
}

fn note_phase(host: &str, before: Phase, after: Phase) {
    if before != after {
        telemetry::circuit_changed(host, before, after);
    }
}

impl From<NotNow> for NoEntry {
    fn from(NotNow(retry_after): NotNow) -> Self {
        Self::Open { retry_after }
    }
}

impl NoEntry {
    /// Why a flight that was not let through brings no new pair.
    pub(super) fn failed(self, order: &Order) -> FailedFlight {
        FailedFlight {
            kind: self.kind(),
            message: self.message(&order.provider),
            retry_after: self.retry_after(),
            certain: !order.entry.is_in_doubt(),
            deadline: order.deadline,
        }
    }

    /// What kind of failure it is.
    pub const fn kind(self) -> FailureKind {
        match self {
            Self::Open { .. } => FailureKind::Unavailable,
            Self::Refusing { .. } => FailureKind::Misconfigured,
        }
    }

    /// When to ask again, where that is known.
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Open { retry_after } => Some(retry_after),
            Self::Refusing { .. } => None,
        }
    }

    /// What it means, in words.
    pub fn message(self, provider: &Provider) -> String {
        let host = &provider.host;
        match self {
            Self::Open { .. } => {
                format!("{host} failed again and again, and is left alone for a while (its circuit is open)")
            }
            Self::Refusing { since } => format!(
                "{host} has refused the refresh token of everybody since {since}, so its settings must be wrong; \
                 correct client_secret or redirect_uri with `tokenkeeper provider apply`"
            ),
        }
    }
}

impl Pass<'_> {
    /// Takes note of how the call went that was made at `at`.
    pub(super) fn settle<T>(mut self, answer: &Result<T, RefreshError>, now: Instant, at: Timestamp) {
        // Dropped as it is where this machine could not ask: the host was not called.
        let Some(end) = call_end(answer, self.gate.retry_after_cap) else { return };
        let Some(ticket) = self.ticket.take() else { return };
        let Some(turn) = self.gate.settle(self.host, ticket, end, now) else { return };
        let host = self.host.to_owned();
        self.gate.events.emit(match turn {
            Turn::Opened { retry_after } => Event::ProviderUnavailable {
                host,
                at,
                retry_after_secs: retry_after.as_secs().max(1),
                reason: answer.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            },
            Turn::Closed => Event::ProviderRecovered { host, at },
        });
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        if let Some(host) = self.gate.hosts().get_mut(self.host) {
            host.circuit.abandon(ticket);
        }
    }
}

/// None: the call did not leave this machine.
fn call_end<T>(answer: &Result<T, RefreshError>, retry_after_cap: Duration) -> Option<CallEnd> {
    Some(match answer {
        Ok(_) | Err(RefreshError::Refused { .. } | RefreshError::Misconfigured { .. }) => CallEnd::Answered,
        Err(RefreshError::Unavailable { retry_after: Some(wish), .. }) if *wish > retry_after_cap => {
            CallEnd::StayAway(*wish)
        }
        Err(RefreshError::Unavailable { .. }) => CallEnd::Unavailable,
        Err(RefreshError::Local { .. }) => return None,
    })
}
