//! `token_entry.user_id` and `provider_id`: an entry is found by its user in one index, on every database.
//!
//! Migration 34 has them on PostgreSQL alone, written by triggers. From here on the INSERT of an entry writes them, and the
//! triggers go. SQLite cannot add a column that is NOT NULL to a table with rows, so there they stay nullable.
//!
//! The table is locked meanwhile. For a million entries, on a busy machine with two cores, PostgreSQL took 12 s and MariaDB 90 s.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DatabaseBackend;

use crate::column::ExactText;
use crate::m20261128_000034_find_entries_by_user as with_triggers;

const TABLE: &str = "token_entry";
const INDEX: &str = "token_entry_user_provider";

/// What migration 34 left on PostgreSQL. `token_entry` is locked first, as by an INSERT whose trigger reads `identity`.
const DROP_TRIGGERS: &str = "
DROP TRIGGER token_entry_copy_user ON token_entry;
DROP TRIGGER identity_user_moved ON identity;
DROP FUNCTION token_entry_copy_user;
DROP FUNCTION identity_user_moved;
DROP INDEX token_entry_user_provider;
";

const FILL: &str = "
UPDATE token_entry
SET user_id = (SELECT user_id FROM identity WHERE identity.id = token_entry.identity_id),
  provider_id = (SELECT provider_id FROM identity WHERE identity.id = token_entry.identity_id)
WHERE user_id IS NULL OR provider_id IS NULL
";

const SET_NOT_NULL: &str =
    "ALTER TABLE token_entry ALTER COLUMN user_id SET NOT NULL, ALTER COLUMN provider_id SET NOT NULL";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        if backend == DatabaseBackend::Postgres {
            manager.get_connection().execute_unprepared(DROP_TRIGGERS).await?;
        }
        // MariaDB and SQLite can stop between any two of these statements: then it goes on from there.
        let [mut user_id, mut provider_id] = columns(ExactText::of(manager).await?);
        for column in [&user_id, &provider_id] {
            if !manager.has_column(TABLE, column.get_column_name()).await? {
                manager
                    .alter_table(Table::alter().table(TABLE).add_column(column.clone()).to_owned())
                    .await?;
            }
        }
        manager.get_connection().execute_unprepared(FILL).await?;
        match backend {
            // `modify_column` would set the type too, and PostgreSQL would forget what it knows of the values.
            DatabaseBackend::Postgres => {
                manager.get_connection().execute_unprepared(SET_NOT_NULL).await?;
            }
            DatabaseBackend::MySql => {
                let mut table = Table::alter();
                table.table(TABLE).modify_column(user_id.not_null()).modify_column(provider_id.not_null());
                manager.alter_table(table).await?;
            }
            _ => {}
        }
        if !manager.has_index(TABLE, INDEX).await? {
            // The provider first: some statements ask for all entries of a provider.
            let index = Index::create()
                .unique()
                .name(INDEX)
                .table(TABLE)
                .col("provider_id")
                .col("user_id")
                .to_owned();
            manager.create_index(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_index(TABLE, INDEX).await? {
            manager.drop_index(Index::drop().name(INDEX).table(TABLE).to_owned()).await?;
        }
        for name in ["user_id", "provider_id"] {
            if manager.has_column(TABLE, name).await? {
                manager.alter_table(Table::alter().table(TABLE).drop_column(name).to_owned()).await?;
            }
        }
        // On PostgreSQL alone.
        with_triggers::Migration.up(manager).await
    }
}

fn columns(exact: ExactText) -> [ColumnDef; 2] {
    let mut provider_id = ColumnDef::new("provider_id");
    provider_id.big_integer();
    [exact.column("user_id", 255), provider_id]
}
