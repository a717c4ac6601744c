//! The processes that seal: each keeps a row that says that it lives, and which keys it holds (`domain/key_use.rs`).

use std::time::Duration;

use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use tokenkeeper_entity::worker::{ActiveModel, Column, Entity as Worker, Model};

use super::{Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::key_use::{KnownWorker, LIVING_FOR, WAITED_FOR, key_checks};
use crate::domain::secret::Format;

/// The row of a process that did not remove it is shown for so long.
const KEPT_FOR: Duration = Duration::from_hours(24);

impl Store {
    /// Says that the process `id` lives, holds this store's keys and seals with `seals_with`. Adds its row the first time, and when
    /// somebody has removed it.
    pub async fn keep_worker(
        &self,
        id: &str,
        command: &str,
        seals_with: Option<&str>,
    ) -> Result<(), StoreError> {
        let seals_in_format = seals_with.map(|_| self.keys.sealing_format().number());
        let updated = Worker::update_many()
            .col_expr(Column::LastSeenAt, self.database_time())
            .col_expr(Column::SealsWith, Expr::value(seals_with))
            .col_expr(Column::SealsInFormat, Expr::value(seals_in_format))
            .filter(Column::Id.eq(id))
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("join the workers"))?;
        if updated.rows_affected > 0 {
            return Ok(());
        }
        let now = self.now().await?.as_millis();
        let row = ActiveModel {
            id: Set(id.to_owned()),
            command: Set(command.to_owned()),
            version: Set(env!("CARGO_PKG_VERSION").to_owned()),
            key_checks: Set(serde_json::json!(key_checks(&self.keys)).to_string()),
            seals_with: Set(seals_with.map(str::to_owned)),
            reads_format: Set(Format::NEWEST.number()),
            seals_in_format: Set(seals_in_format),
            started_at: Set(now),
            last_seen_at: Set(now),
        };
        let added = Worker::insert(row).exec_without_returning(&self.urgent).await;
        added.map(drop).map_err(StoreError::database("join the workers"))
    }

    /// Every process that has a row, the oldest first.
    pub async fn workers(&self) -> Result<Vec<KnownWorker>, StoreError> {
        let now = self.now().await?;
        let rows = Worker::find().order_by_asc(Column::StartedAt).order_by_asc(Column::Id);
        let rows = rows.all(&self.urgent).await.map_err(StoreError::database("list the workers"))?;
        Ok(rows.into_iter().map(|row| known(row, now)).collect())
    }

    /// The process ends.
    pub async fn remove_worker(&self, id: &str) -> Result<(), StoreError> {
        let removed = Worker::delete_by_id(id).exec(&self.urgent).await;
        removed.map(drop).map_err(StoreError::database("remove this worker from the workers"))
    }

    /// Removes the rows of processes that were silent for a day. Returns how many.
    pub async fn remove_silent_workers(&self) -> Result<u64, StoreError> {
        let cutoff = self.now().await?.minus(KEPT_FOR);
        let removed = Worker::delete_many().filter(Column::LastSeenAt.lt(cutoff.as_millis()));
        let removed = removed.exec(&self.db).await.map_err(StoreError::database("remove silent workers"))?;
        Ok(removed.rows_affected)
    }
}

fn known(row: Model, now: Timestamp) -> KnownWorker {
    let last_seen_at = Timestamp::from_millis(row.last_seen_at);
    KnownWorker {
        id: row.id,
        command: row.command,
        version: row.version,
        // Who writes something else holds nothing that we know of.
        key_checks: serde_json::from_str(&row.key_checks).unwrap_or_default(),
        seals_with: row.seals_with,
        reads_format: row.reads_format,
        seals_in_format: row.seals_in_format,
        started_at: Timestamp::from_millis(row.started_at),
        last_seen_at,
        is_living: now.since(last_seen_at) < LIVING_FOR,
        is_waited_for: now.since(last_seen_at) < WAITED_FOR,
    }
}
