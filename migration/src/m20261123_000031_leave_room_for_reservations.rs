//! Leaves room on PostgreSQL's pages of `token_entry` for the next version of a row.
//!
//! A reservation changes one column that no index knows. Where the new version of the row finds room on its page, none of
//! the table's indexes is written (a heap-only update); a page filled to the brim costs an entry in each of them. Pages
//! that exist keep their filling until they are rewritten.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DatabaseBackend;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        alter(manager, "SET (fillfactor = 70)").await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        alter(manager, "RESET (fillfactor)").await
    }
}

async fn alter(manager: &SchemaManager<'_>, change: &str) -> Result<(), DbErr> {
    if manager.get_database_backend() != DatabaseBackend::Postgres {
        return Ok(());
    }
    let statement = format!("ALTER TABLE token_entry {change}");
    manager.get_connection().execute_unprepared(&statement).await.map(drop)
}
