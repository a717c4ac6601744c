//! Why there is no token, and the words for it.

use std::sync::Arc;

use crate::message::{ErrorBody, ErrorCode, ErrorReason};
use crate::provider::Provider;
use crate::refresh::FailedFlight;
use crate::store::{Failure, FailureKind, StoreError};

/// Why there is no token.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The requester is told so.
    Answer(ErrorBody),
    /// The database failed: tried again while there is time.
    Store(Arc<StoreError>),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
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
    let code = match flight.kind {
        FailureKind::Refused | FailureKind::Interrupted => ErrorCode::ReauthorizationRequired,
        FailureKind::Misconfigured => ErrorCode::ProviderMisconfigured,
        FailureKind::Unavailable => ErrorCode::ProviderUnavailable,
    };
    let retry_after_secs = flight.retry_after.map(|wait| wait.as_secs().max(1));
    let reason = reason(flight.kind);
    ErrorBody { retry_after_secs, reason, ..ErrorBody::new(code, flight.message.clone()) }
}

/// Whose doing it is that a refresh token is dead.
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

pub(super) fn internal_message(error: &StoreError) -> &'static str {
    match error {
        StoreError::Database { .. } | StoreError::NoAnswer => "the database does not answer",
        StoreError::Sealed { .. } => "a stored secret cannot be decrypted; the worker's log says which",
        StoreError::Corrupt { .. } => "a stored row cannot be read; the worker's log says which",
    }
}
