//! A token on its way out, and what the metrics say about it.

use super::Handler;
use super::refusal::Refusal;
use super::token::Ask;
use crate::contract::{
    ErrorBody, ErrorCode, GrantedToken, Refresh, SealedContent, TokenGrant, TokenValue, Warning,
};
use crate::domain::clock::Timestamp;
use crate::domain::decide::Cause;
use crate::domain::provider::Provider;
use crate::store::Entry;
use crate::telemetry::audit::{self, HandedOut};
use crate::telemetry::{Opportunism, TokenResult};

/// A token that is handed out, and how it came to that.
pub(super) struct Grant {
    pub(super) reply: TokenGrant,
    generation: i64,
    pub(super) result: TokenResult,
    pub(super) opportunism: Opportunism,
}

impl Grant {
    pub(super) fn audit(&self, ask: &Ask<'_>) {
        let TokenGrant { user_id, host, token, refresh, .. } = &self.reply;
        let way = HandedOut { refresh: refresh.name(), sealed: matches!(token.value, TokenValue::Sealed(_)) };
        audit::handed_out(ask.asker, user_id, host, way, self.generation, token.reserved_until);
    }
}

/// How a token came to be handed out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) refresh: Refresh,
    pub(super) result: TokenResult,
    pub(super) opportunism: Opportunism,
}

impl Way {
    /// The stored token, which is still valid. `reserved`: an opportunistic refresh is due, and somebody holds it.
    pub(super) const fn stored(reserved: bool) -> Self {
        let (refresh, opportunism) = if reserved {
            (Refresh::Reserved, Opportunism::Reserved)
        } else {
            (Refresh::None, Opportunism::False)
        };
        Self { refresh, result: TokenResult::StillValid, opportunism }
    }

    /// A new token, which this request had issued.
    pub(super) const fn refreshed(cause: Cause) -> Self {
        let (refresh, opportunism) = match cause {
            Cause::Opportunistic => (Refresh::Opportunistic, Opportunism::True),
            Cause::Required | Cause::Reported => (Refresh::Required, Opportunism::False),
        };
        Self { refresh, result: TokenResult::Success, opportunism }
    }

    pub(super) const AFTER_FAILED_REFRESH: Self =
        Self { refresh: Refresh::None, result: TokenResult::StillValid, opportunism: Opportunism::True };

    /// The stored token, found by the last look after a wait.
    pub(super) const AFTER_TIMEOUT: Self = Self {
        refresh: Refresh::None,
        result: TokenResult::SuccessAfterTimeout,
        opportunism: Opportunism::False,
    };
}

impl Handler {
    /// The reply that hands out the token of an entry that is reserved until then.
    pub(super) fn grant(
        &self,
        ask: &Ask<'_>,
        provider: &Provider,
        entry: &Entry,
        reserved_until: Timestamp,
        way: Way,
        mut warnings: Vec<Warning>,
    ) -> Result<Grant, Refusal> {
        // A token is of no use to anybody once it has expired.
        let expires_at = entry.state.expires_at.filter(|expires_at| *expires_at < reserved_until);
        let says_so =
            |warning: &Warning| matches!(warning, Warning::LifetimeClamped | Warning::LifetimeShort);
        if expires_at.is_some() && !warnings.iter().any(says_so) {
            warnings.push(Warning::ReservationShortened);
        }
        let username = entry.username.clone().unwrap_or_else(|| provider.username.clone());
        let value = self.store.open_access_token(entry)?;
        let value = match ask.seal_to {
            None => TokenValue::Clear(value),
            Some(key) => {
                TokenValue::Sealed(SealedContent::new(ask.user_id, ask.host, &username, &value).seal(key))
            }
        };
        let token = GrantedToken {
            value,
            username,
            scopes: entry.scopes.clone(),
            updated_at: entry.updated_at,
            expires_at: entry.state.expires_at,
            reserved_until: expires_at.unwrap_or(reserved_until),
        };
        Ok(Grant {
            reply: TokenGrant {
                user_id: ask.user_id.to_owned(),
                host: ask.host.to_owned(),
                token,
                refresh: way.refresh,
                warnings,
            },
            generation: entry.generation,
            result: way.result,
            opportunism: way.opportunism,
        })
    }
}

/// What the metrics say about a request that was refused.
pub(super) const fn refused(error: &ErrorBody) -> TokenResult {
    match error.code {
        ErrorCode::UserNotFound | ErrorCode::IdentityNotFound | ErrorCode::TokenNotFound => {
            TokenResult::NoToken
        }
        ErrorCode::NotRefreshable => TokenResult::NotRefreshable,
        ErrorCode::RefreshTimeout | ErrorCode::DeadlineExceeded => TokenResult::Timeout,
        ErrorCode::InvalidRequest
        | ErrorCode::UnknownHost
        | ErrorCode::ReauthorizationRequired
        | ErrorCode::ProviderMisconfigured
        | ErrorCode::ProviderUnavailable
        | ErrorCode::Forbidden
        | ErrorCode::Internal => TokenResult::Error,
    }
}
