//! What follows the outcome of a flight: events, waiting for a new token to be accepted, and whose fault a refusal is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::flight::{Flight, FlightContext};
use super::{FailedFlight, FlightOutcome, NotPermitted, Order};
use crate::contract::{ErrorReason, Event, RefreshCause};
use crate::domain::clock::Timestamp;
use crate::domain::decide::Cause;
use crate::store::{Entry, Failure, FailureKind, Guarded, Judgement, Store, StoreError};
use crate::telemetry;

/// By then every worker knows the settings that `provider apply` has just written.
const SETTINGS_KNOWN_AFTER: Duration = Duration::from_secs(1);

/// How long to wait until a provider accepts its newest token. Then the token is handed out all the same.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(5);

impl FlightContext {
    pub(super) async fn after_success(&self, order: &Order, entry: &Entry) {
        let host = &order.provider.host;
        self.events.emit(Event::TokenRefreshed {
            host: host.clone(),
            user_id: order.user_id.clone(),
            at: entry.updated_at,
            generation: entry.generation,
            cause: match order.cause {
                Cause::Opportunistic => RefreshCause::Opportunistic,
                Cause::Required | Cause::Reported => RefreshCause::Required,
            },
            expires_at: entry.state.expires_at,
        });
        match end_refusing(&self.store, order).await {
            Ok(Guarded::Done) => {
                self.events.emit(Event::ProviderRecovered { host: host.clone(), at: self.clock.now() });
            }
            // Another worker's probe, or an operator, was first; or the host refuses nobody.
            Ok(Guarded::Moved) => {}
            // The next probe tries it again.
            Err(error) => telemetry::store_failed(&error),
        }
    }

    /// Some providers accept their newest tokens a moment late. If the operator wants it, the requests of this flight wait for
    /// that. The pair is stored already.
    pub(super) async fn validate(&self, order: &Order, entry: &Entry) {
        let Some(url) = &order.provider.validate_url else { return };
        let Ok(token) = self.store.open_access_token(entry) else { return };
        let until = order.deadline.min(Instant::now() + ACCEPTED_WITHIN);
        if !self.client.wait_until_accepted(&order.provider, url, &token, until).await {
            telemetry::token_not_accepted(&order.provider.host);
        }
    }

    /// A failure was recorded. If it is the provider's fault after all, the flight fails for that reason.
    pub(super) async fn after_failure(
        &self,
        Flight { order, host, .. }: &Flight,
        failure: &Failure,
        flight: FailedFlight,
    ) -> FlightOutcome {
        let reason = match failure.kind {
            FailureKind::Refused => ErrorReason::RefreshTokenRefused,
            FailureKind::Interrupted => ErrorReason::RefreshInterrupted,
            FailureKind::Misconfigured => {
                if order.provider.refusing_since.is_none()
                    && let Some(since) = host.client_refused_since()
                {
                    self.begin_refusing(order, failure, since).await;
                }
                return FlightOutcome::Failed(Arc::new(flight));
            }
            FailureKind::Unavailable => return FlightOutcome::Failed(Arc::new(flight)),
        };
        let host = &order.provider.host;
        let flight = match self.judge(order, failure).await {
            Judgement::Users => {
                self.events.emit(Event::ReauthorizationRequired {
                    host: host.clone(),
                    user_id: order.user_id.clone(),
                    at: failure.at,
                    generation: order.entry.generation,
                    reason,
                });
                flight
            }
            Judgement::Providers { since, first } => {
                telemetry::refusal_forgiven(host);
                if first {
                    self.tell_misconfigured(order, failure, since);
                }
                NotPermitted::HostRefusing { since }.failed(order)
            }
            Judgement::Outdated => {
                telemetry::refusal_forgiven(host);
                FailedFlight {
                    kind: FailureKind::Unavailable,
                    message: format!("the settings of {host} were changed while it was asked"),
                    retry_after: Some(SETTINGS_KNOWN_AFTER),
                    ..flight
                }
            }
        };
        FlightOutcome::Failed(Arc::new(flight))
    }

    /// The host refuses our client, so it refuses everybody. All workers learn it from the database.
    async fn begin_refusing(&self, order: &Order, failure: &Failure, since: Timestamp) {
        match self.store.begin_refusing(&order.provider, since).await {
            Ok(Guarded::Done) => self.tell_misconfigured(order, failure, since),
            // It is known already, or an operator has changed the settings.
            Ok(Guarded::Moved) => {}
            // The next refusal tries it again.
            Err(error) => telemetry::store_failed(&error),
        }
    }

    fn tell_misconfigured(&self, order: &Order, failure: &Failure, since: Timestamp) {
        self.events.emit(Event::ProviderMisconfigured {
            host: order.provider.host.clone(),
            at: failure.at,
            since,
            reason: failure.message.clone(),
        });
    }

    async fn judge(&self, order: &Order, failure: &Failure) -> Judgement {
        let judged = self.store.judge_refusal(&order.entry, &order.provider, failure).await;
        judged.unwrap_or_else(|error| {
            telemetry::refusal_not_judged(&order.provider.host, &error);
            Judgement::Users
        })
    }
}

/// The host issued a new pair, so it does not refuse everybody.
async fn end_refusing(store: &Store, order: &Order) -> Result<Guarded, StoreError> {
    match order.provider.refusing_since {
        Some(since) => Box::pin(store.end_refusing(order.provider.id, since)).await,
        None => Ok(Guarded::Moved),
    }
}
