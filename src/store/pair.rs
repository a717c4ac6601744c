//! Stores pairs, and tells which of two is newer.

use std::cmp::Ordering;
use std::time::Duration;

use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, Value};
use tokenkeeper_entity::token_entry;

use super::entry::{Entry, Origin};
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::secret::{ExposeSecret, SecretString, fingerprint};

/// A pair to store.
#[derive(Debug, Clone)]
pub struct NewPair {
    pub access_token: SecretString,
    /// None: not refreshable.
    pub refresh_token: Option<SecretString>,
    /// Git user name. None: the provider's.
    pub username: Option<String>,
    pub scopes: Vec<String>,
    /// None: never.
    pub expires_at: Option<Timestamp>,
    /// None: unknown.
    pub refresh_token_expires_at: Option<Timestamp>,
    pub source: PairSource,
}

impl NewPair {
    /// This pair with the longer of both reservations: the current pair may have been handed out, and reservations only grow.
    pub(super) fn reserved_like(&self, current: &Entry) -> Self {
        let mut pair = self.clone();
        if let PairSource::Refresh { reserved_until, .. } = &mut pair.source {
            *reserved_until =
                current.state.reserved_until.map_or(*reserved_until, |held| held.max(*reserved_until));
        }
        pair
    }

    /// None: a refresh brought the pair.
    pub(super) fn login_fingerprint(&self) -> Option<String> {
        match &self.source {
            PairSource::Login | PairSource::DatedLogin { .. } => Some(self.fingerprint()),
            PairSource::Refresh { .. } => None,
        }
    }

    /// Covers both tokens, because a host may return one of them unchanged in another login.
    fn fingerprint(&self) -> String {
        let Some(refresh_token) = &self.refresh_token else { return fingerprint(&self.access_token) };
        // A line break is in no token that a login may store.
        let both = [self.access_token.expose_secret(), refresh_token.expose_secret()].join("\n");
        fingerprint(&both.into())
    }

    /// Whether a login with this pair would lose a newer one: `stored` came from the same login and was refreshed since, or
    /// may be; or it was issued or stored after this pair was issued. A repeated login with nothing new is older, too.
    pub(super) fn is_older_than(&self, stored: &Entry) -> bool {
        let is_repeated = self.is_of_the_login_of(stored)
            && (stored.refreshed_at.is_some() || stored.is_in_doubt() || self.brings_nothing_to(stored));
        is_repeated
            || self.source.issued_at().is_some_and(|at| stored.issued_at.unwrap_or(stored.updated_at) > at)
    }

    fn is_of_the_login_of(&self, stored: &Entry) -> bool {
        let Some(login) = &stored.login_fingerprint else { return false };
        // Older versions wrote the fingerprint of the access token alone.
        let as_before = self.refresh_token.is_some() == stored.state.refreshable
            && *login == fingerprint(&self.access_token);
        *login == self.fingerprint() || as_before
    }

    /// What stands beside the tokens is the same, and there is no failure or report that the login would clear.
    fn brings_nothing_to(&self, stored: &Entry) -> bool {
        stored.failure.is_none()
            && stored.record.reported_at.is_none()
            && self.username == stored.username
            && self.scopes == stored.scopes
            && self.expires_at == stored.state.expires_at
            && self.refresh_token_expires_at == stored.refresh_token_expires_at
    }
}

/// Where a pair comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairSource {
    /// A refresh.
    Refresh {
        /// None: the provider did not say.
        granted_lifetime: Option<Duration>,
        reserved_until: Timestamp,
        origin: Origin,
    },
    /// A login flow. Nobody holds the pair yet, and the granted lifetime is unknown.
    Login,
    /// A login flow of some time ago: the provider issued the pair at this date.
    DatedLogin { issued_at: Timestamp },
}

impl PairSource {
    pub(super) const fn granted_lifetime(&self) -> Option<Duration> {
        match self {
            Self::Refresh { granted_lifetime, .. } => *granted_lifetime,
            Self::Login | Self::DatedLogin { .. } => None,
        }
    }

    pub(super) const fn reserved_until(&self) -> Option<Timestamp> {
        match self {
            Self::Refresh { reserved_until, .. } => Some(*reserved_until),
            Self::Login | Self::DatedLogin { .. } => None,
        }
    }

    /// A refreshed pair is newer only than another refreshed pair of the same login that was asked for earlier. A login's own
    /// pair, or a pair of another login, stays: the user has logged in again.
    pub(super) fn age_beside(&self, current: &Entry) -> Age {
        match (self, current.refreshed_at) {
            (Self::Refresh { origin, .. }, Some(stored_at)) if origin.login == current.login_fingerprint => {
                match origin.asked_at.cmp(&stored_at) {
                    Ordering::Less => Age::Older,
                    Ordering::Equal => Age::Same,
                    Ordering::Greater => Age::Newer,
                }
            }
            _ => Age::Older,
        }
    }

    pub(super) const fn asked_at(&self) -> Option<Timestamp> {
        match self {
            Self::Refresh { origin, .. } => Some(origin.asked_at),
            Self::Login | Self::DatedLogin { .. } => None,
        }
    }

    pub(super) const fn issued_at(&self) -> Option<Timestamp> {
        match self {
            Self::DatedLogin { issued_at } => Some(*issued_at),
            Self::Login | Self::Refresh { .. } => None,
        }
    }
}

/// Whose lease and attempt end with the stored pair.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leases<'a> {
    /// Anybody's: a login wins over whatever is under way.
    All,
    /// This holder's. A flight that has taken over meanwhile goes on.
    Of(&'a str),
}

impl Leases<'_> {
    /// The guard of the UPDATE that stores the pair.
    fn guard(self, entry: &Entry) -> Condition {
        match self {
            // Whether a login is repeated depends on the attempt, too.
            Self::All => entry.is_as_decided_on(),
            Self::Of(_) => entry.is_unmoved(),
        }
    }

    /// The new value of a column of the lease.
    fn cleared<T: Into<Value>>(self, column: token_entry::Column, nothing: T) -> Expr {
        match self {
            Self::All => Expr::value(nothing),
            Self::Of(holder) => {
                let own = token_entry::Column::LeaseHolder.eq(holder);
                Expr::case(own, Expr::value(nothing)).finally(Expr::col(column)).into()
            }
        }
    }
}

/// A pair's age relative to the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Older,
    Same,
    Newer,
}

impl Store {
    /// Stores the next generation of an entry: pair, dates and reservation as given, lease and failure cleared.
    ///
    /// Guarded by the generation: a caller with the current generation has the newest pair, with or without the lease. Any
    /// other caller must not overwrite the newer pair. A login is guarded by what it was judged by, too ([`Leases::guard`]).
    ///
    /// Returns the stored entry, or none if the row has changed.
    pub(super) async fn store_pair(
        &self,
        entry: &Entry,
        pair: &NewPair,
        leases: Leases<'_>,
        now: Timestamp,
    ) -> Result<Option<Entry>, StoreError> {
        let successor = self.successor(entry, pair, now);
        let stored = self.store_successor(entry, &successor, leases).await?;
        Ok(match stored {
            Guarded::Done => Some(successor),
            Guarded::Moved => None,
        })
    }

    /// One UPDATE: the row of `entry` becomes `successor`.
    pub(super) async fn store_successor(
        &self,
        entry: &Entry,
        successor: &Entry,
        leases: Leases<'_>,
    ) -> Result<Guarded, StoreError> {
        let updated = token_entry::Entity::update_many()
            .set(successor.pair_columns())
            // MySQL and MariaDB assign one column after the other. The others depend on the holder, so it goes last.
            .col_expr(
                token_entry::Column::AttemptFingerprint,
                leases.cleared(token_entry::Column::AttemptFingerprint, None::<String>),
            )
            .col_expr(
                token_entry::Column::LeaseUntil,
                leases.cleared(token_entry::Column::LeaseUntil, None::<i64>),
            )
            .col_expr(
                token_entry::Column::LeaseHolder,
                leases.cleared(token_entry::Column::LeaseHolder, None::<String>),
            )
            .filter(leases.guard(entry))
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("store a token pair"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    /// The entry that follows `entry` with this pair.
    pub(super) fn successor(&self, entry: &Entry, pair: &NewPair, now: Timestamp) -> Entry {
        let login = entry.login_fingerprint.as_deref();
        Entry { id: entry.id, ..self.new_entry(entry.owner(), entry.generation + 1, pair, login, now) }
    }
}
