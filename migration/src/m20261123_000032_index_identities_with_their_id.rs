//! Has PostgreSQL find an identity in its index alone: the id stands in it. The other databases keep the primary key in every
//! index anyway.
//!
//! The table is locked while the index is made: two seconds for a million identities.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DatabaseBackend;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        make_anew(manager, "INCLUDE (id)").await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        make_anew(manager, "").await
    }
}

async fn make_anew(manager: &SchemaManager<'_>, with: &str) -> Result<(), DbErr> {
    if manager.get_database_backend() != DatabaseBackend::Postgres {
        return Ok(());
    }
    let statement = format!(
        "ALTER TABLE identity DROP CONSTRAINT identity_user_provider, \
         ADD CONSTRAINT identity_user_provider UNIQUE (user_id, provider_id) {with}"
    );
    manager.get_connection().execute_unprepared(&statement).await.map(drop)
}
