//! Why a message is refused, in a word.

use schemars::JsonSchema;
use serde::Serialize;

/// The error codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Body or properties break the contract.
    InvalidRequest,
    /// No provider has this host.
    UnknownHost,
    /// The user has no identity at all.
    UserNotFound,
    /// The user has no identity at this host.
    IdentityNotFound,
    /// The identity has no token.
    TokenNotFound,
    /// Too short for the request, and there is no refresh token.
    NotRefreshable,
    /// The provider refuses the refresh token: the user must log in again.
    ReauthorizationRequired,
    /// The provider refuses us: the operator must mend its settings.
    ProviderMisconfigured,
    /// The provider cannot be reached or does not answer as it should.
    ProviderUnavailable,
    /// Another worker's refresh did not end within the wait.
    RefreshTimeout,
    /// The request was too old, or its time ran out.
    DeadlineExceeded,
    /// The publisher may not have this.
    Forbidden,
    /// Anything else.
    Internal,
}

impl ErrorCode {
    /// Every code, in the order in which the contract checks them.
    pub const ALL: [Self; 13] = [
        Self::InvalidRequest,
        Self::Forbidden,
        Self::UnknownHost,
        Self::UserNotFound,
        Self::IdentityNotFound,
        Self::TokenNotFound,
        Self::NotRefreshable,
        Self::ReauthorizationRequired,
        Self::ProviderMisconfigured,
        Self::ProviderUnavailable,
        Self::RefreshTimeout,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// Whether the same request may succeed later.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::ProviderUnavailable | Self::RefreshTimeout | Self::DeadlineExceeded | Self::Internal => {
                true
            }
            Self::InvalidRequest
            | Self::UnknownHost
            | Self::UserNotFound
            | Self::IdentityNotFound
            | Self::TokenNotFound
            | Self::NotRefreshable
            | Self::ReauthorizationRequired
            | Self::ProviderMisconfigured
            | Self::Forbidden => false,
        }
    }

    /// Whether it says that a refresh at the host does not end, or cannot begin.
    pub const fn is_of_host(self) -> bool {
        matches!(self, Self::ProviderUnavailable | Self::RefreshTimeout)
    }

    /// The code as it stands in replies, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::UnknownHost => "unknown_host",
            Self::UserNotFound => "user_not_found",
            Self::IdentityNotFound => "identity_not_found",
            Self::TokenNotFound => "token_not_found",
            Self::NotRefreshable => "not_refreshable",
            Self::ReauthorizationRequired => "reauthorization_required",
            Self::ProviderMisconfigured => "provider_misconfigured",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::RefreshTimeout => "refresh_timeout",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Forbidden => "forbidden",
            Self::Internal => "internal",
        }
    }
}
