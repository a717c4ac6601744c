//! `worker`: the processes that write ciphertexts, with their keys and their last sign of life.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        let table = Table::create()
            .table("worker")
            .col(exact.column("id", 64).not_null().primary_key())
            .col(exact.column("command", 64).not_null())
            .col(exact.column("version", 64).not_null())
            .col(ColumnDef::new("key_checks").text().not_null())
            .col(exact.column("seals_with", 64))
            .col(millis("started_at").not_null())
            .col(millis("last_seen_at").not_null())
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("worker").to_owned()).await
    }
}
