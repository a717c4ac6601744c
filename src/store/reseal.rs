//! Re-encrypts what is stored with the key that seals now, while workers go on with the same rows.
//!
//! Each write is guarded by the ciphertext that was opened. The generation alone would not do: SQLite gives the id of a removed
//! entry to the next one, whose generation begins again. What is sealed with that key already is left alone, so whoever
//! begins again goes on where the last one stopped.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use tokenkeeper_entity::{auth_provider, token_entry};

use super::database::Fault;
use super::entry::PairColumn;
use super::provider::SecretColumn;
use super::{Store, StoreError};
use crate::domain::secret::{OpenError, RingKey};

/// Entries that are read at once.
const PAGE: u64 = 256;

/// Statements that run at once. Workers need connections of the database, too.
const AT_ONCE: usize = 8;

/// How many rows are sealed with a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyRows {
    pub tokens: u64,
    pub providers: u64,
}

/// What came of re-encrypting some rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resealed {
    pub done: u64,
    /// Rows that changed meanwhile, or that somebody else was writing. The next pass looks at them again.
    pub moved: u64,
    /// Rows that did not open, and why.
    pub unopened: Vec<String>,
}

impl Resealed {
    /// Adds what came of further rows.
    pub fn add(&mut self, other: Self) {
        self.done += other.done;
        self.moved += other.moved;
        self.unopened.extend(other.unopened);
    }

    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.done += 1,
            Outcome::Moved => self.moved += 1,
            Outcome::Unopened(why) => self.unopened.push(why),
        }
    }
}

enum Outcome {
    Done,
    Moved,
    Unopened(String),
}

#[derive(FromQueryResult)]
struct SealedEntry {
    id: i64,
    identity_id: i64,
    generation: i64,
    access_token_sealed: Vec<u8>,
    refresh_token_sealed: Option<Vec<u8>>,
    key_id: String,
}

#[derive(FromQueryResult)]
struct Counted {
    key_id: String,
    rows: i64,
}

impl Store {
    /// Counts every row, by the key that it is sealed with.
    pub async fn rows_by_key(&self) -> Result<BTreeMap<String, KeyRows>, StoreError> {
        let failed = StoreError::database;
        let tokens = token_entry::Entity::find()
            .select_only()
            .column(token_entry::Column::KeyId)
            .column_as(token_entry::Column::Id.count(), "rows")
            .group_by(token_entry::Column::KeyId)
            .into_model::<Counted>()
            .all(&self.db)
            .await
            .map_err(failed("count tokens by their keys"))?;
        let providers = auth_provider::Entity::find()
            .select_only()
            .column(auth_provider::Column::KeyId)
            .column_as(auth_provider::Column::Id.count(), "rows")
            .group_by(auth_provider::Column::KeyId)
            .into_model::<Counted>()
            .all(&self.db)
            .await
            .map_err(failed("count providers by their keys"))?;
        let mut keys: BTreeMap<String, KeyRows> = BTreeMap::new();
        for Counted { key_id, rows } in tokens {
            keys.entry(key_id).or_default().tokens = u64::try_from(rows).unwrap_or_default();
        }
        for Counted { key_id, rows } in providers {
            keys.entry(key_id).or_default().providers = u64::try_from(rows).unwrap_or_default();
        }
        Ok(keys)
    }

    /// How many rows are sealed with other keys than the one that seals now.
    pub async fn rows_to_reseal(&self) -> Result<u64, StoreError> {
        let failed = StoreError::database;
        let key_id = self.keys.sealing_key().id();
        let tokens = token_entry::Entity::find().filter(token_entry::Column::KeyId.ne(key_id));
        let tokens = tokens.count(&self.db).await.map_err(failed("count the tokens of older keys"))?;
        let providers = auth_provider::Entity::find().filter(auth_provider::Column::KeyId.ne(key_id));
        let providers = providers.count(&self.db).await;
        Ok(tokens + providers.map_err(failed("count the providers of older keys"))?)
    }

    /// Re-encrypts some entries behind the row `after`, and returns the last of them. None: there are no more.
    pub async fn reseal_entries(&self, after: i64) -> Result<Option<(i64, Resealed)>, StoreError> {
        let key = self.keys.sealing_key();
        let rows = token_entry::Entity::find()
            .select_only()
            .columns([
                token_entry::Column::Id,
                token_entry::Column::IdentityId,
                token_entry::Column::Generation,
                token_entry::Column::AccessTokenSealed,
                token_entry::Column::RefreshTokenSealed,
                token_entry::Column::KeyId,
            ])
            .filter(token_entry::Column::Id.gt(after))
            .filter(token_entry::Column::KeyId.ne(key.id()))
            .order_by_asc(token_entry::Column::Id)
            .limit(PAGE)
            .into_model::<SealedEntry>()
            .all(&self.db)
            .await
            .map_err(StoreError::database("load tokens of older keys"))?;
        let Some(last) = rows.last().map(|row| row.id) else { return Ok(None) };
        let mut resealed = Resealed::default();
        let mut outcomes =
            stream::iter(rows).map(|row| self.reseal_entry(row, key)).buffer_unordered(AT_ONCE);
        while let Some(outcome) = outcomes.next().await {
            resealed.count(outcome?);
        }
        Ok(Some((last, resealed)))
    }

    async fn reseal_entry(&self, row: SealedEntry, key: &RingKey) -> Result<Outcome, StoreError> {
        let seal_anew = |column: PairColumn, sealed: &[u8]| {
            let bound_to = column.bound_to(row.identity_id, row.generation);
            let secret = self.keys.open(&row.key_id, sealed, &bound_to)?;
            Ok::<_, OpenError>(key.seal(&secret, &bound_to).bytes)
        };
        let access = seal_anew(PairColumn::AccessToken, &row.access_token_sealed);
        let refresh = row.refresh_token_sealed.as_deref();
        let refresh = refresh.map(|sealed| seal_anew(PairColumn::RefreshToken, sealed)).transpose();
        let (access, refresh) = match (access, refresh) {
            (Ok(access), Ok(refresh)) => (access, refresh),
            (Err(error), _) | (_, Err(error)) => {
                return Ok(Outcome::Unopened(format!("token_entry {}: {error}", row.id)));
            }
        };
        let updated = token_entry::Entity::update_many()
            .col_expr(token_entry::Column::AccessTokenSealed, Expr::value(access))
            .col_expr(token_entry::Column::RefreshTokenSealed, Expr::value(refresh))
            .col_expr(token_entry::Column::KeyId, Expr::value(key.id()))
            .filter(token_entry::Column::Id.eq(row.id))
            .filter(token_entry::Column::Generation.eq(row.generation))
            .filter(token_entry::Column::AccessTokenSealed.eq(row.access_token_sealed))
            .exec(&self.db)
            .await
            .map(|updated| updated.rows_affected);
        outcome(updated.map_err(StoreError::database("re-encrypt a token")))
    }

    /// Re-encrypts the secrets of every provider.
    pub async fn reseal_providers(&self) -> Result<Resealed, StoreError> {
        let key = self.keys.sealing_key();
        let rows = auth_provider::Entity::find()
            .filter(auth_provider::Column::KeyId.ne(key.id()))
            .all(&self.db)
            .await
            .map_err(StoreError::database("load providers of older keys"))?;
        let mut resealed = Resealed::default();
        for row in rows {
            resealed.count(self.reseal_provider(row, key).await?);
        }
        Ok(resealed)
    }

    async fn reseal_provider(&self, row: auth_provider::Model, key: &RingKey) -> Result<Outcome, StoreError> {
        let seal_anew = |column: SecretColumn, sealed: &[u8]| {
            let bound_to = column.bound_to(&row.host);
            let secret = self.keys.open(&row.key_id, sealed, &bound_to)?;
            Ok::<_, OpenError>(key.seal(&secret, &bound_to).bytes)
        };
        let secret = seal_anew(SecretColumn::ClientSecret, &row.client_secret_sealed);
        let spare = row.spare_client_secrets_sealed.as_deref();
        let spare = spare.map(|sealed| seal_anew(SecretColumn::SpareClientSecrets, sealed)).transpose();
        let (secret, spare) = match (secret, spare) {
            (Ok(secret), Ok(spare)) => (secret, spare),
            (Err(error), _) | (_, Err(error)) => {
                return Ok(Outcome::Unopened(format!("auth_provider {} ({}): {error}", row.id, row.host)));
            }
        };
        // Its date stays: what its tokens proved of its settings is still true.
        let updated = auth_provider::Entity::update_many()
            .col_expr(auth_provider::Column::ClientSecretSealed, Expr::value(secret))
            .col_expr(auth_provider::Column::SpareClientSecretsSealed, Expr::value(spare))
            .col_expr(auth_provider::Column::KeyId, Expr::value(key.id()))
            .filter(
                Condition::all()
                    .add(auth_provider::Column::Id.eq(row.id))
                    .add(auth_provider::Column::ClientSecretSealed.eq(row.client_secret_sealed)),
            )
            .exec(&self.db)
            .await
            .map(|updated| updated.rows_affected);
        outcome(updated.map_err(StoreError::database("re-encrypt a provider's secrets")))
    }
}

/// A row that somebody else is writing is left to the next pass: MariaDB waits a second for it.
fn outcome(updated: Result<u64, StoreError>) -> Result<Outcome, StoreError> {
    match updated {
        Ok(0) => Ok(Outcome::Moved),
        Ok(_) => Ok(Outcome::Done),
        Err(StoreError::Database { source, .. }) if Fault::of(&source) == Fault::Locked => Ok(Outcome::Moved),
        Err(error) => Err(error),
    }
}
