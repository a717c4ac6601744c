//! `replica`: the workers that share partitions among themselves.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        let table = Table::create()
            .table("replica")
            .col(exact.column("id", 64).not_null().primary_key())
            .col(exact.column("prefix", 100).not_null())
            .col(ColumnDef::new("partitions").integer().not_null())
            .col(millis("seen_at").not_null())
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("replica").to_owned()).await
    }
}
