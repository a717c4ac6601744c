//! One flight's calls of the token endpoint: when to try again, and how certain a failure is.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::time::Instant;

use super::flight::{Flight, FlightContext};
use super::host::{CallPermit, NotPermitted};
use super::lease_guard::LeaseGuard;
use super::lifetime::{Lifetime, lifetime};
use super::{FailedFlight, Order};
use crate::domain::clock::Timestamp;
use crate::domain::provider::Lifespan;
use crate::domain::secret::SecretString;
use crate::oauth::{Acted, IssuedPair, RefreshError};
use crate::retry::{RetryEnd, Verdict, retry};
use crate::store::{FailureKind, NewPair, PairSource};
use crate::telemetry;

/// A pair as the provider issued it, with the time from which its lifetime counts.
pub(super) struct Issue {
    pair: IssuedPair,
    /// Just before the request was sent. The provider counts from a later moment, so the token never expires earlier than
    /// recorded.
    asked_at: Timestamp,
}

/// Why a call of the token endpoint brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It was not made, because another worker may have the lease.
    #[error("the refresh lease is over")]
    LeaseLost,
    #[error(transparent)]
    Provider(RefreshError),
    /// It was not made, because the host may not be called now.
    #[error("the host may not be called now")]
    NotPermitted(NotPermitted),
}

/// How the calls of a flight ended without a pair.
pub(super) enum CallEnd {
    LeaseLost,
    Failed(FailedFlight),
}

/// The refresh token that a flight sends.
pub(super) struct Spent<'a> {
    pub(super) token: &'a SecretString,
    /// When it was sent first, by this flight or by an earlier one.
    first_sent_at: Timestamp,
    grace: Lifespan,
}

impl<'a> Spent<'a> {
    /// If the outcome of an earlier refresh is unknown, its date counts: the token may have been spent since. Without a date it
    /// counts as sent long ago.
    pub(super) fn new(token: &'a SecretString, order: &Order, now: Timestamp) -> Self {
        let long_ago = Timestamp::from_millis(0);
        let earlier = order.entry.is_in_doubt().then(|| order.entry.attempted_at.unwrap_or(long_ago));
        let grace = order.provider.refresh_token_grace;
        Self { token, first_sent_at: earlier.unwrap_or(now), grace }
    }

    /// Whether the provider takes it once more though it acted on it before.
    fn may_be_sent_again(&self, now: Timestamp) -> bool {
        self.grace.reaches(self.first_sent_at, now)
    }
}

impl FlightContext {
    /// Calls the token endpoint, again where that makes sense, and says how certain a failure is.
    pub(super) async fn call_provider(
        &self,
        flight: &Flight,
        spent: &Spent<'_>,
        lease_guard: &LeaseGuard,
        permit: CallPermit<'_>,
    ) -> Result<Issue, CallEnd> {
        let Flight { order, host, .. } = flight;
        let provider = &order.provider;
        // A lost answer may have carried a new pair. That includes the answer to an earlier flight that gave up in doubt, or
        // whose worker died.
        let answer_lost = AtomicBool::new(order.entry.is_in_doubt());
        let answer_lost = &answer_lost;
        let calls = AtomicU32::new(0);
        let calls = &calls;
        let mut first = Some(permit);
        let attempt = || {
            let again = first.is_none();
            let permit = first.take().map_or_else(|| host.permit_again(order, Instant::now()), Ok);
            async move {
                if again {
                    // A login, or a worker that was frozen, may have stored a newer pair meanwhile.
                    Box::pin(self.renew_lease(flight, lease_guard)).await;
                }
                let asked_at = self.clock.now();
                if !lease_guard.holds(asked_at) {
                    return Err(CallError::LeaseLost);
                }
                let permit = permit.map_err(CallError::NotPermitted)?;
                let answer = self.client.refresh(provider, spent.token, &order.entry.scopes).await;
                calls.fetch_add(1, Ordering::Relaxed);
                permit.record(&answer, Instant::now(), asked_at);
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
        let verdict = |error: &CallError| match host.check_again(order, Instant::now()) {
            Ok(()) if calls.load(Ordering::Relaxed) < most_calls => {
                verdict(error, spent.may_be_sent_again(self.clock.now()))
            }
            // So many failed calls would open the circuit, or another call is not permitted.
            Ok(()) | Err(_) => Verdict::Permanent,
        };
        let notify = |error: &CallError, wait| telemetry::refresh_retried(&provider.host, error, wait);
        let policy = &self.options.retry;
        let end = retry(policy, order.deadline, &self.hard_stop, verdict, notify, attempt).await;
        end.map_err(|end| {
            let now = Instant::now();
            match &end {
                RetryEnd::GaveUp(CallError::Provider(RefreshError::Unavailable { retry_after, .. })) => {
                    host.back_off(&order.entry, *retry_after, now);
                }
                RetryEnd::GaveUp(CallError::Provider(RefreshError::Unreadable { .. })) => {
                    host.back_off(&order.entry, None, now);
                }
                RetryEnd::GaveUp(_) | RetryEnd::Cancelled(_) => {}
            }
            let not_permitted = host.check(&order.entry, provider, now).err();
            let again = spent.may_be_sent_again(self.clock.now());
            failed_call(
                end,
                Lost { answer: answer_lost.load(Ordering::Relaxed), again },
                order,
                not_permitted,
            )
        })
    }
}

/// Whether a failed call is worth another one. If the provider may have acted, a second call with the same refresh token costs
/// the grant, unless the provider accepts it `again`.
fn verdict(error: &CallError, again: bool) -> Verdict {
    match error {
        CallError::Provider(RefreshError::Unreadable { .. }) if again => Verdict::Transient,
        CallError::LeaseLost
        | CallError::NotPermitted(_)
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

/// Whether an answer was lost that may have carried a new pair.
#[derive(Clone, Copy)]
struct Lost {
    answer: bool,
    /// Whether the provider takes the refresh token once more all the same.
    again: bool,
}

/// `not_permitted`: why no other refresh may begin now. It includes a pause that the provider asked for.
fn failed_call(
    end: RetryEnd<CallError>,
    lost: Lost,
    order: &Order,
    not_permitted: Option<NotPermitted>,
) -> CallEnd {
    let (certain, deadline) = (!lost.answer, order.deadline);
    let error = match end {
        RetryEnd::GaveUp(CallError::LeaseLost) | RetryEnd::Cancelled(Some(CallError::LeaseLost)) => {
            return CallEnd::LeaseLost;
        }
        RetryEnd::GaveUp(CallError::NotPermitted(not_permitted))
        | RetryEnd::Cancelled(Some(CallError::NotPermitted(not_permitted))) => {
            return CallEnd::Failed(FailedFlight { certain, ..not_permitted.failed(order) });
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
        // Where a refresh token may be sent again, it is not refused for that.
        RefreshError::Refused { .. } if lost.answer && !lost.again => (FailureKind::Interrupted, None),
        RefreshError::Refused { .. } => (FailureKind::Refused, None),
        RefreshError::Misconfigured { .. } => (FailureKind::Misconfigured, None),
        RefreshError::Local { .. } | RefreshError::Unreadable { .. } => (FailureKind::Unavailable, None),
        RefreshError::Unavailable { .. } => {
            (FailureKind::Unavailable, not_permitted.and_then(NotPermitted::retry_after))
        }
    };
    CallEnd::Failed(FailedFlight { kind, message, retry_after, certain, deadline })
}

/// The pair to store. What the answer leaves out stays as it was (RFC 6749, sections 5.1 and 6).
pub(super) fn new_pair(order: &Order, issue: Issue, refresh_token: &SecretString) -> NewPair {
    let Order { entry, provider, until, .. } = order;
    let Issue { pair, asked_at } = issue;
    let origin = entry.origin_of_successor(asked_at);
    let lifetime = lifetime(pair.expires_in, &entry.state, provider.unstated_lifetime);
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
