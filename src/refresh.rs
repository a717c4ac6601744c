//! REFRESH: lease, provider call with retries, store; one flight per identity.
//!
//! A *flight* is one attempt to refresh an entry. All requests of this process that need a new pair join it. It runs as a task
//! of its own: a request that stops waiting does not stop it, because the provider may have rotated the pair already. Across
//! replicas, the lease in the row allows one flight at a time (invariant 2).

mod call;
mod flight;
mod flights;
mod follow_up;
mod host;
mod lease_guard;
mod lifetime;
mod save;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::flight::FlightContext;
use self::flights::Flights;
pub use self::flights::{InFlight, Role};
use self::host::Hosts;
pub use self::host::{CircuitPolicy, HeldBack, NotPermitted, RateLimit};
use crate::broker::events::Events;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::decide::Cause;
use crate::domain::provider::Provider;
use crate::journal::Journal;
use crate::limits::bulkhead::{Bulkhead, Quotas};
use crate::oauth::TokenClient;
use crate::parking::Parking;
use crate::retry::{Backoff, RetryPolicy};
use crate::settings::{RefreshSettings, WorkerSettings};
use crate::store::{Entry, FailureKind, Store, StoreError};
use crate::telemetry::audit::Refreshed;

/// The longest time that a circuit stays open by itself.
const OPEN_AT_MOST: Duration = Duration::from_secs(60);

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct RefreshOptions {
    /// How long a lease lives without a heartbeat. Shorter than the wait for another worker's refresh, so that requests outlast
    /// a worker that died.
    pub lease_ttl: Duration,
    /// How long a request waits for somebody else's refresh.
    pub wait: Duration,
    /// How long an opportunistic refresh may go on trying while a valid token is at hand.
    pub opportunistic_budget: Duration,
    pub retry: RetryPolicy,
    pub circuit: CircuitPolicy,
    pub limits: Limits,
    pub quotas: Quotas,
}

/// How many refreshes one worker may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of one identity.
    pub per_identity: RateLimit,
    /// Of all identities at one host.
    pub per_host: RateLimit,
}

/// Where pairs and events go, beside the database.
#[derive(Debug, Clone)]
pub struct Outlets {
    /// Pairs that the database does not take before the worker must stop.
    pub parking: Parking,
    /// Every pair, in case that the database goes back.
    pub journal: Journal,
    /// What upstream wants to hear of.
    pub events: Events,
}

/// Refreshes entries. A process has one, because requests join flights within it.
pub struct Refresher {
    context: Arc<FlightContext>,
    bulkhead: Bulkhead,
    flights: Flights,
    tracker: TaskTracker,
}

/// An order to refresh an entry.
#[derive(Debug, Clone)]
pub struct Order {
    /// Whose token it is; for events.
    pub user_id: String,
    /// The entry as it was decided on.
    pub entry: Entry,
    /// Where it is refreshed.
    pub provider: Arc<Provider>,
    pub cause: Cause,
    /// Until when the new pair is reserved.
    pub until: Timestamp,
    /// When the request stops waiting. No try begins after it.
    pub deadline: Instant,
}

impl Order {
    /// As the audit log has it.
    fn audited(&self) -> Refreshed<'_> {
        let cause = match self.cause {
            Cause::Required => "required",
            Cause::Opportunistic => "opportunistic",
            Cause::Reported => "reported",
        };
        let generation = self.entry.generation;
        Refreshed { user: &self.user_id, host: &self.provider.host, cause, generation }
    }
}

#[derive(Debug, Clone)]
pub enum FlightOutcome {
    /// A new pair is stored: this is the entry now.
    Refreshed(Arc<Entry>),
    Failed(Arc<FailedFlight>),
    /// The database failed before the provider was asked, or did not take the new pair, which is parked.
    StoreFailed(Arc<StoreError>),
    /// The entry has changed since the decision, or nobody refreshes it any more: decide again.
    Moved,
    /// The flight met a bug. Its lease ends by itself, and the row tells what it did.
    Panicked,
}

/// A flight that brought no new pair.
#[derive(Debug, Clone)]
pub struct FailedFlight {
    pub kind: FailureKind,
    /// What it was, in words; never a secret.
    pub message: String,
    /// The pause that the provider asked for.
    pub retry_after: Option<Duration>,
    /// Whether the provider certainly did not act, so that the stored token is still good.
    pub certain: bool,
    /// When it would have given up in any case.
    pub deadline: Instant,
}

impl RefreshOptions {
    pub fn new(settings: &RefreshSettings, worker: &WorkerSettings) -> Self {
        Self {
            lease_ttl: settings.lease_ttl,
            wait: settings.wait,
            opportunistic_budget: settings.opportunistic_budget,
            retry: RetryPolicy {
                backoff: Backoff::doubling(settings.retry_initial, settings.retry_max),
                retry_after_cap: settings.retry_after_cap,
            },
            circuit: CircuitPolicy {
                failures: settings.circuit.failures,
                open_for: settings.circuit.open_for,
                open_at_most: OPEN_AT_MOST.max(settings.circuit.open_for),
                pause_at_most: settings.retry_after_most,
            },
            limits: Limits {
                per_identity: RateLimit { most: settings.identity_limit_per_minute, within: MINUTE },
                per_host: RateLimit { most: settings.host_limit_per_second, within: SECOND },
            },
            quotas: Quotas::of_prefetch(worker),
        }
    }
}

impl Refresher {
    /// A refresher whose flights are tasks of `tracker`, and give up their waits when `hard_stop` fires.
    pub fn new(
        store: Store,
        client: TokenClient,
        clock: Arc<dyn Clock>,
        options: RefreshOptions,
        outlets: Outlets,
        tracker: TaskTracker,
        hard_stop: CancellationToken,
    ) -> Self {
        let Outlets { parking, journal, events } = outlets;
        let bulkhead = Bulkhead::new(options.quotas);
        let hosts = Hosts::new(&options, events.clone());
        let context =
            FlightContext { store, client, clock, options, hard_stop, parking, journal, hosts, events };
        Self { context: Arc::new(context), bulkhead, flights: Flights::default(), tracker }
    }

    pub fn options(&self) -> &RefreshOptions {
        &self.context.options
    }

    /// Whether a refresh of this entry may begin now, or is under way.
    pub fn check(&self, entry: &Entry, provider: &Provider) -> Result<(), NotPermitted> {
        if self.flights.is_under_way(entry.id) {
            return Ok(());
        }
        let now = Instant::now();
        self.context.hosts.of(provider, now).check(entry, provider, now)
    }

    /// Sets the gauges of the hosts' circuits, which change with time alone.
    pub fn note_circuits(&self) {
        self.context.hosts.note_circuits(Instant::now());
    }

    pub const fn bulkhead(&self) -> &Bulkhead {
        &self.bulkhead
    }

    /// Joins the flight of this entry, or starts one that refreshes it.
    pub fn refresh(&self, order: Order) -> InFlight {
        self.flights.join_or_start(order.entry.id, &self.tracker, |waiters| {
            let outstanding = self.bulkhead.flight_began(&order.provider.host, Instant::now());
            let context = Arc::clone(&self.context);
            let flight = context.prepare(order);
            async move {
                let outcome = context.run(flight, &waiters).await;
                drop(outstanding);
                outcome
            }
        })
    }

    /// Joins the flight of this entry, or starts one that watches another worker's lease until it is gone.
    pub fn watch(&self, entry: &Entry) -> InFlight {
        let entry_id = entry.id;
        self.flights.join_or_start(entry_id, &self.tracker, |_| {
            let context = Arc::clone(&self.context);
            async move { context.watch(entry_id).await }
        })
    }
}
