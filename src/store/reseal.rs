//! Re-encrypts what is stored with the key and in the format that are used now, while workers go on with the same rows.
//!
//! Each write is guarded by the ciphertext that was opened. The generation alone would not do: SQLite gives the id of a removed
//! entry to the next one, whose generation begins again. What is sealed so already is left alone, so whoever
//! begins again goes on where the last one stopped.
//!
//! Format 1 does not bind a secret to the columns beside it. Those are believed as they stand: whoever re-encrypts such a row
//! vouches for them.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use sea_orm::sea_query::{Expr, ExprTrait, Func, SimpleExpr};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use tokenkeeper_entity::{auth_provider, token_entry};

use super::database::Fault;
use super::entry::Entry;
use super::provider::{SecretColumn, seal};
use super::{Store, StoreError};
use crate::domain::secret::{Format, OpenError, Sealer};

/// Entries that are read at once.
const PAGE: u64 = 256;

/// Statements that run at once. Workers need connections of the database, too.
const AT_ONCE: usize = 8;

/// How many rows are sealed with a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyRows {
    pub tokens: u64,
    pub providers: u64,
    /// Those of them that are in format 1.
    pub in_format_1: u64,
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
struct Counted {
    key_id: String,
    rows: i64,
    in_format_1: i64,
}

impl Store {
    /// Counts every row, by the key that it is sealed with.
    pub async fn rows_by_key(&self) -> Result<BTreeMap<String, KeyRows>, StoreError> {
        let failed = StoreError::database;
        let tokens = token_entry::Entity::find()
            .select_only()
            .column(token_entry::Column::KeyId)
            .column_as(token_entry::Column::Id.count(), "rows")
            .expr_as(count_if(in_format_1(token_entry::Column::AccessTokenSealed)), "in_format_1")
            .group_by(token_entry::Column::KeyId)
            .into_model::<Counted>()
            .all(&self.db)
            .await
            .map_err(failed("count tokens by their keys"))?;
        let providers = auth_provider::Entity::find()
            .select_only()
            .column(auth_provider::Column::KeyId)
            .column_as(auth_provider::Column::Id.count(), "rows")
            .expr_as(count_if(in_format_1(auth_provider::Column::ClientSecretSealed)), "in_format_1")
            .group_by(auth_provider::Column::KeyId)
            .into_model::<Counted>()
            .all(&self.db)
            .await
            .map_err(failed("count providers by their keys"))?;
        let mut keys: BTreeMap<String, KeyRows> = BTreeMap::new();
        let number = |rows: i64| u64::try_from(rows).unwrap_or_default();
        for Counted { key_id, rows, in_format_1 } in tokens {
            let of_key = keys.entry(key_id).or_default();
            (of_key.tokens, of_key.in_format_1) = (number(rows), number(in_format_1));
        }
        for Counted { key_id, rows, in_format_1 } in providers {
            let of_key = keys.entry(key_id).or_default();
            of_key.providers = number(rows);
            of_key.in_format_1 += number(in_format_1);
        }
        Ok(keys)
    }

    /// How many rows are sealed with another key, or in an older format, than those that are used now.
    pub async fn rows_to_reseal(&self) -> Result<u64, StoreError> {
        let failed = StoreError::database;
        let sealer = self.keys.sealer();
        let tokens = token_entry::Entity::find().filter(tokens_to_reseal(&sealer));
        let tokens = tokens.count(&self.db).await.map_err(failed("count the tokens of older keys"))?;
        let providers = auth_provider::Entity::find().filter(providers_to_reseal(&sealer));
        let providers = providers.count(&self.db).await;
        Ok(tokens + providers.map_err(failed("count the providers of older keys"))?)
    }

    /// Re-encrypts some entries behind the row `after`, and returns the last of them. None: there are no more.
    pub async fn reseal_entries(&self, after: i64) -> Result<Option<(i64, Resealed)>, StoreError> {
        let sealer = self.keys.sealer();
        let rows = token_entry::Entity::find()
            .filter(token_entry::Column::Id.gt(after))
            .filter(tokens_to_reseal(&sealer))
            .order_by_asc(token_entry::Column::Id)
            .limit(PAGE)
            .all(&self.db)
            .await
            .map_err(StoreError::database("load tokens of older keys"))?;
        let Some(last) = rows.last().map(|row| row.id) else { return Ok(None) };
        let mut resealed = Resealed::default();
        let mut outcomes =
            stream::iter(rows).map(|row| self.reseal_entry(row, &sealer)).buffer_unordered(AT_ONCE);
        while let Some(outcome) = outcomes.next().await {
            resealed.count(outcome?);
        }
        Ok(Some((last, resealed)))
    }

    async fn reseal_entry(
        &self,
        row: token_entry::Model,
        sealer: &Sealer<'_>,
    ) -> Result<Outcome, StoreError> {
        let id = row.id;
        let opened = Entry::from_row(row).and_then(|entry| {
            let (access, refresh) = (self.open_access_token(&entry)?, self.open_refresh_token(&entry)?);
            Ok((entry, access, refresh))
        });
        let (entry, access, refresh) = match opened {
            Ok(opened) => opened,
            Err(StoreError::Sealed { source, .. }) => {
                return Ok(Outcome::Unopened(format!("token_entry {id}: {source}")));
            }
            Err(error) => return Ok(Outcome::Unopened(format!("token_entry {id}: {error}"))),
        };
        let resealed = self.seal_pair_by(sealer, entry.clone(), &access, refresh.as_ref());
        let updated = token_entry::Entity::update_many()
            .col_expr(token_entry::Column::AccessTokenSealed, Expr::value(resealed.access_token_sealed))
            .col_expr(token_entry::Column::RefreshTokenSealed, Expr::value(resealed.refresh_token_sealed))
            .col_expr(token_entry::Column::KeyId, Expr::value(resealed.key_id))
            .col_expr(token_entry::Column::RecordMac, Expr::value(resealed.record_mac))
            // With what the code covers: an entry in format 1 has no code that would tell of a change.
            .filter(entry.is_as_decided_on())
            .filter(entry.has_record_as_loaded())
            .filter(token_entry::Column::AccessTokenSealed.eq(entry.access_token_sealed))
            .exec(&self.db)
            .await
            .map(|updated| updated.rows_affected);
        outcome(updated.map_err(StoreError::database("re-encrypt a token")))
    }

    /// Re-encrypts the secrets of every provider.
    pub async fn reseal_providers(&self) -> Result<Resealed, StoreError> {
        let sealer = self.keys.sealer();
        let rows = auth_provider::Entity::find()
            .filter(providers_to_reseal(&sealer))
            .all(&self.db)
            .await
            .map_err(StoreError::database("load providers of older keys"))?;
        let mut resealed = Resealed::default();
        for row in rows {
            resealed.count(self.reseal_provider(row, &sealer).await?);
        }
        Ok(resealed)
    }

    async fn reseal_provider(
        &self,
        row: auth_provider::Model,
        sealer: &Sealer<'_>,
    ) -> Result<Outcome, StoreError> {
        let open = |column: SecretColumn, sealed: &[u8]| {
            self.keys.open(&row.key_id, sealed, column.binding(&row)).map_err(|error: OpenError| {
                Outcome::Unopened(format!("auth_provider {} ({}): {error}", row.id, row.host))
            })
        };
        let secret = open(SecretColumn::ClientSecret, &row.client_secret_sealed);
        let spare = row.spare_client_secrets_sealed.as_deref();
        let spare = spare.map(|sealed| open(SecretColumn::SpareClientSecrets, sealed)).transpose();
        let (secret, spare) = match (secret, spare) {
            (Ok(secret), Ok(spare)) => (secret, spare),
            (Err(unopened), _) | (_, Err(unopened)) => return Ok(unopened),
        };
        // Its date stays: what its tokens proved of its settings is still true.
        let resealed = seal(sealer, row.clone(), &secret, spare.as_ref());
        let updated = auth_provider::Entity::update_many()
            .col_expr(auth_provider::Column::ClientSecretSealed, Expr::value(resealed.client_secret_sealed))
            .col_expr(
                auth_provider::Column::SpareClientSecretsSealed,
                Expr::value(resealed.spare_client_secrets_sealed),
            )
            .col_expr(auth_provider::Column::KeyId, Expr::value(resealed.key_id))
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

fn tokens_to_reseal(sealer: &Sealer<'_>) -> Condition {
    let other_key = token_entry::Column::KeyId.ne(sealer.key().id());
    to_reseal(sealer, other_key, token_entry::Column::AccessTokenSealed)
}

fn providers_to_reseal(sealer: &Sealer<'_>) -> Condition {
    let other_key = auth_provider::Column::KeyId.ne(sealer.key().id());
    to_reseal(sealer, other_key, auth_provider::Column::ClientSecretSealed)
}

fn to_reseal(sealer: &Sealer<'_>, other_key: SimpleExpr, column: impl ColumnTrait) -> Condition {
    let condition = Condition::any().add(other_key);
    match sealer.format() {
        Format::One => condition,
        Format::Two => condition.add(in_format_1(column)),
    }
}

/// Whether a column holds a secret in format 1, by its first byte.
fn in_format_1(sealed: impl ColumnTrait) -> SimpleExpr {
    let first = Func::cust("substr").arg(Expr::col(sealed.as_column_ref())).arg(1).arg(1);
    ExprTrait::eq(SimpleExpr::from(first), vec![1_u8])
}

/// A number, because the three databases give a sum three different types.
fn count_if(condition: SimpleExpr) -> SimpleExpr {
    Func::count(Expr::case(condition, Expr::value(1)).finally(Expr::value(None::<i32>))).into()
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
