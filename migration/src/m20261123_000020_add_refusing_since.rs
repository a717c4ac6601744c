//! `auth_provider.refusing_since`: since when a host refuses everybody's refresh token.

use sea_orm_migration::prelude::*;

use crate::column::millis;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let column = millis("refusing_since");
        manager.alter_table(Table::alter().table("auth_provider").add_column(column).to_owned()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .alter_table(Table::alter().table("auth_provider").drop_column("refusing_since").to_owned())
            .await
    }
}
