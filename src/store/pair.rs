//! Storing pairs: the one a refresh issued, and the one a login flow obtained.

use std::cmp::Ordering;
use std::time::Duration;

use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveModelTrait, ColumnTrait, DbErr, EntityTrait, QueryFilter, SqlErr};
use tokenkeeper_entity::{identity, token_entry};

use super::entry::{Entry, Origin, PairColumn};
use super::{Guarded, Store, StoreError};
use crate::clock::Timestamp;
use crate::decide::TokenState;
use crate::secret::{SecretString, fingerprint};

/// A pair to store.
#[derive(Debug, Clone)]
pub struct NewPair {
    /// The access token.
    pub access_token: SecretString,
    /// The refresh token; none: not refreshable.
    pub refresh_token: Option<SecretString>,
    /// Git user name that goes with it; none: the provider's.
    pub username: Option<String>,
    /// The scopes that were granted.
    pub scopes: Vec<String>,
    /// When the access token expires; none: never.
    pub expires_at: Option<Timestamp>,
    /// When the refresh token expires, where it is known.
    pub refresh_token_expires_at: Option<Timestamp>,
    /// Where it comes from.
    pub source: PairSource,
}

impl NewPair {
    /// This pair, in the place of one that was handed out already: a reservation only ever grows.
    fn reserved_like(&self, current: &Entry) -> Self {
        let mut pair = self.clone();
        if let PairSource::Refresh { reserved_until, .. } = &mut pair.source {
            *reserved_until =
                current.state.reserved_until.map_or(*reserved_until, |held| held.max(*reserved_until));
        }
        pair
    }

    fn login_fingerprint(&self) -> Option<String> {
        match &self.source {
            PairSource::Login => Some(fingerprint(&self.access_token)),
            PairSource::Refresh { .. } => None,
        }
    }
}

/// Where a pair comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairSource {
    /// A refresh, for a request that needs it until then.
    Refresh {
        /// The lifetime the provider granted, where it said so.
        granted_lifetime: Option<Duration>,
        /// The new reservation.
        reserved_until: Timestamp,
        /// Which refresh it was.
        origin: Origin,
    },
    /// A login flow: nobody holds it yet, and how long the provider's tokens live is not known.
    Login,
}

impl PairSource {
    const fn granted_lifetime(&self) -> Option<Duration> {
        match self {
            Self::Refresh { granted_lifetime, .. } => *granted_lifetime,
            Self::Login => None,
        }
    }

    fn granted_lifetime_ms(&self) -> Option<i64> {
        self.granted_lifetime().map(|lifetime| i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX))
    }

    const fn reserved_until(&self) -> Option<Timestamp> {
        match self {
            Self::Refresh { reserved_until, .. } => Some(*reserved_until),
            Self::Login => None,
        }
    }

    /// Of two pairs that were obtained with the same refresh token the later is the newer one. Any other pair that
    /// is stored already is.
    fn age_beside(&self, current: &Entry) -> Age {
        match (self, &current.origin) {
            (Self::Refresh { origin, .. }, Some(stored)) if origin.refresh_token == stored.refresh_token => {
                match origin.asked_at.cmp(&stored.asked_at) {
                    Ordering::Less => Age::Older,
                    Ordering::Equal => Age::Same,
                    Ordering::Greater => Age::Newer,
                }
            }
            _ => Age::Older,
        }
    }

    const fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Refresh { origin, .. } => Some(origin),
            Self::Login => None,
        }
    }
}

/// A pair beside the one that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Older,
    Same,
    Newer,
}

/// What a login flow says about the user's account at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountNames {
    /// Its id there.
    pub auth_id: String,
    /// Its display name there.
    pub auth_name: Option<String>,
}

impl Store {
    /// Stores the next generation of an entry: pair, dates and reservation as given, lease and failure cleared.
    ///
    /// Guarded by the generation alone. Whoever still has the entry's generation has its newest pair, lease or no
    /// lease; whoever does not must not overwrite the newer one.
    ///
    /// Gives back the entry as it is stored now, or none where the generation has moved.
    pub async fn store_pair(
        &self,
        entry: &Entry,
        pair: &NewPair,
        now: Timestamp,
    ) -> Result<Option<Entry>, StoreError> {
        let successor = self.successor(entry, pair, now);
        let nothing = || Expr::value(None::<String>);
        let mut update = token_entry::Entity::update_many();
        if let Some(login) = pair.login_fingerprint() {
            update = update.col_expr(token_entry::Column::LoginFingerprint, Expr::value(login));
        }
        let updated = update
            .col_expr(token_entry::Column::Generation, Expr::value(successor.generation))
            .col_expr(
                token_entry::Column::AccessTokenSealed,
                Expr::value(successor.access_token_sealed.clone()),
            )
            .col_expr(
                token_entry::Column::RefreshTokenSealed,
                Expr::value(successor.refresh_token_sealed.clone()),
            )
            .col_expr(token_entry::Column::KeyId, Expr::value(successor.key_id.as_str()))
            .col_expr(token_entry::Column::Username, Expr::value(pair.username.clone()))
            .col_expr(token_entry::Column::Scopes, Expr::value(scopes_json(&pair.scopes)))
            .col_expr(token_entry::Column::ExpiresAt, Expr::value(pair.expires_at.map(Timestamp::as_millis)))
            .col_expr(
                token_entry::Column::RefreshTokenExpiresAt,
                Expr::value(pair.refresh_token_expires_at.map(Timestamp::as_millis)),
            )
            .col_expr(token_entry::Column::GrantedLifetimeMs, Expr::value(pair.source.granted_lifetime_ms()))
            .col_expr(
                token_entry::Column::ReservedUntil,
                Expr::value(pair.source.reserved_until().map(Timestamp::as_millis)),
            )
            .col_expr(token_entry::Column::LeaseHolder, nothing())
            .col_expr(token_entry::Column::LeaseUntil, Expr::value(None::<i64>))
            .col_expr(token_entry::Column::AttemptFingerprint, nothing())
            .col_expr(
                token_entry::Column::RefreshedFrom,
                Expr::value(successor.origin.as_ref().map(|origin| origin.refresh_token.as_str())),
            )
            .col_expr(
                token_entry::Column::RefreshedAt,
                Expr::value(successor.origin.as_ref().map(|origin| origin.asked_at.as_millis())),
            )
            .col_expr(token_entry::Column::FailureCode, nothing())
            .col_expr(token_entry::Column::FailureMessage, nothing())
            .col_expr(token_entry::Column::FailureFingerprint, nothing())
            .col_expr(token_entry::Column::FailedAt, Expr::value(None::<i64>))
            .col_expr(token_entry::Column::UpdatedAt, Expr::value(now.as_millis()))
            .filter(entry.is_unmoved())
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("store a token pair"))?;
        match Guarded::from_rows(updated.rows_affected) {
            Guarded::Done => Ok(Some(successor)),
            Guarded::Moved => Ok(None),
        }
    }

    /// Stores what a refresh of `entry` issued, whatever has become of the row meanwhile.
    ///
    /// Where the generation has moved, the newer pair stays: a login's, and one of a later generation. But a provider
    /// that accepts a refresh token again can issue two pairs for one, when a worker was frozen and another one took
    /// its place. Then the one that was asked for later is the newer one, and is stored over the other.
    ///
    /// Gives back the entry as it is stored now, or none where a newer pair is there, or the entry is gone.
    pub async fn store_refreshed(
        &self,
        entry: &Entry,
        pair: &NewPair,
        now: Timestamp,
    ) -> Result<Option<Entry>, StoreError> {
        let mut stored = self.store_pair(entry, pair, now).await?;
        while stored.is_none() {
            let Some(current) = self.reload(entry.id).await? else { return Ok(None) };
            match pair.source.age_beside(&current) {
                // The answer to an earlier try was lost, not the try.
                Age::Same => return Ok(Some(current)),
                Age::Older => return Ok(None),
                Age::Newer => stored = self.store_pair(&current, &pair.reserved_like(&current), now).await?,
            }
        }
        Ok(stored)
    }

    /// The entry that follows `entry` with this pair.
    fn successor(&self, entry: &Entry, pair: &NewPair, now: Timestamp) -> Entry {
        let generation = entry.generation + 1;
        let sealed = self.seal_pair(entry.identity_id, generation, pair);
        Entry {
            id: entry.id,
            identity_id: entry.identity_id,
            generation,
            username: pair.username.clone(),
            scopes: pair.scopes.clone(),
            state: TokenState {
                expires_at: pair.expires_at,
                reserved_until: pair.source.reserved_until(),
                granted_lifetime: pair.source.granted_lifetime(),
                refreshable: pair.refresh_token.is_some(),
                in_doubt: false,
            },
            refresh_token_expires_at: pair.refresh_token_expires_at,
            lease: None,
            attempt: None,
            origin: pair.source.origin().cloned(),
            failure: None,
            failed_at: None,
            updated_at: now,
            access_token_sealed: sealed.access_token,
            refresh_token_sealed: sealed.refresh_token,
            key_id: sealed.key_id,
        }
    }

    /// Creates or replaces identity and pair. It wins over a refresh that is under way: the generation moves.
    ///
    /// A message that the broker delivers a second time changes nothing where its pair was stored already: a
    /// refresh may have replaced that pair in between, and its successor must not be lost (invariant 4).
    pub async fn put_login(
        &self,
        user_id: &str,
        provider_id: i64,
        account: &AccountNames,
        pair: &NewPair,
        redelivered: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let identity_id = self.put_identity(user_id, provider_id, account, now).await?;
        loop {
            let entry = token_entry::Entity::find()
                .filter(token_entry::Column::IdentityId.eq(identity_id))
                .one(&self.db)
                .await
                .map_err(StoreError::database("load the token of an identity"))?;
            let stored = match entry {
                Some(row) if redelivered && row.login_fingerprint == pair.login_fingerprint() => true,
                Some(row) => self.store_pair(&Entry::from_row(row)?, pair, now).await?.is_some(),
                None => self.insert_entry(identity_id, pair, now).await? == Guarded::Done,
            };
            if stored {
                return Ok(());
            }
        }
    }

    async fn put_identity(
        &self,
        user_id: &str,
        provider_id: i64,
        account: &AccountNames,
        now: Timestamp,
    ) -> Result<i64, StoreError> {
        loop {
            let known = identity::Entity::find()
                .filter(identity::Column::UserId.eq(user_id))
                .filter(identity::Column::ProviderId.eq(provider_id))
                .one(&self.db)
                .await
                .map_err(StoreError::database("look an identity up"))?;
            if let Some(known) = known {
                self.rename_identity(&known, account, now).await?;
                return Ok(known.id);
            }
            let new = identity::ActiveModel {
                id: NotSet,
                user_id: Set(user_id.to_owned()),
                provider_id: Set(provider_id),
                auth_id: Set(account.auth_id.clone()),
                auth_name: Set(account.auth_name.clone()),
                created_at: Set(now.as_millis()),
                updated_at: Set(now.as_millis()),
            };
            match new.insert(&self.db).await {
                Ok(row) => return Ok(row.id),
                Err(error) if is_duplicate(&error) => {}
                Err(source) => return Err(StoreError::Database { action: "store an identity", source }),
            }
        }
    }

    async fn rename_identity(
        &self,
        known: &identity::Model,
        account: &AccountNames,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if known.auth_id == account.auth_id && known.auth_name == account.auth_name {
            return Ok(());
        }
        identity::Entity::update_many()
            .col_expr(identity::Column::AuthId, Expr::value(account.auth_id.as_str()))
            .col_expr(identity::Column::AuthName, Expr::value(account.auth_name.clone()))
            .col_expr(identity::Column::UpdatedAt, Expr::value(now.as_millis()))
            .filter(identity::Column::Id.eq(known.id))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("rename an identity"))?;
        Ok(())
    }

    /// Inserts the first entry of an identity; `Moved` where another worker was first.
    async fn insert_entry(
        &self,
        identity_id: i64,
        pair: &NewPair,
        now: Timestamp,
    ) -> Result<Guarded, StoreError> {
        let generation = 1;
        let sealed = self.seal_pair(identity_id, generation, pair);
        let new = token_entry::ActiveModel {
            id: NotSet,
            identity_id: Set(identity_id),
            generation: Set(generation),
            access_token_sealed: Set(sealed.access_token),
            refresh_token_sealed: Set(sealed.refresh_token),
            key_id: Set(sealed.key_id),
            username: Set(pair.username.clone()),
            scopes: Set(scopes_json(&pair.scopes)),
            expires_at: Set(pair.expires_at.map(Timestamp::as_millis)),
            refresh_token_expires_at: Set(pair.refresh_token_expires_at.map(Timestamp::as_millis)),
            granted_lifetime_ms: Set(pair.source.granted_lifetime_ms()),
            reserved_until: Set(pair.source.reserved_until().map(Timestamp::as_millis)),
            lease_holder: Set(None),
            lease_until: Set(None),
            attempt_fingerprint: Set(None),
            failure_code: Set(None),
            failure_message: Set(None),
            failure_fingerprint: Set(None),
            failed_at: Set(None),
            login_fingerprint: Set(pair.login_fingerprint()),
            refreshed_from: Set(None),
            refreshed_at: Set(None),
            created_at: Set(now.as_millis()),
            updated_at: Set(now.as_millis()),
        };
        match token_entry::Entity::insert(new).exec_without_returning(&self.db).await {
            Ok(_) => Ok(Guarded::Done),
            Err(error) if is_duplicate(&error) => Ok(Guarded::Moved),
            Err(source) => Err(StoreError::Database { action: "store a first token pair", source }),
        }
    }

    fn seal_pair(&self, identity_id: i64, generation: i64, pair: &NewPair) -> SealedPair {
        let seal = |secret: &SecretString, column: PairColumn| {
            self.keys.seal(secret, &column.bound_to(identity_id, generation))
        };
        let access_token = seal(&pair.access_token, PairColumn::AccessToken);
        let refresh_token = pair.refresh_token.as_ref().map(|token| seal(token, PairColumn::RefreshToken));
        SealedPair {
            key_id: access_token.key_id,
            access_token: access_token.bytes,
            refresh_token: refresh_token.map(|sealed| sealed.bytes),
        }
    }
}

struct SealedPair {
    key_id: String,
    access_token: Vec<u8>,
    refresh_token: Option<Vec<u8>>,
}

pub(super) fn is_duplicate(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

fn scopes_json(scopes: &[String]) -> String {
    serde_json::Value::from(scopes.to_vec()).to_string()
}
