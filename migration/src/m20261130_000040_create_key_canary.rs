//! `key_canary`: the keys that rows may be sealed with.
//!
//! A migration has no keys. It notes which ones the rows name, and the first process that starts proves that it has them.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis, sealed};

const NOTE_KEYS_OF_ROWS: &str = "
INSERT INTO key_canary (key_id, in_use_since)
SELECT used.key_id, MIN(used.since)
FROM (
  SELECT key_id, MIN(updated_at) AS since FROM token_entry GROUP BY key_id
  UNION ALL
  SELECT key_id, MIN(updated_at) AS since FROM auth_provider GROUP BY key_id
) AS used
WHERE used.key_id NOT IN (SELECT key_id FROM key_canary)
GROUP BY used.key_id
";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        // MariaDB and SQLite can stop between the two statements: then it goes on from there.
        let table = Table::create()
            .table("key_canary")
            .if_not_exists()
            .col(exact.column("key_id", 64).not_null().primary_key())
            .col(sealed("sealed"))
            .col(millis("in_use_since"))
            .to_owned();
        manager.create_table(table).await?;
        manager.get_connection().execute_unprepared(NOTE_KEYS_OF_ROWS).await.map(drop)
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("key_canary").to_owned()).await
    }
}
