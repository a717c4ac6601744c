//! What housekeeping is about to do, as an operator sees it.

use serde::Serialize;

use crate::domain::clock::Timestamp;
use crate::store::{Entry, Unrefreshable};

/// Something to be done about one entry; never a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chore {
    /// `remove` or `refresh`.
    pub action: &'static str,
    /// Why, in words.
    pub reason: &'static str,
    /// The platform's user.
    pub user_id: String,
    /// The provider's host; none: its provider cannot be read.
    pub host: Option<String>,
    /// When the access token expires, or expired; none: never.
    pub expires_at: Option<Timestamp>,
    /// When the refresh token expires, where that is known.
    pub refresh_token_expires_at: Option<Timestamp>,
    /// When this pair was stored.
    pub updated_at: Timestamp,
}

/// What is to be done, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoreKind {
    /// The token expired long ago and cannot be refreshed.
    Remove(Unrefreshable),
    /// Its refresh token would die.
    Refresh(Dying),
}

/// Why a refresh token would die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dying {
    /// By its own date.
    Expires,
    /// Unused, as this kind of provider has it.
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
