//! Why there is no token, and the words for it.

use std::sync::Arc;
use std::time::Duration;

use crate::contract::{ErrorBody, ErrorCode, ErrorReason};
use crate::domain::provider::Provider;
use crate::limits::publisher::TooOften;
use crate::refresh::{FailedFlight, NotPermitted};
use crate::settings::Denied;
use crate::store::{Failure, FailureKind, StoreError};

/// When to ask again if too many requests wait already. Some of them are answered by then.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum Refusal {
    /// The requester gets this error.
    Answer(ErrorBody),
    /// The database failed. It is tried again while there is time.
    Store(Arc<StoreError>),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<Arc<StoreError>> for Refusal {
    fn from(error: Arc<StoreError>) -> Self {
        Self::Store(error)
    }
}

impl From<ErrorBody> for Refusal {
    fn from(error: ErrorBody) -> Self {
        Self::Answer(error)
    }
}

pub(super) fn refused_before(failure: &Failure, provider: &Provider) -> ErrorBody {
    let message = format!(
        "the user must log in at {} again: the refresh token was refused at {}",
        provider.host, failure.at
    );
    ErrorBody { reason: reason(failure.kind), ..ErrorBody::new(ErrorCode::ReauthorizationRequired, message) }
}

pub(super) fn flight_failed(flight: &FailedFlight) -> ErrorBody {
    let error = ErrorBody::new(code_of(flight.kind), flight.message.clone());
    ErrorBody { reason: reason(flight.kind), ..with_retry_after(error, flight.retry_after) }
}

pub(super) fn not_permitted(why: NotPermitted, provider: &Provider) -> ErrorBody {
    let error = ErrorBody::new(code_of(why.kind()), why.message(provider));
    with_retry_after(error, why.retry_after())
}

pub(super) fn too_many_waiting(provider: &Provider) -> ErrorBody {
    let message = format!("{} answers slowly, and too many requests wait for it already", provider.host);
    with_retry_after(ErrorBody::new(ErrorCode::ProviderUnavailable, message), Some(BUSY_RETRY_AFTER))
}

/// Too many requests wait already for the end of this token's reservation.
pub(super) fn token_held(provider: &Provider, remaining: Duration) -> ErrorBody {
    let message = format!(
        "somebody holds this user's token at {}, and too many requests wait for it already",
        provider.host
    );
    with_retry_after(ErrorBody::new(ErrorCode::ProviderUnavailable, message), Some(remaining))
}

/// The refresh panicked. It is not tried again at once, because it would panic again.
pub(super) fn panicked() -> ErrorBody {
    let message = "the refresh met a bug in the worker, whose log says more";
    with_retry_after(ErrorBody::new(ErrorCode::Internal, message), Some(BUSY_RETRY_AFTER))
}

pub(super) fn forbidden(denied: Denied) -> ErrorBody {
    ErrorBody::new(ErrorCode::Forbidden, denied.to_string())
}

pub(super) fn too_often(too_often: TooOften) -> ErrorBody {
    let message = "this publisher asks too often (limits.publisher_requests_per_second, or its own requests_per_second); the \
                   AMQP property user_id names it, and all who leave that out count as one";
    with_retry_after(ErrorBody::new(ErrorCode::ProviderUnavailable, message), Some(too_often.retry_after))
}

/// The message shows the broker a token, or asks for a reply that would.
pub(super) fn not_sealed(field: &str, setting: &str) -> ErrorBody {
    let message =
        format!("{field}: is missing; this worker demands it ({setting}), so that the broker sees no token");
    ErrorBody::new(ErrorCode::Forbidden, message)
}

/// Whole seconds, rounded up, so that nobody comes back too early.
fn with_retry_after(error: ErrorBody, retry_after: Option<Duration>) -> ErrorBody {
    let retry_after_secs =
        retry_after.map(|wait| (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1));
    ErrorBody { retry_after_secs, ..error }
}

const fn code_of(kind: FailureKind) -> ErrorCode {
    match kind {
        FailureKind::Refused | FailureKind::Interrupted => ErrorCode::ReauthorizationRequired,
        FailureKind::Misconfigured => ErrorCode::ProviderMisconfigured,
        FailureKind::Unavailable => ErrorCode::ProviderUnavailable,
    }
}

/// Why a refresh token is dead.
const fn reason(kind: FailureKind) -> Option<ErrorReason> {
    match kind {
        FailureKind::Refused => Some(ErrorReason::RefreshTokenRefused),
        FailureKind::Interrupted => Some(ErrorReason::RefreshInterrupted),
        FailureKind::Misconfigured | FailureKind::Unavailable => None,
    }
}

pub(super) fn refresh_timeout(provider: &Provider) -> ErrorBody {
    let message = format!("another worker's refresh at {} did not end in time", provider.host);
    ErrorBody::new(ErrorCode::RefreshTimeout, message)
}

pub(super) fn deadline_exceeded() -> ErrorBody {
    ErrorBody::new(ErrorCode::DeadlineExceeded, "the time of the request ran out")
}

/// The time of a request ran out while the database was away, or held its statement up.
pub(super) fn database_away() -> ErrorBody {
    let message = "the time of the request ran out while the database did not answer";
    ErrorBody::new(ErrorCode::DeadlineExceeded, message)
}

/// Of an error that another try meets again.
pub(super) fn internal_message(error: &StoreError) -> &'static str {
    match error {
        StoreError::NoAnswer => "the database does not answer",
        StoreError::Database { .. } => "the database refuses a value; the worker's log says why",
        StoreError::Sealed { .. } => "a stored secret cannot be decrypted; the worker's log says which",
        StoreError::Changed { .. } => "a stored row was changed from outside; the worker's log says which",
        StoreError::Corrupt { .. } => "a stored row cannot be read; the worker's log says which",
    }
}
