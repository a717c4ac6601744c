//! Who may call a token endpoint now: the circuit of each host, the probes of a host that refuses everybody, and what
//! holds single entries back.
//!
//! Every call takes a [`Pass`] first and says afterwards how it went. What is decided here is known to this process
//! alone, except that a host refuses everybody: that stands in the database (`store/refusal.rs`) and comes with the
//! provider.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::time::Duration;

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::circuit::{CallEnd, Circuit, MOST_FAILING, Phase, Ticket};
use super::no_entry::{HeldBack, NoEntry};
use super::pace::{Begun, Pace};
use super::probes::{Caller, Candidate, NotNow, Probe, Probes};
use super::standing::{Pair, Standings};
use super::{CircuitPolicy, Limits, Order};
use crate::broker::events::Events;
use crate::contract::Event;
use crate::domain::clock::Timestamp;
use crate::domain::provider::Provider;
use crate::oauth::RefreshError;
use crate::store::Entry;
use crate::telemetry;

/// Decides which calls are made.
#[derive(Debug)]
pub(super) struct Gate {
    policy: CircuitPolicy,
    /// Of each host.
    pace: Pace,
    /// The longest `Retry-After` that is waited for.
    retry_after_cap: Duration,
    inside: Mutex<Inside>,
    events: Events,
}

#[derive(Debug)]
struct Inside {
    hosts: HashMap<String, HostGate>,
    standings: Standings,
}

#[derive(Debug)]
struct HostGate {
    circuit: Circuit,
    /// Some while the host is known to refuse everybody.
    probation: Option<Probation>,
    /// Who was refused and has not been refreshed since, and from when each may be a probe.
    refused: LruCache<i64, Instant>,
    begun: Begun,
}

/// A host that refuses everybody is asked again now and then.
#[derive(Debug)]
struct Probation {
    since: Timestamp,
    probes: Probes,
}

/// The right to make one call. Dropped without a word, it was not made.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    host: &'a str,
    caller: Caller,
    /// Taken when it is said how the call went.
    permit: Option<Permit>,
}

#[derive(Debug, Clone, Copy)]
struct Permit {
    ticket: Ticket,
    /// The probe of a host that refuses everybody.
    probe: Option<Probe>,
    /// When the refresh began that this is the first call of.
    begun: Option<Instant>,
}

impl Gate {
    pub(super) fn new(
        policy: CircuitPolicy,
        limits: Limits,
        retry_after_cap: Duration,
        events: Events,
    ) -> Self {
        let inside = Inside { hosts: HashMap::new(), standings: Standings::new(limits.per_identity) };
        Self { policy, pace: limits.per_host, retry_after_cap, inside: Mutex::new(inside), events }
    }

    /// Whether a refresh of this entry could begin now.
    pub(super) fn look(&self, entry: &Entry, provider: &Provider, now: Instant) -> Result<(), NoEntry> {
        let inside = &mut *self.inside();
        self.look_inside(inside, entry, provider, now).map(drop)
    }

    /// The host, where a refresh of this entry could begin now, with what is known of entries.
    fn look_inside<'a>(
        &self,
        inside: &'a mut Inside,
        entry: &Entry,
        provider: &Provider,
        now: Instant,
    ) -> Result<(&'a mut HostGate, &'a mut Standings), NoEntry> {
        let Inside { hosts, standings } = inside;
        let host = self.host(hosts, provider, now);
        host.look(caller(entry, provider), now)?;
        let held_back = [
            (HeldBack::BackOff, standings.backs_off(pair(entry), now)),
            (HeldBack::IdentityLimit, standings.over_limit(entry.id, now)),
            (HeldBack::HostLimit, host.begun.wait(self.pace, now)),
        ];
        match held_back.into_iter().find_map(|(by, wait)| Some((by, wait?))) {
            Some((by, retry_after)) => Err(NoEntry::HeldBack { by, retry_after }),
            None => Ok((host, standings)),
        }
    }

    /// Whether one that has begun could be tried again now.
    pub(super) fn look_again(&self, order: &Order, now: Instant) -> Result<(), NoEntry> {
        let Order { entry, provider, .. } = order;
        let inside = &mut *self.inside();
        self.host(&mut inside.hosts, provider, now).look(caller(entry, provider), now)
    }

    /// Lets the first call of a refresh through.
    pub(super) fn admit<'a>(&'a self, order: &'a Order, now: Instant) -> Result<Pass<'a>, NoEntry> {
        let Order { entry, provider, .. } = order;
        let inside = &mut *self.inside();
        let (host, standings) = self.look_inside(inside, entry, provider, now)?;
        let permit = host.admit(caller(entry, provider), &provider.host, now)?;
        host.begun.begin(self.pace, now);
        standings.begin(entry.id, now);
        Ok(self.pass(order, Permit { begun: Some(now), ..permit }))
    }

    /// Lets one that has begun be tried again.
    pub(super) fn admit_again<'a>(&'a self, order: &'a Order, now: Instant) -> Result<Pass<'a>, NoEntry> {
        let Order { entry, provider, .. } = order;
        let inside = &mut *self.inside();
        let host = self.host(&mut inside.hosts, provider, now);
        let permit = host.admit(caller(entry, provider), &provider.host, now)?;
        Ok(self.pass(order, permit))
    }

    /// A refresh is given up, because the provider gave no usable answer and asked for `wish`.
    pub(super) fn back_off(&self, entry: &Entry, wish: Option<Duration>, now: Instant) {
        let wish = wish.map(|wish| wish.min(self.policy.stay_at_most));
        self.inside().standings.failed(pair(entry), wish, now);
    }

    fn pass<'a>(&'a self, order: &'a Order, permit: Permit) -> Pass<'a> {
        let Order { entry, provider, .. } = order;
        Pass { gate: self, host: &provider.host, caller: caller(entry, provider), permit: Some(permit) }
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
                telemetry::circuit_known(&provider.host, &HeldBack::ALL.map(HeldBack::name));
                unknown.insert(HostGate {
                    circuit: Circuit::new(self.policy, now),
                    probation: None,
                    refused: LruCache::new(MOST_FAILING),
                    begun: Begun::default(),
                })
            }
        };
        host.note_refusing(provider, now + self.policy.open_for);
        host
    }

    fn settle(
        &self,
        host_name: &str,
        caller: Caller,
        permit: Permit,
        answer: Answer,
        now: Instant,
    ) -> Option<Turn> {
        let inside = &mut *self.inside();
        let host = inside.hosts.get_mut(host_name)?;
        host.note_answer(caller, permit.probe, answer, now + self.policy.open_for);
        let end = match answer {
            Answer::Pair | Answer::Refusal | Answer::Misconfigured => {
                inside.standings.answered(caller.entry);
                CallEnd::Answered
            }
            Answer::None { retry_after: Some(wish) } if wish > self.retry_after_cap => {
                CallEnd::StayAway(wish)
            }
            Answer::None { .. } => CallEnd::Unavailable,
        };
        let before = host.circuit.phase();
        host.circuit.settle(permit.ticket, end, now);
        let after = host.circuit.phase();
        note_phase(host_name, before, after);
        match (before, after) {
            (Phase::Closed, Phase::Open) => {
                // As whoever was never refreshed here is told.
                let stranger = Caller { entry: i64::MIN, proven: false };
                let retry_after = host.circuit.look(stranger, now).err().map(|NotNow(wait)| wait);
                Some(Turn::Opened { retry_after: retry_after.unwrap_or_default() })
            }
            (Phase::HalfOpen, Phase::Closed) => Some(Turn::Closed),
            _ => None,
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }
}

/// What a token endpoint said.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Pair,
    Refusal,
    Misconfigured,
    None { retry_after: Option<Duration> },
}

/// What upstream is told.
enum Turn {
    Opened { retry_after: Duration },
    Closed,
}

impl HostGate {
    fn look(&self, caller: Caller, now: Instant) -> Result<(), NoEntry> {
        if let Some(Probation { since, probes }) = &self.probation
            && probes.look(self.candidate(caller), now).is_err()
        {
            return Err(NoEntry::Refusing { since: *since });
        }
        Ok(self.circuit.look(caller, now)?)
    }

    fn admit(&mut self, caller: Caller, host_name: &str, now: Instant) -> Result<Permit, NoEntry> {
        self.look(caller, now)?;
        let before = self.circuit.phase();
        let ticket = self.circuit.admit(caller, now)?;
        note_phase(host_name, before, self.circuit.phase());
        let candidate = self.candidate(caller);
        let probe = self.probation.as_mut().map(|probation| probation.probes.begin(candidate, now));
        Ok(Permit { ticket, probe, begun: None })
    }

    /// As a probe of a host that refuses everybody.
    fn candidate(&self, caller: Caller) -> Candidate {
        match self.refused.peek(&caller.entry) {
            Some(again_from) => Candidate::Failed { again_from: *again_from },
            None if caller.proven => Candidate::Proven,
            None => Candidate::Unproven,
        }
    }

    /// What a call says about whether the host refuses everybody. `again_from`: when the next probe may come if this
    /// was one and failed.
    fn note_answer(&mut self, caller: Caller, probe: Option<Probe>, answer: Answer, again_from: Instant) {
        match answer {
            Answer::Pair => drop(self.refused.pop(&caller.entry)),
            Answer::Refusal => drop(self.refused.push(caller.entry, again_from)),
            Answer::Misconfigured | Answer::None { .. } => {}
        }
        if let (Some(probation), Some(probe)) = (&mut self.probation, probe) {
            probation.probes.end(probe);
            match answer {
                Answer::Pair => {}
                Answer::Refusal | Answer::Misconfigured | Answer::None { .. } => {
                    probation.probes.hold_back(probe.candidate, again_from);
                }
            }
        }
    }

    /// Follows what the database says, as far as the provider that was loaded from it says so.
    fn note_refusing(&mut self, provider: &Provider, next_probe: Instant) {
        let known = self.probation.as_ref().map(|probation| probation.since);
        if known == provider.refusing_since {
            return;
        }
        self.probation =
            provider.refusing_since.map(|since| Probation { since, probes: Probes::new(next_probe) });
        telemetry::host_refusing(&provider.host, provider.refusing_since);
    }
}

fn caller(entry: &Entry, provider: &Provider) -> Caller {
    Caller { entry: entry.id, proven: entry.was_refreshed_by(provider) }
}

const fn pair(entry: &Entry) -> Pair {
    Pair { entry: entry.id, generation: entry.generation }
}

fn note_phase(host: &str, before: Phase, after: Phase) {
    if before != after {
        telemetry::circuit_changed(host, before.into(), after.into());
    }
}

impl Pass<'_> {
    /// Takes note of how the call went that was made at `at`.
    pub(super) fn settle<T>(mut self, answer: &Result<T, RefreshError>, now: Instant, at: Timestamp) {
        let said = match answer {
            Ok(_) => Answer::Pair,
            Err(RefreshError::Refused { .. }) => Answer::Refusal,
            Err(RefreshError::Misconfigured { .. }) => Answer::Misconfigured,
            Err(RefreshError::Unavailable { retry_after, .. }) => Answer::None { retry_after: *retry_after },
            Err(RefreshError::Unreadable { .. }) => Answer::None { retry_after: None },
            // Dropped as it is, where this machine could not ask: the host was not called.
            Err(RefreshError::Local { .. }) => return,
        };
        let Some(permit) = self.permit.take() else { return };
        let Some(turn) = self.gate.settle(self.host, self.caller, permit, said, now) else { return };
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
        let Some(Permit { ticket, probe, begun }) = self.permit.take() else { return };
        let inside = &mut *self.gate.inside();
        let Some(host) = inside.hosts.get_mut(self.host) else { return };
        host.circuit.abandon(ticket);
        if let (Some(probation), Some(probe)) = (&mut host.probation, probe) {
            probation.probes.end(probe);
        }
        if let Some(begun) = begun {
            host.begun.take_back(begun);
            inside.standings.take_back(self.caller.entry, begun);
        }
    }
}
