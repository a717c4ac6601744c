//! What operators watch of each provider: whether it refuses everybody, and how many of its users must log in again.

use std::collections::HashMap;

use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use tokenkeeper_entity::auth_provider;
use tokenkeeper_entity::token_entry::{Column, Entity as TokenEntry};

use super::idle::condemned;
use super::{Store, StoreError};

/// How a provider stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub host: String,
    pub is_refusing: bool,
    /// The users whose refresh token is known to be dead.
    pub must_log_in: u32,
}

impl Store {
    /// The standing of every provider. Looks at the entries with a failure alone, which have an index.
    pub async fn standings(&self) -> Result<Vec<Standing>, StoreError> {
        standings(&self.db).await
    }
}

/// [`Store::standings`], for who has no keys.
pub async fn standings(db: &DatabaseConnection) -> Result<Vec<Standing>, StoreError> {
    let condemned: Vec<(i64, i64)> = TokenEntry::find()
        .select_only()
        .column(Column::ProviderId)
        .column_as(Column::Id.count(), "must_log_in")
        .filter(Column::FailedAt.is_not_null())
        .filter(condemned())
        .group_by(Column::ProviderId)
        .into_tuple()
        .all(db)
        .await
        .map_err(StoreError::database("count the users who must log in again"))?;
    let condemned: HashMap<i64, i64> = condemned.into_iter().collect();
    let providers: Vec<(i64, String, Option<i64>)> = auth_provider::Entity::find()
        .select_only()
        .columns([
            auth_provider::Column::Id,
            auth_provider::Column::Host,
            auth_provider::Column::RefusingSince,
        ])
        .order_by_asc(auth_provider::Column::Host)
        .into_tuple()
        .all(db)
        .await
        .map_err(StoreError::database("list the providers"))?;
    let standing = |(id, host, refusing_since): (i64, String, Option<i64>)| Standing {
        host,
        is_refusing: refusing_since.is_some(),
        must_log_in: condemned.get(&id).and_then(|count| u32::try_from(*count).ok()).unwrap_or(0),
    };
    Ok(providers.into_iter().map(standing).collect())
}
