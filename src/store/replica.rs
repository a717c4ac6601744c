//! Replicas: the workers that share partitions among themselves, and when each was last seen.
//!
//! Over the connections that are kept for what must not wait: a worker that cannot say in time that it lives, because
//! requests have all the others, would lose its partitions under load.

use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use tokenkeeper_entity::replica::{ActiveModel, Column, Entity};

use super::login::is_duplicate;
use super::{Store, StoreError};
use crate::domain::clock::Timestamp;

/// A worker that shares partitions with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its name.
    pub id: String,
    /// How many partitions it knows of.
    pub partitions: u16,
    /// When it was last seen.
    pub seen_at: Timestamp,
}

impl Store {
    /// Notes that a replica is there, and shares the partitions under this prefix.
    pub async fn see_replica(&self, prefix: &str, replica: &Replica) -> Result<(), StoreError> {
        let seen_at = replica.seen_at.as_millis();
        let updated = Entity::update_many()
            .col_expr(Column::SeenAt, Expr::value(seen_at))
            .filter(Column::Id.eq(&replica.id))
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("say that this worker is there"))?;
        if updated.rows_affected > 0 {
            return Ok(());
        }
        let first = ActiveModel {
            id: Set(replica.id.clone()),
            prefix: Set(prefix.to_owned()),
            partitions: Set(i32::from(replica.partitions)),
            seen_at: Set(seen_at),
        };
        match Entity::insert(first).exec_without_returning(&self.urgent).await {
            Ok(_) => Ok(()),
            // A database that counts changed rows instead of matched ones, within one millisecond.
            Err(error) if is_duplicate(&error) => Ok(()),
            Err(source) => Err(StoreError::Database {
                action: "say for the first time that this worker is there",
                source,
            }),
        }
    }

    /// The replicas that share the partitions under this prefix, also those that were not seen for long.
    pub async fn replicas(&self, prefix: &str) -> Result<Vec<Replica>, StoreError> {
        let rows = Entity::find()
            .filter(Column::Prefix.eq(prefix))
            .all(&self.urgent)
            .await
            .map_err(StoreError::database("look who shares the partitions"))?;
        let replica = |row: tokenkeeper_entity::replica::Model| Replica {
            id: row.id,
            partitions: u16::try_from(row.partitions).unwrap_or(0),
            seen_at: Timestamp::from_millis(row.seen_at),
        };
        Ok(rows.into_iter().map(replica).collect())
    }

    /// Takes a replica off the list.
    pub async fn remove_replica(&self, id: &str) -> Result<(), StoreError> {
        let removed = Entity::delete_by_id(id).exec(&self.urgent).await;
        removed.map(drop).map_err(StoreError::database("take this worker off the list of replicas"))
    }

    /// Takes those off the list that were last seen before `then`, whatever their prefix.
    pub async fn forget_replicas(&self, then: Timestamp) -> Result<(), StoreError> {
        let removed =
            Entity::delete_many().filter(Column::SeenAt.lt(then.as_millis())).exec(&self.urgent).await;
        removed.map(drop).map_err(StoreError::database("forget replicas that are gone"))
    }
}
