//! The canaries: which keys rows may be sealed with (`domain/key_use.rs`).

use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use tokenkeeper_entity::key_canary::{ActiveModel, Column, Entity as KeyCanary, Model};
use tokenkeeper_entity::{auth_provider, token_entry};

use super::entry::Entry;
use super::login::is_duplicate;
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::key_use::Canary;
use crate::domain::secret::{Format, KeyRing, OpenError, RingKey};

/// So many rows are tried to prove a key: one of them may be damaged.
const SAMPLES: u64 = 5;

/// Whether a key of the ring is the one that rows are sealed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyProof {
    /// It opens them, or there are none.
    Proven,
    /// It opens none of them.
    OtherKey,
    /// They are in format 1, which the ring refuses.
    RefusedFormat,
}

impl Store {
    pub const fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Every canary, by the key's id.
    pub async fn canaries(&self) -> Result<Vec<Canary>, StoreError> {
        let rows = KeyCanary::find().order_by_asc(Column::KeyId).all(&self.urgent).await;
        let rows = rows.map_err(StoreError::database("look at the keys in use"))?;
        Ok(rows.into_iter().map(canary).collect())
    }

    pub async fn canary(&self, key_id: &str) -> Result<Option<Canary>, StoreError> {
        let row = KeyCanary::find_by_id(key_id).one(&self.urgent).await;
        Ok(row.map_err(StoreError::database("look at a key in use"))?.map(canary))
    }

    /// Writes the key's canary, in the format that is sealed in now. `Moved`: there is one already.
    pub async fn announce_key(&self, key: &RingKey) -> Result<Guarded, StoreError> {
        let row = ActiveModel {
            key_id: Set(key.id().to_owned()),
            sealed: Set(Some(Canary::sealed_by(&self.keys.sealer_of(key, self.keys.sealing_format())))),
            in_use_since: Set(None),
        };
        match KeyCanary::insert(row).exec_without_returning(&self.urgent).await {
            Ok(_) => Ok(Guarded::Done),
            Err(error) if is_duplicate(&error) => Ok(Guarded::Moved),
            Err(source) => Err(StoreError::Database { action: "announce a key", source }),
        }
    }

    /// Says that rows may be sealed with the key from here on. `Moved`: that is known, or the canary is gone.
    pub async fn put_key_into_use(&self, key_id: &str) -> Result<Guarded, StoreError> {
        let updated = KeyCanary::update_many()
            .col_expr(Column::InUseSince, self.database_time())
            .filter(Column::KeyId.eq(key_id))
            .filter(Column::InUseSince.is_null())
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("put a key into use"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    /// Removes the canary of a key that no row needs any more.
    pub async fn retire_key(&self, key_id: &str) -> Result<(), StoreError> {
        let removed = KeyCanary::delete_by_id(key_id).exec(&self.db).await;
        removed.map(drop).map_err(StoreError::database("retire a key"))
    }

    /// Seals a canary in the newest format. `Moved`: somebody was first, or the ring has no such key.
    pub async fn renew_canary(&self, canary: &Canary) -> Result<Guarded, StoreError> {
        let key = self.keys.keys().iter().find(|key| key.id() == canary.key_id);
        let Some((key, sealed)) = key.zip(canary.sealed.as_deref()) else { return Ok(Guarded::Moved) };
        let renewed = Canary::sealed_by(&self.keys.sealer_of(key, Format::NEWEST));
        let updated = KeyCanary::update_many()
            .col_expr(Column::Sealed, Expr::value(renewed))
            .filter(Column::KeyId.eq(key.id()))
            .filter(Column::Sealed.eq(sealed))
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("renew a key's canary"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    /// Whether the key of this id in the ring is the one that rows are sealed with, judged by a few of them. If it is, its canary
    /// gets the key's ciphertext.
    pub async fn prove_key(&self, key: &RingKey) -> Result<KeyProof, StoreError> {
        let failed = StoreError::database;
        let entries = token_entry::Entity::find()
            .filter(token_entry::Column::KeyId.eq(key.id()))
            .limit(SAMPLES)
            .all(&self.db)
            .await
            .map_err(failed("load tokens to prove a key"))?;
        let providers = auth_provider::Entity::find()
            .filter(auth_provider::Column::KeyId.eq(key.id()))
            .limit(SAMPLES)
            .all(&self.db)
            .await
            .map_err(failed("load providers to prove a key"))?;
        let is_unused = entries.is_empty() && providers.is_empty();
        let of_entries = entries
            .into_iter()
            .map(|row| Entry::from_row(row).and_then(|entry| self.open_access_token(&entry)).map(drop));
        let opened: Vec<Result<(), StoreError>> =
            of_entries.chain(providers.into_iter().map(|row| self.read_provider(row).map(drop))).collect();
        if is_unused || opened.iter().any(Result::is_ok) {
            let sealed = Canary::sealed_by(&self.keys.sealer_of(key, self.keys.sealing_format()));
            KeyCanary::update_many()
                .col_expr(Column::Sealed, Expr::value(sealed))
                .filter(Column::KeyId.eq(key.id()))
                .filter(Column::Sealed.is_null())
                .exec(&self.db)
                .await
                .map_err(failed("write a key's canary"))?;
            return Ok(KeyProof::Proven);
        }
        let is_refused = |opened: &Result<(), StoreError>| {
            matches!(opened, Err(StoreError::Sealed { source: OpenError::Format1(_), .. }))
        };
        Ok(if opened.iter().any(is_refused) { KeyProof::RefusedFormat } else { KeyProof::OtherKey })
    }
}

fn canary(row: Model) -> Canary {
    Canary {
        key_id: row.key_id,
        sealed: row.sealed,
        in_use_since: row.in_use_since.map(Timestamp::from_millis),
    }
}
