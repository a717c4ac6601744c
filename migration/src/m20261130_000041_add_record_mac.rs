//! `token_entry.record_mac`: authenticates the failure and the report that stand in the row.

use sea_orm_migration::prelude::*;

const TABLE: &str = "token_entry";
const COLUMN: &str = "record_mac";

/// Bytes of an HMAC-SHA256.
const LENGTH: u32 = 32;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut column = ColumnDef::new(COLUMN);
        column.var_binary(LENGTH);
        manager.alter_table(Table::alter().table(TABLE).add_column(column).to_owned()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table(TABLE).drop_column(COLUMN).to_owned()).await
    }
}
