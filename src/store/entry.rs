//! A token entry as a worker sees it: decided on as plain values, decrypted only when a value is needed.

use std::time::Duration;

use sea_orm::ActiveValue::Set;
use tokenkeeper_entity::token_entry;

use super::pair::NewPair;
use super::seal::Record;
use super::{Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::decide::TokenState;
use crate::domain::provider::Provider;
use crate::domain::secret::fingerprint;

/// A loaded row of `token_entry`: the current pair of an identity, still encrypted.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: i64,
    pub identity_id: i64,
    pub user_id: String,
    pub provider_id: i64,
    /// Counts the pairs stored here. Guards every write.
    pub generation: i64,
    /// Git user name. None: the provider's.
    pub username: Option<String>,
    pub scopes: Vec<String>,
    /// The input of `decide`.
    pub state: TokenState,
    /// None: unknown.
    pub refresh_token_expires_at: Option<Timestamp>,
    pub lease: Option<Lease>,
    /// The refresh token that a refresh of this pair sent, or was about to send. Kept until the outcome is known.
    pub attempt: Option<String>,
    /// When that refresh token was sent first. None: unknown.
    pub attempted_at: Option<Timestamp>,
    /// The last failed refresh of this pair.
    pub failure: Option<Failure>,
    pub updated_at: Timestamp,
    /// Failure and report, as their columns have them.
    pub(super) record: Record,
    /// Authenticates the record. None: the pair is sealed in format 1.
    pub(super) record_mac: Option<Vec<u8>>,
    /// When the provider was asked for this pair. None: a login brought it.
    pub(super) refreshed_at: Option<Timestamp>,
    pub(super) login_fingerprint: Option<String>,
    /// When the provider issued the pair. Known of an imported pair only.
    pub(super) issued_at: Option<Timestamp>,
    pub(super) access_token_sealed: Vec<u8>,
    pub(super) refresh_token_sealed: Option<Vec<u8>>,
    pub(super) key_id: String,
}

/// The right to refresh an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The flight that has the lease.
    pub holder: String,
    /// Until when it is live.
    pub until: Timestamp,
}

/// Where a refreshed pair comes from. Tells which of two pairs of one login is newer: a provider that accepts a spent refresh
/// token can issue two pairs for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Fingerprint of the login.
    pub login: Option<String>,
    pub asked_at: Timestamp,
}

/// A failed refresh. It belongs to the refresh token that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// Never holds a secret.
    pub message: String,
    pub fingerprint: String,
    pub at: Timestamp,
}

/// The kinds of failed refreshes that are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The provider refuses the refresh token.
    Refused,
    /// The provider refuses the refresh token after the answer to an earlier attempt was lost. It acted on that attempt, so
    /// the stored access token is dead, too, if a refresh revokes it.
    Interrupted,
    /// The provider refuses the client. That says nothing about the user's token.
    Misconfigured,
    /// The provider could not be reached, or gave no usable answer.
    Unavailable,
}

impl FailureKind {
    pub(super) const ALL: [Self; 4] =
        [Self::Refused, Self::Interrupted, Self::Misconfigured, Self::Unavailable];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "reauthorization_required",
            Self::Interrupted => "refresh_interrupted",
            Self::Misconfigured => "provider_misconfigured",
            Self::Unavailable => "provider_unavailable",
        }
    }

    /// Whether the refresh token is dead, so that the provider can only refuse it again.
    pub const fn condemns_refresh_token(self) -> bool {
        match self {
            Self::Refused | Self::Interrupted => true,
            Self::Misconfigured | Self::Unavailable => false,
        }
    }
}

impl Entry {
    pub(super) fn from_row(row: token_entry::Model) -> Result<Self, StoreError> {
        let scopes = serde_json::from_str(&row.scopes).map_err(|error| StoreError::Corrupt {
            what: format!("column scopes of token_entry {}", row.id),
            reason: error.to_string(),
        })?;
        let record = Record {
            code: row.failure_code,
            message: row.failure_message,
            fingerprint: row.failure_fingerprint,
            failed_at: row.failed_at,
            reported_at: row.reported_at,
        };
        Ok(Self {
            id: row.id,
            identity_id: row.identity_id,
            user_id: row.user_id,
            provider_id: row.provider_id,
            generation: row.generation,
            username: row.username,
            scopes,
            state: TokenState {
                expires_at: row.expires_at.map(Timestamp::from_millis),
                reserved_until: row.reserved_until.map(Timestamp::from_millis),
                granted_lifetime: row
                    .granted_lifetime_ms
                    .and_then(|ms| u64::try_from(ms).ok())
                    .map(Duration::from_millis),
                refreshable: row.refresh_token_sealed.is_some(),
                in_doubt: row.attempt_fingerprint.is_some(),
                reported: record.reported_at.is_some(),
            },
            refresh_token_expires_at: row.refresh_token_expires_at.map(Timestamp::from_millis),
            lease: row
                .lease_holder
                .zip(row.lease_until)
                .map(|(holder, until)| Lease { holder, until: Timestamp::from_millis(until) }),
            attempted_at: row.attempt_fingerprint.as_ref().and(row.attempted_at).map(Timestamp::from_millis),
            attempt: row.attempt_fingerprint,
            refreshed_at: row.refreshed_at.map(Timestamp::from_millis),
            login_fingerprint: row.login_fingerprint,
            issued_at: row.issued_at.map(Timestamp::from_millis),
            failure: record.failure(),
            record,
            record_mac: row.record_mac,
            updated_at: Timestamp::from_millis(row.updated_at),
            access_token_sealed: row.access_token_sealed,
            refresh_token_sealed: row.refresh_token_sealed,
            key_id: row.key_id,
        })
    }

    pub(super) fn owner(&self) -> Owner<'_> {
        Owner { identity_id: self.identity_id, user: &self.user_id, provider_id: self.provider_id }
    }

    /// Whether the row is its owner's, as somebody knows who did not take it from the row.
    pub(super) fn check_owner(&self, owner: &Owner<'_>) -> Result<(), StoreError> {
        if self.owner() == *owner {
            return Ok(());
        }
        Err(StoreError::Changed { what: format!("user or provider of token_entry {}", self.id) })
    }

    /// The columns that a new pair sets: the pair, its dates and its reservation. It clears the failure and the report of the old
    /// pair. Lease and attempt are not among them.
    pub(super) fn pair_columns(&self) -> token_entry::ActiveModel {
        let millis = |time: Option<Timestamp>| Set(time.map(Timestamp::as_millis));
        token_entry::ActiveModel {
            generation: Set(self.generation),
            access_token_sealed: Set(self.access_token_sealed.clone()),
            refresh_token_sealed: Set(self.refresh_token_sealed.clone()),
            key_id: Set(self.key_id.clone()),
            username: Set(self.username.clone()),
            scopes: Set(scopes_json(&self.scopes)),
            expires_at: millis(self.state.expires_at),
            refresh_token_expires_at: millis(self.refresh_token_expires_at),
            granted_lifetime_ms: Set(lifetime_ms(self.state.granted_lifetime)),
            reserved_until: millis(self.state.reserved_until),
            refreshed_at: millis(self.refreshed_at),
            login_fingerprint: Set(self.login_fingerprint.clone()),
            issued_at: millis(self.issued_at),
            reported_at: Set(None),
            failure_code: Set(None),
            failure_message: Set(None),
            failure_fingerprint: Set(None),
            failed_at: Set(None),
            record_mac: Set(self.record_mac.clone()),
            updated_at: Set(self.updated_at.as_millis()),
            ..Default::default()
        }
    }

    /// The whole row of an identity's first pair.
    pub(super) fn first_row(&self) -> token_entry::ActiveModel {
        token_entry::ActiveModel {
            identity_id: Set(self.identity_id),
            user_id: Set(self.user_id.clone()),
            provider_id: Set(self.provider_id),
            created_at: Set(self.updated_at.as_millis()),
            ..self.pair_columns()
        }
    }

    /// Whether the outcome of a refresh of this pair is unknown, and its lease is over. If the provider acted, the pair may be
    /// dead.
    pub const fn is_in_doubt(&self) -> bool {
        self.attempt.is_some()
    }

    /// Whether the pair came from a refresh with the provider's present settings. That proves both good.
    pub fn was_refreshed_by(&self, provider: &Provider) -> bool {
        self.refreshed_at.is_some_and(|at| at >= provider.updated_at)
    }

    /// The origin of a pair that a refresh of this one brings.
    pub fn origin_of_successor(&self, asked_at: Timestamp) -> Origin {
        Origin { login: self.login_fingerprint.clone(), asked_at }
    }
}

/// The column's value.
fn scopes_json(scopes: &[String]) -> String {
    serde_json::Value::from(scopes.to_vec()).to_string()
}

/// The column's value.
pub(super) fn lifetime_ms(lifetime: Option<Duration>) -> Option<i64> {
    lifetime.map(|lifetime| i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX))
}

/// The identity that a pair belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner<'a> {
    pub(super) identity_id: i64,
    pub(super) user: &'a str,
    pub(super) provider_id: i64,
}

impl Store {
    /// An entry with this pair, before it has a row. A refresh keeps the fingerprint of the login that it goes back to.
    pub(super) fn new_entry(
        &self,
        owner: Owner<'_>,
        generation: i64,
        pair: &NewPair,
        login: Option<&str>,
        now: Timestamp,
    ) -> Entry {
        let Owner { identity_id, user, provider_id } = owner;
        let entry = Entry {
            id: NO_ROW,
            identity_id,
            user_id: user.to_owned(),
            provider_id,
            generation,
            username: pair.username.clone(),
            scopes: pair.scopes.clone(),
            state: TokenState {
                expires_at: pair.expires_at,
                reserved_until: pair.source.reserved_until(),
                granted_lifetime: pair.source.granted_lifetime(),
                refreshable: pair.refresh_token.is_some(),
                in_doubt: false,
                reported: false,
            },
            refresh_token_expires_at: pair.refresh_token_expires_at,
            lease: None,
            attempt: None,
            attempted_at: None,
            failure: None,
            record: Record::default(),
            record_mac: None,
            refreshed_at: pair.source.asked_at(),
            login_fingerprint: pair.login_fingerprint().or_else(|| login.map(str::to_owned)),
            // A date in the future would keep out whatever is issued until then.
            issued_at: pair.source.issued_at().map(|at| at.min(now)),
            updated_at: now,
            key_id: String::new(),
            access_token_sealed: Vec::new(),
            refresh_token_sealed: None,
        };
        // Last, because the tokens are bound to all of that.
        self.seal_pair(entry, &pair.access_token, pair.refresh_token.as_ref())
    }

    /// The failure that proves the present refresh token dead. A failure of an earlier refresh token says nothing about this
    /// one.
    pub fn condemnation<'a>(&self, entry: &'a Entry) -> Result<Option<&'a Failure>, StoreError> {
        let Some(failure) = entry.failure.as_ref().filter(|failure| failure.kind.condemns_refresh_token())
        else {
            return Ok(None);
        };
        let refresh_token = self.open_refresh_token(entry)?;
        Ok(refresh_token.filter(|token| fingerprint(token) == failure.fingerprint).map(|_| failure))
    }
}

/// The id of an entry that has no row yet. Databases count rows from one.
const NO_ROW: i64 = 0;
