//! One flight, step by step: permit, lease, provider call under a heartbeat, store or give up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::flights::Passengers;
use super::gate::{Gate, Pass};
use super::lifetime::{Lifetime, lifetime};
use super::no_entry::NoEntry;
use super::permits::HostPermits;
use super::tenure::Tenure;
use super::{FailedFlight, Landing, Order, RefreshOptions};
use crate::clock::{Clock, Timestamp};
use crate::decide::Cause;
use crate::events::Events;
use crate::oauth::{Acted, IssuedPair, RefreshError, TokenClient};
use crate::parking::Parking;
use crate::provider::Provider;
use crate::retry::{Backoff, RetryEnd, Verdict, retry};
use crate::secret::{SecretString, fingerprint};
use crate::store::{Entry, Failure, FailureKind, Guarded, NewPair, PairSource, Store};
use crate::telemetry::{self, Statement};

/// How often a lease of another worker is looked at: soon at first, since most refreshes are quick.
const WATCH: Backoff = Backoff {
    initial_interval: Duration::from_millis(30),
    max_interval: Duration::from_millis(300),
    multiplier: 1.5,
    jitter: 0.5,
};

/// How long a refusal after a lost answer waits for the pair to turn up before it condemns: in the hands of a worker
/// that was frozen and is thawed, or parked while the database was away.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// What every flight of a process works with.
pub(super) struct Crew {
    pub(super) store: Store,
    pub(super) client: TokenClient,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) options: RefreshOptions,
    pub(super) hard_stop: CancellationToken,
    pub(super) permits: HostPermits,
    pub(super) parking: Parking,
    pub(super) gate: Gate,
    pub(super) events: Events,
}

/// A pair as the provider issued it, with the time from which its lifetime counts.
struct Issue {
    pair: IssuedPair,
    /// Before the request was sent: the provider counts from some later moment, so a token is never thought to
    /// live longer than it does.
    asked_at: Timestamp,
}

/// Why a call of the token endpoint brought nothing.
#[derive(Debug, thiserror::Error)]
enum CallError {
    /// It was not made: another worker may be at it by now.
    #[error("the refresh lease is over")]
    LeaseLost,
    #[error(transparent)]
    Provider(RefreshError),
    /// It was not made: the provider is left alone.
    #[error("the provider is left alone")]
    NotLetThrough(NoEntry),
}

/// How the calls of a flight ended without a pair.
enum CallEnd {
    LeaseLost,
    Failed(FailedFlight),
}

impl Crew {
    /// Refreshes an entry, if anybody waits for it by the time it could. `holder` names this flight in the lease.
    ///
    /// What seldom happens in a flight goes into a box: each flight is a task, and would carry the room for all of it.
    pub(super) async fn fly(&self, order: Order, holder: &str, passengers: &Passengers) -> Landing {
        let order = Order { deadline: self.deadline(&order), ..order };
        let Some(_permit) = self.permits.acquire(&order.provider, order.deadline).await else {
            return Landing::Failed(Arc::new(busy(&order)));
        };
        let pass = match self.gate.admit(&order, Instant::now()) {
            Ok(pass) => pass,
            Err(no_entry) => {
                telemetry::refresh_not_begun(&order.provider.host, no_entry);
                return Landing::Failed(Arc::new(no_entry.failed(&order)));
            }
        };
        // They may all have been answered while it waited for the permit: it would kill a token for nobody.
        if !passengers.any() {
            return Landing::Moved;
        }
        let refresh_token = match self.store.open_refresh_token(&order.entry) {
            Ok(Some(refresh_token)) => refresh_token,
            Ok(None) => return Landing::Moved,
            Err(error) => return Landing::StoreFailed(Arc::new(error)),
        };
        let now = self.clock.now();
        let ttl = self.options.lease_ttl;
        let attempt = fingerprint(&refresh_token);
        match self.store.take_lease(&order.entry, order.cause, holder, &attempt, now, ttl).await {
            Ok(Guarded::Done) => {}
            Ok(Guarded::Moved) => {
                telemetry::lost_compare_and_set(Statement::TakeLease);
                return Landing::Moved;
            }
            Err(error) => return Landing::StoreFailed(error),
        }
        let tenure = Tenure::until(now.plus(ttl));
        let landing = tokio::select! {
            landing = self.refresh_under_lease(&order, holder, &refresh_token, &tenure, pass) => landing,
            never = self.keep_lease(&order.entry, holder, &tenure) => match never {},
        };
        if let Landing::Refreshed(entry) = &landing {
            self.after_success(&order, entry).await;
        }
        landing
    }

    /// Looks at an entry until nobody refreshes it any more, or the longest wait is over.
    pub(super) async fn watch(&self, entry_id: i64) -> Landing {
        let until = Instant::now() + self.options.wait;
        for delay in WATCH.delays() {
            if Instant::now() + delay >= until {
                break;
            }
            sleep(delay).await;
            match self.store.reload(entry_id).await {
                Ok(Some(entry)) if entry.has_live_lease(self.clock.now()) => {}
                Ok(_) => return Landing::Moved,
                // The database is away for a moment; whoever waits has a deadline of their own.
                Err(error) => telemetry::lease_not_kept(&error),
            }
        }
        Landing::Moved
    }

    fn deadline(&self, order: &Order) -> Instant {
        match order.cause {
            Cause::Required => order.deadline,
            Cause::Opportunistic => order.deadline.min(Instant::now() + self.options.opportunistic_budget),
        }
    }

    async fn refresh_under_lease(
        &self,
        order: &Order,
        holder: &str,
        refresh_token: &SecretString,
        tenure: &Tenure,
        pass: Pass<'_>,
    ) -> Landing {
        let started = Instant::now();
        match self.call_provider(order, holder, refresh_token, tenure, pass).await {
            Ok(issue) => {
                let pair = new_pair(order, issue, refresh_token);
                self.keep_pair(order, holder, pair, started).await
            }
            Err(CallEnd::LeaseLost) => Landing::Moved,
            Err(CallEnd::Failed(flight)) => {
                let host = &order.provider.host;
                telemetry::refresh_failed(host, flight.kind, &flight.message, started.elapsed());
                Box::pin(self.give_up(order, holder, refresh_token, flight)).await
            }
        }
    }

    /// Calls the token endpoint, again where that makes sense, and says how certain a failure is.
    async fn call_provider(
        &self,
        order: &Order,
        holder: &str,
        refresh_token: &SecretString,
        tenure: &Tenure,
        pass: Pass<'_>,
    ) -> Result<Issue, CallEnd> {
        let provider = &order.provider;
        // An answer that was lost on the way may have been a new pair, also one to an earlier flight whose worker
        // died, or which gave up in doubt.
        let answer_lost = AtomicBool::new(order.entry.is_in_doubt());
        let answer_lost = &answer_lost;
        let calls = AtomicU32::new(0);
        let calls = &calls;
        let mut first = Some(pass);
        let attempt = || {
            let again = first.is_none();
            let pass = first.take().map_or_else(|| self.gate.admit_again(order, Instant::now()), Ok);
            async move {
                if again {
                    // A newer pair may have come meanwhile, from a login or a worker that was thawed.
                    Box::pin(self.renew_lease(&order.entry, holder, tenure)).await;
                }
                let asked_at = self.clock.now();
                if !tenure.holds(asked_at) {
                    return Err(CallError::LeaseLost);
                }
                let pass = pass.map_err(CallError::NotLetThrough)?;
                let answer = self.client.refresh(provider, refresh_token).await;
                calls.fetch_add(1, Ordering::Relaxed);
                pass.settle(&answer, Instant::now(), asked_at);
                if let Err(
                    RefreshError::Unavailable { acted: Acted::Unknown, .. } | RefreshError::Unreadable { .. },
                ) = answer
                {
                    answer_lost.store(true, Ordering::Relaxed);
                }
                answer.map(|pair| Issue { pair, asked_at }).map_err(CallError::Provider)
            }
        };
        let most_calls = self.options.circuit.failures;
        let verdict = |error: &CallError| match self.gate.look_again(order, Instant::now()) {
            Ok(()) if calls.load(Ordering::Relaxed) < most_calls => verdict(error),
            // So many would be enough for a host; or another try would not be let through.
            Ok(()) | Err(_) => Verdict::Permanent,
        };
        let notify = |error: &CallError, wait| telemetry::refresh_retried(&provider.host, error, wait);
        let policy = &self.options.retry;
        let end = retry(policy, order.deadline, &self.hard_stop, verdict, notify, attempt).await;
        end.map_err(|end| {
            let now = Instant::now();
            match &end {
                RetryEnd::GaveUp(CallError::Provider(RefreshError::Unavailable { retry_after, .. })) => {
                    self.gate.back_off(&order.entry, *retry_after, now);
                }
                RetryEnd::GaveUp(CallError::Provider(RefreshError::Unreadable { .. })) => {
                    self.gate.back_off(&order.entry, None, now);
                }
                RetryEnd::GaveUp(_) | RetryEnd::Cancelled(_) => {}
            }
            let no_entry = self.gate.look(&order.entry, provider, now).err();
            failed_call(end, answer_lost.load(Ordering::Relaxed), order, no_entry)
        })
    }

    /// Gives the lease back and records the failure. Where the row has moved meanwhile, the failure says nothing
    /// about the pair that is there now.
    async fn give_up(
        &self,
        order: &Order,
        holder: &str,
        refresh_token: &SecretString,
        flight: FailedFlight,
    ) -> Landing {
        let failure = Failure {
            kind: flight.kind,
            message: flight.message.clone(),
            fingerprint: fingerprint(refresh_token),
            at: self.clock.now(),
        };
        if flight.kind == FailureKind::Interrupted && self.has_moved(&order.entry).await {
            return Landing::Moved;
        }
        // A refused refresh token settles the doubt: the provider has acted.
        let settled = flight.certain || flight.kind.condemns_refresh_token();
        let gave_up = if settled {
            self.store.give_up(&order.entry, holder, &failure).await
        } else {
            self.store.give_up_in_doubt(&order.entry, holder, &failure).await
        };
        match gave_up {
            // Guarded by the generation: had a newer pair turned up, the refusal would say nothing about it.
            Ok(Guarded::Done) => self.after_failure(order, &failure, flight).await,
            Ok(Guarded::Moved) => {
                telemetry::lost_compare_and_set(Statement::GiveUp);
                if settled {
                    self.release(&order.entry, holder).await;
                }
                Landing::Moved
            }
            Err(error) => {
                // The lease ends by itself; the failure is found out again by the next one.
                telemetry::lease_not_kept(&error);
                Landing::Failed(Arc::new(flight))
            }
        }
    }

    /// Watches an entry for a short while: whether a newer pair turns up.
    async fn has_moved(&self, entry: &Entry) -> bool {
        let until = Instant::now() + SECOND_LOOK;
        for delay in WATCH.delays() {
            if let Ok(Some(current)) = self.store.reload(entry.id).await
                && current.generation != entry.generation
            {
                return true;
            }
            if Instant::now() + delay >= until {
                break;
            }
            sleep(delay).await;
        }
        false
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

/// Whether a failed call is worth another one.
fn verdict(error: &CallError) -> Verdict {
    match error {
        CallError::LeaseLost
        | CallError::NotLetThrough(_)
        | CallError::Provider(
            RefreshError::Refused { .. }
            | RefreshError::Misconfigured { .. }
            | RefreshError::Unreadable { .. },
        ) => Verdict::Permanent,
        CallError::Provider(RefreshError::Unavailable { retry_after: Some(wait), .. }) => {
            Verdict::After(*wait)
        }
        CallError::Provider(
            RefreshError::Unavailable { retry_after: None, .. } | RefreshError::Local { .. },
        ) => Verdict::Transient,
    }
}

/// `no_entry`: why no other refresh could begin now, which knows of a pause that the provider asked for.
fn failed_call(
    end: RetryEnd<CallError>,
    answer_lost: bool,
    order: &Order,
    no_entry: Option<NoEntry>,
) -> CallEnd {
    let (certain, deadline) = (!answer_lost, order.deadline);
    let error = match end {
        RetryEnd::GaveUp(CallError::LeaseLost) | RetryEnd::Cancelled(Some(CallError::LeaseLost)) => {
            return CallEnd::LeaseLost;
        }
        RetryEnd::GaveUp(CallError::NotLetThrough(no_entry))
        | RetryEnd::Cancelled(Some(CallError::NotLetThrough(no_entry))) => {
            return CallEnd::Failed(FailedFlight { certain, ..no_entry.failed(order) });
        }
        RetryEnd::GaveUp(CallError::Provider(error))
        | RetryEnd::Cancelled(Some(CallError::Provider(error))) => error,
        RetryEnd::Cancelled(None) => {
            let message = "the worker is stopping".to_owned();
            let kind = FailureKind::Unavailable;
            return CallEnd::Failed(FailedFlight { kind, message, retry_after: None, certain, deadline });
        }
    };
    let message = error.to_string();
    let (kind, retry_after) = match error {
        // A probe of a host that refuses everybody says nothing about its user.
        RefreshError::Refused { .. } if order.provider.refusing_since.is_some() => {
            (FailureKind::Misconfigured, None)
        }
        RefreshError::Refused { .. } if answer_lost => (FailureKind::Interrupted, None),
        RefreshError::Refused { .. } => (FailureKind::Refused, None),
        RefreshError::Misconfigured { .. } => (FailureKind::Misconfigured, None),
        RefreshError::Local { .. } | RefreshError::Unreadable { .. } => (FailureKind::Unavailable, None),
        RefreshError::Unavailable { .. } => {
            (FailureKind::Unavailable, no_entry.and_then(NoEntry::retry_after))
        }
    };
    CallEnd::Failed(FailedFlight { kind, message, retry_after, certain, deadline })
}

/// What is stored of an answer: what it leaves out stays as it was (RFC 6749, sections 5.1 and 6).
fn new_pair(order: &Order, issue: Issue, refresh_token: &SecretString) -> NewPair {
    let Order { entry, provider, until, .. } = order;
    let Issue { pair, asked_at } = issue;
    let origin = entry.origin_of_successor(asked_at);
    let lifetime = lifetime(pair.expires_in, &entry.state, provider.kind.profile().unstated_lifetime);
    if let Lifetime::Assumed(assumed) = lifetime {
        telemetry::lifetime_assumed(&provider.host, assumed);
    }
    let granted_lifetime = lifetime.duration();
    let rotated = pair.refresh_token.is_some();
    let kept_refresh_expiry = if rotated { None } else { entry.refresh_token_expires_at };
    NewPair {
        access_token: pair.access_token,
        refresh_token: Some(pair.refresh_token.unwrap_or_else(|| refresh_token.clone())),
        username: entry.username.clone(),
        scopes: pair.scopes.unwrap_or_else(|| entry.scopes.clone()),
        expires_at: granted_lifetime.map(|lifetime| asked_at.plus(lifetime)),
        refresh_token_expires_at: pair
            .refresh_token_expires_in
            .map(|lifetime| asked_at.plus(lifetime))
            .or(kept_refresh_expiry),
        source: PairSource::Refresh { granted_lifetime, reserved_until: *until, origin },
    }
}
