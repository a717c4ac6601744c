//! Finds the latest refusals without looking at every token. Few rows have the date; it changes with a failure alone.

use sea_orm_migration::prelude::*;

const NAME: &str = "token_entry_failed_at";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_index(Index::create().name(NAME).table("token_entry").col("failed_at").to_owned())
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name(NAME).table("token_entry").to_owned()).await
    }
}
