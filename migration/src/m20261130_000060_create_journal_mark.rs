//! `journal_mark`: up to where the database holds what the journal of pairs has.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        let table = Table::create()
            .table("journal_mark")
            .col(exact.column("name", 64).not_null().primary_key())
            .col(ColumnDef::new("position").big_integer().not_null())
            .col(exact.column("fingerprint", 64).not_null())
            .col(ColumnDef::new("moves").big_integer().not_null())
            .col(millis("moved_at").not_null())
            .col(millis("unsure_until"))
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("journal_mark").to_owned()).await
    }
}
