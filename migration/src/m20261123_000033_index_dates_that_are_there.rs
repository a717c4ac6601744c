//! Leaves rows without the date out of the indexes on `failed_at` and `refresh_token_expires_at`, where the database can
//! (PostgreSQL and SQLite). Few rows have the first, and those of many providers never the second; but a refresh writes a
//! row anew in every index that it stands in.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DatabaseBackend;

/// Of `token_entry`; each has an index of its own, named after both.
const COLUMNS: [&str; 2] = ["failed_at", "refresh_token_expires_at"];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in COLUMNS {
            make_anew(manager, column, &format!("WHERE {column} IS NOT NULL")).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in COLUMNS {
            make_anew(manager, column, "").await?;
        }
        Ok(())
    }
}

async fn make_anew(manager: &SchemaManager<'_>, column: &str, which: &str) -> Result<(), DbErr> {
    match manager.get_database_backend() {
        DatabaseBackend::Postgres | DatabaseBackend::Sqlite => {}
        _ => return Ok(()),
    }
    let name = format!("token_entry_{column}");
    // In one go, and the table is looked at first: a connection of SQLite that has not seen the index yet, since another one
    // made it, takes it for absent.
    let statements = format!(
        "SELECT id FROM token_entry LIMIT 0; DROP INDEX IF EXISTS {name}; \
         CREATE INDEX {name} ON token_entry ({column}) {which}"
    );
    manager.get_connection().execute_unprepared(&statements).await.map(drop)
}
