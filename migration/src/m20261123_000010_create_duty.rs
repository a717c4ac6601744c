//! `duty`: what one worker at a time does for all of them.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        let table = Table::create()
            .table("duty")
            .col(exact.column("name", 64).not_null().primary_key())
            .col(exact.column("holder", 64).not_null())
            .col(millis("lease_until").not_null())
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("duty").to_owned()).await
    }
}
