//! One flight, step by step: slot, permit, lease, provider call under a heartbeat, store or give up.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::call::{CallEnd, Spent, new_pair};
use super::flights::Waiters;
use super::host::{CallPermit, HeldBack, HostState, Hosts};
use super::lease_guard::LeaseGuard;
use super::{FailedFlight, FlightOutcome, Order, RefreshOptions};
use crate::broker::events::Events;
use crate::domain::clock::Clock;
use crate::domain::decide::Cause;
use crate::domain::provider::Provider;
use crate::domain::secret::{SecretString, fingerprint};
use crate::journal::Journal;
use crate::oauth::TokenClient;
use crate::parking::Parking;
use crate::retry::Backoff;
use crate::store::{Entry, Failure, FailureKind, Guarded, Store};
use crate::telemetry::{self, Statement, audit};

/// How often to look at another worker's lease: soon at first, because most refreshes are quick.
const WATCH: Backoff = Backoff {
    initial_interval: Duration::from_millis(30),
    max_interval: Duration::from_millis(300),
    multiplier: 1.5,
    jitter: 0.5,
};

/// How long a refusal after a lost answer waits for the new pair before it condemns the entry. A worker that was frozen may
/// still store the pair, or it may be parked.
const NEWER_PAIR_WITHIN: Duration = Duration::from_secs(3);

/// What every flight of a process works with.
pub(super) struct FlightContext {
    pub(super) store: Store,
    pub(super) client: TokenClient,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) options: RefreshOptions,
    pub(super) hard_stop: CancellationToken,
    pub(super) parking: Parking,
    pub(super) journal: Journal,
    pub(super) hosts: Hosts,
    pub(super) events: Events,
}

pub(super) struct Flight {
    pub(super) order: Order,
    /// Where it calls.
    pub(super) host: Arc<HostState>,
    /// Its name in the lease. It is unique, so that no check takes an earlier flight of this process for this one.
    pub(super) holder: String,
}

impl FlightContext {
    pub(super) fn prepare(&self, order: Order) -> Flight {
        let now = Instant::now();
        let deadline = match order.cause {
            Cause::Required | Cause::Reported => order.deadline,
            Cause::Opportunistic => order.deadline.min(now + self.options.opportunistic_budget),
        };
        let host = self.hosts.of(&order.provider, now);
        Flight { order: Order { deadline, ..order }, host, holder: Uuid::new_v4().to_string() }
    }

    /// Refreshes an entry, unless nobody waits for it any more.
    ///
    /// Rare futures are boxed, because each flight is a task and would carry their size.
    pub(super) async fn run(&self, flight: Flight, waiters: &Waiters) -> FlightOutcome {
        let Flight { order, host, holder } = &flight;
        let Some(_slot) = host.slot(&order.provider, order.deadline).await else {
            return FlightOutcome::Failed(Arc::new(busy(order)));
        };
        let permit = match host.permit(order, Instant::now()) {
            Ok(permit) => permit,
            Err(not_permitted) => {
                telemetry::refresh_not_begun(
                    &order.provider.host,
                    not_permitted.held_back().map(HeldBack::name),
                );
                return FlightOutcome::Failed(Arc::new(not_permitted.failed(order)));
            }
        };
        // The requests may all have been answered while the flight waited for the slot. A refresh would kill a token in vain.
        if !waiters.any() {
            return FlightOutcome::Moved;
        }
        let refresh_token = match self.store.open_refresh_token(&order.entry) {
            Ok(Some(refresh_token)) => refresh_token,
            Ok(None) => return FlightOutcome::Moved,
            Err(error) => return FlightOutcome::StoreFailed(Arc::new(error)),
        };
        let attempt = fingerprint(&refresh_token);
        // The database went back, or somebody put an old row back. The next round sees to it.
        let journal = &self.journal;
        if !journal.opened_by(order.deadline).await
            || !journal.is_where_it_was().await
            || journal.is_ahead_of(&order.provider.host, &order.entry)
        {
            return FlightOutcome::Moved;
        }
        let now = self.clock.now();
        let ttl = self.options.lease_ttl;
        let unless_reserved_beyond = order.cause.unless_reserved_beyond(order.provider.old_token_grace, now);
        let taken =
            self.store.take_lease(&order.entry, unless_reserved_beyond, holder, &attempt, now, ttl).await;
        match taken {
            Ok(Guarded::Done) => {}
            Ok(Guarded::Moved) => {
                telemetry::lost_compare_and_set(Statement::TakeLease);
                return FlightOutcome::Moved;
            }
            Err(error) => return FlightOutcome::StoreFailed(error),
        }
        if journal.is_spent(&order.provider.host, &order.user_id, &attempt) {
            return Box::pin(self.give_up(&flight, &refresh_token, spent_before(order))).await;
        }
        let lease_guard = LeaseGuard::until(now.plus(ttl));
        let spent = Spent::new(&refresh_token, order, now);
        let outcome = tokio::select! {
            outcome = self.refresh_under_lease(&flight, &spent, &lease_guard, permit) => outcome,
            never = self.keep_lease(&flight, &lease_guard) => match never {},
        };
        if let FlightOutcome::Refreshed(entry) = &outcome {
            self.after_success(order, entry).await;
            Box::pin(self.validate(order, entry)).await;
        }
        outcome
    }

    /// Watches an entry until nobody refreshes it any more, or the longest wait is over.
    pub(super) async fn watch(&self, entry_id: i64) -> FlightOutcome {
        let until = Instant::now() + self.options.wait;
        let has_live_lease = |entry: Entry| entry.has_live_lease(self.clock.now());
        self.poll(entry_id, until, |entry| !entry.is_some_and(has_live_lease)).await;
        FlightOutcome::Moved
    }

    /// Polls an entry until `is_over` is true of it, at most until then. Returns whether it was.
    async fn poll(&self, entry_id: i64, until: Instant, is_over: impl Fn(Option<Entry>) -> bool) -> bool {
        let mut delays = WATCH.delays();
        while delays.wait_before(until).await {
            match self.store.reload(entry_id).await {
                Ok(entry) => {
                    if is_over(entry) {
                        return true;
                    }
                }
                // The database is away for a moment. The waiting requests have deadlines of their own.
                Err(error) => telemetry::lease_not_kept(&error),
            }
        }
        false
    }

    async fn refresh_under_lease(
        &self,
        flight: &Flight,
        spent: &Spent<'_>,
        lease_guard: &LeaseGuard,
        permit: CallPermit<'_>,
    ) -> FlightOutcome {
        let started = Instant::now();
        match self.call_provider(flight, spent, lease_guard, permit).await {
            Ok(issue) => {
                let pair = new_pair(&flight.order, issue, spent.token);
                // The database goes first, and no pair is handed out before the journal has it too.
                let (Order { provider, entry, .. }, attempt) = (&flight.order, fingerprint(spent.token));
                let journalled = self.journal.refreshed(&provider.host, entry, &pair, &attempt);
                let (outcome, ()) = tokio::join!(self.save_pair(flight, pair.clone(), started), journalled);
                outcome
            }
            Err(CallEnd::LeaseLost) => FlightOutcome::Moved,
            Err(CallEnd::Failed(failed)) => {
                let host = &flight.order.provider.host;
                telemetry::refresh_failed(host, failed.kind.name(), &failed.message, started.elapsed());
                audit::not_refreshed(flight.order.audited(), failed.kind.name());
                Box::pin(self.give_up(flight, spent.token, failed)).await
            }
        }
    }

    /// Gives the lease back and records the failure. If the row has changed, the failure says nothing about the pair that is
    /// there now.
    async fn give_up(
        &self,
        flight: &Flight,
        refresh_token: &SecretString,
        failed: FailedFlight,
    ) -> FlightOutcome {
        let Flight { order, holder, .. } = flight;
        let failure = Failure {
            kind: failed.kind,
            message: failed.message.clone(),
            fingerprint: fingerprint(refresh_token),
            at: self.clock.now(),
        };
        if failed.kind == FailureKind::Interrupted && self.is_superseded(&order.entry).await {
            return FlightOutcome::Moved;
        }
        // A refused refresh token settles the doubt: the provider has acted.
        let settled = failed.certain || failed.kind.condemns_refresh_token();
        let gave_up = if settled {
            self.store.give_up(&order.entry, holder, &failure).await
        } else {
            self.store.give_up_in_doubt(&order.entry, holder, &failure).await
        };
        match gave_up {
            // Guarded by the generation: had a newer pair turned up, the refusal would say nothing about it.
            Ok(Guarded::Done) => self.after_failure(flight, &failure, failed).await,
            Ok(Guarded::Moved) => {
                telemetry::lost_compare_and_set(Statement::GiveUp);
                if settled {
                    self.release(flight).await;
                }
                FlightOutcome::Moved
            }
            Err(error) => {
                // The lease ends by itself, and the next refresh meets the failure again.
                telemetry::lease_not_kept(&error);
                FlightOutcome::Failed(Arc::new(failed))
            }
        }
    }

    /// Whether a newer pair is stored within a short while.
    async fn is_superseded(&self, entry: &Entry) -> bool {
        let until = Instant::now() + NEWER_PAIR_WITHIN;
        let is_newer = |current: Entry| current.generation != entry.generation;
        self.poll(entry.id, until, |current| current.is_some_and(is_newer)).await
    }
}

/// An old pair was stored anew: its refresh token is not sent, because the host would only refuse it.
fn spent_before(order: &Order) -> FailedFlight {
    FailedFlight {
        // Not the provider's refusal, so it says nothing about the provider.
        kind: FailureKind::Interrupted,
        message: "an earlier refresh has spent the stored refresh token".to_owned(),
        retry_after: None,
        certain: true,
        deadline: order.deadline,
    }
}

fn busy(order: &Order) -> FailedFlight {
    let Provider { host, max_concurrent_refreshes, .. } = &*order.provider;
    FailedFlight {
        kind: FailureKind::Unavailable,
        message: format!(
            "{max_concurrent_refreshes} refreshes are in flight at {host}, and none ended in time"
        ),
        retry_after: None,
        certain: !order.entry.is_in_doubt(),
        deadline: order.deadline,
    }
}
