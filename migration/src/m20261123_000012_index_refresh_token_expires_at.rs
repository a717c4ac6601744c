//! An index on `token_entry.refresh_token_expires_at`: housekeeping finds what dies soon without reading every row.

use sea_orm_migration::prelude::*;

const NAME: &str = "token_entry_refresh_token_expires_at";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let index =
            Index::create().name(NAME).table("token_entry").col("refresh_token_expires_at").to_owned();
        manager.create_index(index).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name(NAME).table("token_entry").to_owned()).await
    }
}
