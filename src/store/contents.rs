//! What a pair outside of the database consists of, as JSON to be sealed: parked pairs and records of the journal.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::entry::Origin;
use super::pair::{NewPair, PairSource};
use crate::domain::clock::Timestamp;
use crate::domain::secret::{ExposeSecret, SecretString};

/// A pair to be sealed, or one that was opened.
#[derive(Serialize, Deserialize)]
pub(super) struct Contents<Secret> {
    access_token: Secret,
    refresh_token: Option<Secret>,
    username: Option<String>,
    scopes: Vec<String>,
    expires_at: Option<Timestamp>,
    refresh_token_expires_at: Option<Timestamp>,
    refresh: Option<OfRefresh>,
    /// When the provider issued the pair of a login. None: unknown, or refreshed.
    #[serde(default)]
    issued_at: Option<Timestamp>,
}

/// What is known of a refreshed pair alone.
#[derive(Serialize, Deserialize)]
struct OfRefresh {
    granted_lifetime_ms: Option<u64>,
    reserved_until: Timestamp,
    login: Option<String>,
    asked_at: Timestamp,
}

impl<'a> Contents<&'a str> {
    pub(super) fn of(pair: &'a NewPair) -> Self {
        Self {
            access_token: pair.access_token.expose_secret(),
            refresh_token: pair.refresh_token.as_ref().map(ExposeSecret::expose_secret),
            username: pair.username.clone(),
            scopes: pair.scopes.clone(),
            expires_at: pair.expires_at,
            refresh_token_expires_at: pair.refresh_token_expires_at,
            refresh: match &pair.source {
                PairSource::Login | PairSource::DatedLogin { .. } => None,
                PairSource::Refresh { granted_lifetime, reserved_until, origin } => Some(OfRefresh {
                    granted_lifetime_ms: granted_lifetime
                        .map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)),
                    reserved_until: *reserved_until,
                    login: origin.login.clone(),
                    asked_at: origin.asked_at,
                }),
            },
            issued_at: pair.source.issued_at(),
        }
    }
}

impl From<Contents<SecretString>> for NewPair {
    fn from(contents: Contents<SecretString>) -> Self {
        Self {
            access_token: contents.access_token,
            refresh_token: contents.refresh_token,
            username: contents.username,
            scopes: contents.scopes,
            expires_at: contents.expires_at,
            refresh_token_expires_at: contents.refresh_token_expires_at,
            source: match (contents.refresh, contents.issued_at) {
                (None, None) => PairSource::Login,
                (None, Some(issued_at)) => PairSource::DatedLogin { issued_at },
                (Some(refresh), _) => PairSource::Refresh {
                    granted_lifetime: refresh.granted_lifetime_ms.map(Duration::from_millis),
                    reserved_until: refresh.reserved_until,
                    origin: Origin { login: refresh.login, asked_at: refresh.asked_at },
                },
            },
        }
    }
}
