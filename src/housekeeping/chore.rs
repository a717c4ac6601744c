//! What housekeeping will do, as shown to an operator.

use serde::Serialize;

use crate::domain::clock::Timestamp;
use crate::store::{Entry, Unrefreshable};

/// A removal or a refresh of one entry. It never holds a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chore {
    /// `remove` or `refresh`.
    pub action: &'static str,
    pub reason: &'static str,
    pub user_id: String,
    /// `None`: the provider cannot be read.
    pub host: Option<String>,
    /// `None`: the access token does not expire.
    pub expires_at: Option<Timestamp>,
    /// `None`: not known.
    pub refresh_token_expires_at: Option<Timestamp>,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoreKind {
    /// The token expired long ago and cannot be refreshed.
    Remove(Unrefreshable),
    /// The refresh token would expire.
    Refresh(Dying),
}

/// Why a refresh token would expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dying {
    /// It has an expiry date.
    Expires,
    /// This kind of provider ends unused refresh tokens.
    Unused,
}

impl Chore {
    pub(super) fn new(kind: ChoreKind, entry: &Entry, host: Option<String>) -> Self {
        Self {
            action: kind.action(),
            reason: kind.reason(),
            user_id: entry.user_id.clone(),
            host,
            expires_at: entry.state.expires_at,
            refresh_token_expires_at: entry.refresh_token_expires_at,
            updated_at: entry.updated_at,
        }
    }
}

impl ChoreKind {
    const fn action(self) -> &'static str {
        match self {
            Self::Remove(_) => "remove",
            Self::Refresh(_) => "refresh",
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Remove(Unrefreshable::NoRefreshToken) => "expired, no refresh token",
            Self::Remove(Unrefreshable::RefreshTokenExpired) => "expired, refresh token expired",
            Self::Remove(Unrefreshable::RefreshTokenCondemned) => "expired, refresh token refused",
            Self::Refresh(Dying::Expires) => "refresh token expires soon",
            Self::Refresh(Dying::Unused) => "refresh token dies soon unless used",
        }
    }
}
