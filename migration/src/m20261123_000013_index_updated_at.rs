//! An index on `token_entry.updated_at`: housekeeping finds what was not refreshed for long without reading every row.

use sea_orm_migration::prelude::*;

const NAME: &str = "token_entry_updated_at";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let index = Index::create().name(NAME).table("token_entry").col("updated_at").to_owned();
        manager.create_index(index).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name(NAME).table("token_entry").to_owned()).await
    }
}
