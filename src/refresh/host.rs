//! What this process knows of one host: whether its token endpoint may be called now, and how many refreshes are in flight.
//!
//! A flight looks its [`HostState`] up once. Every call takes a [`CallPermit`] first, which records afterwards how the call
//! went. Other processes share none of this but one fact: that a host refuses everybody. It is in the database
//! (`store/refusal.rs`), and is loaded with the provider.

mod call_slots;
mod circuit;
mod entries;
mod not_permitted;
mod permit;
mod probes;
mod rate_limit;
mod refusals;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use self::call_slots::CallSlots;
use self::circuit::Circuit;
pub use self::circuit::CircuitPolicy;
use self::entries::{EntryStates, Pair};
pub use self::not_permitted::{HeldBack, NotPermitted};
pub(super) use self::permit::CallPermit;
use self::permit::Granted;
use self::probes::Caller;
pub use self::rate_limit::RateLimit;
use self::rate_limit::SlidingWindow;
use self::refusals::Refusals;
use super::{Limits, Order, RefreshOptions};
use crate::broker::events::Events;
use crate::domain::clock::Timestamp;
use crate::domain::provider::Provider;
use crate::store::Entry;
use crate::telemetry::{self, CircuitState};

/// The hosts of this process, by name. Each name is a provider's own host, so there are no more hosts than providers.
#[derive(Debug)]
pub(super) struct Hosts {
    shared: Arc<Shared>,
    known: Mutex<HashMap<String, Arc<HostState>>>,
}

#[derive(Debug)]
struct Shared {
    circuit: CircuitPolicy,
    /// Of each host.
    limit: RateLimit,
    /// The longest `Retry-After` that is waited for.
    retry_after_cap: Duration,
    /// Of the entries of all hosts, so that one bound holds for all of them. Locked after a host's own state.
    entries: Mutex<EntryStates>,
    events: Events,
}

#[derive(Debug)]
pub(super) struct HostState {
    name: String,
    shared: Arc<Shared>,
    slots: CallSlots,
    calls: Mutex<Calls>,
}

/// Which calls may be made.
#[derive(Debug)]
struct Calls {
    circuit: Circuit,
    refusals: Refusals,
    begun: SlidingWindow,
    /// Whether upstream was told that the host is unavailable, and not yet that it is back.
    is_told_unavailable: bool,
}

impl Hosts {
    pub(super) fn new(options: &RefreshOptions, events: Events) -> Self {
        let Limits { per_identity, per_host } = options.limits;
        let shared = Shared {
            circuit: options.circuit,
            limit: per_host,
            retry_after_cap: options.retry.retry_after_cap,
            entries: Mutex::new(EntryStates::new(per_identity)),
            events,
        };
        Self { shared: Arc::new(shared), known: Mutex::default() }
    }

    /// The host of this provider. What the provider was loaded with may be news of the host.
    pub(super) fn of(&self, provider: &Provider, now: Instant) -> Arc<HostState> {
        let host = self.named(&provider.host, now);
        host.follow(provider, now);
        host
    }

    /// Sets the gauges of all circuits.
    pub(super) fn note_circuits(&self, now: Instant) {
        for host in self.known.lock().values() {
            telemetry::circuit_is(&host.name, host.calls().circuit.phase_at(now));
        }
    }

    fn named(&self, name: &str, now: Instant) -> Arc<HostState> {
        let mut known = self.known.lock();
        if let Some(host) = known.get(name) {
            return Arc::clone(host);
        }
        telemetry::host_known(name, &HeldBack::ALL.map(HeldBack::name));
        let calls = Calls {
            circuit: Circuit::new(self.shared.circuit, now),
            refusals: Refusals::default(),
            begun: SlidingWindow::default(),
            is_told_unavailable: false,
        };
        let host = Arc::new(HostState {
            name: name.to_owned(),
            shared: Arc::clone(&self.shared),
            slots: CallSlots::default(),
            calls: Mutex::new(calls),
        });
        known.insert(name.to_owned(), Arc::clone(&host));
        host
    }
}

impl HostState {
    /// Waits for a slot of this host. None: there was not one before `until`.
    pub(super) async fn slot(&self, provider: &Provider, until: Instant) -> Option<OwnedSemaphorePermit> {
        self.slots.acquire(provider.max_concurrent_refreshes, until).await
    }

    /// Whether a refresh of this entry may begin now.
    pub(super) fn check(&self, entry: &Entry, provider: &Provider, now: Instant) -> Result<(), NotPermitted> {
        self.check_first_call(&self.calls(), entry, provider, now)
    }

    /// Whether a refresh that has begun may call again now.
    pub(super) fn check_again(&self, order: &Order, now: Instant) -> Result<(), NotPermitted> {
        self.calls().check(caller(&order.entry, &order.provider), now)
    }

    /// A permit for the first call of a refresh.
    pub(super) fn permit(&self, order: &Order, now: Instant) -> Result<CallPermit<'_>, NotPermitted> {
        let Order { entry, provider, .. } = order;
        let calls = &mut *self.calls();
        self.check_first_call(calls, entry, provider, now)?;
        let caller = caller(entry, provider);
        let granted = calls.grant(caller, &self.name, now)?;
        calls.begun.begin(self.shared.limit, now);
        self.shared.entries.lock().begin(entry.id, now);
        Ok(CallPermit::new(self, caller, Granted { begun: Some(now), ..granted }))
    }

    /// A permit for another call of a refresh that has begun.
    pub(super) fn permit_again(&self, order: &Order, now: Instant) -> Result<CallPermit<'_>, NotPermitted> {
        let caller = caller(&order.entry, &order.provider);
        let granted = self.calls().grant(caller, &self.name, now)?;
        Ok(CallPermit::new(self, caller, granted))
    }

    /// A refresh is given up, because the provider gave no usable answer. `retry_after` is what the provider asked for.
    pub(super) fn back_off(&self, entry: &Entry, retry_after: Option<Duration>, now: Instant) {
        let retry_after = retry_after.map(|wait| wait.min(self.shared.circuit.pause_at_most));
        self.shared.entries.lock().failed(pair(entry), retry_after, now);
    }

    /// Since when the host refuses our client, if it does so again and again.
    pub(super) fn client_refused_since(&self) -> Option<Timestamp> {
        self.calls().refusals.client_refused_since()
    }

    fn check_first_call(
        &self,
        calls: &Calls,
        entry: &Entry,
        provider: &Provider,
        now: Instant,
    ) -> Result<(), NotPermitted> {
        calls.check(caller(entry, provider), now)?;
        let entries = self.shared.entries.lock();
        let held_back = [
            (HeldBack::BackOff, entries.backs_off(pair(entry), now)),
            (HeldBack::IdentityLimit, entries.over_limit(entry.id, now)),
            (HeldBack::HostLimit, calls.begun.wait(self.shared.limit, now)),
        ];
        match held_back.into_iter().find_map(|(by, wait)| Some((by, wait?))) {
            Some((by, retry_after)) => Err(NotPermitted::HeldBack { by, retry_after }),
            None => Ok(()),
        }
    }

    /// Takes over what the database says, as this provider was loaded from it.
    fn follow(&self, provider: &Provider, now: Instant) {
        let since = provider.refusing_since;
        let is_news = {
            let refusals = &mut self.calls().refusals;
            refusals.follow_settings(provider.updated_at);
            refusals.follow(since, now + self.shared.circuit.open_for)
        };
        if is_news {
            telemetry::host_refusing(&self.name, since);
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock()
    }
}

impl Calls {
    fn check(&self, caller: Caller, now: Instant) -> Result<(), NotPermitted> {
        self.refusals.check(caller, now)?;
        Ok(self.circuit.check(caller, now)?)
    }

    fn grant(&mut self, caller: Caller, host: &str, now: Instant) -> Result<Granted, NotPermitted> {
        self.check(caller, now)?;
        let before = self.circuit.phase();
        let circuit = self.circuit.acquire(caller, now)?;
        note_phase(host, before, self.circuit.phase());
        let probe = self.refusals.begin(caller, now);
        Ok(Granted { circuit, probe, begun: None })
    }
}

fn caller(entry: &Entry, provider: &Provider) -> Caller {
    Caller { entry: entry.id, proven: entry.was_refreshed_by(provider) }
}

const fn pair(entry: &Entry) -> Pair {
    Pair { entry: entry.id, generation: entry.generation }
}

fn note_phase(host: &str, before: CircuitState, after: CircuitState) {
    if before != after {
        telemetry::circuit_changed(host, before, after);
    }
}
