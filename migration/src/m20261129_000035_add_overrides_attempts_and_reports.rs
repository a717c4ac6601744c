//! `auth_provider`: what else an operator overrides, and spare client secrets. `token_entry`: since when a refresh token is
//! spent, and whether somebody reported the access token.

use sea_orm_migration::prelude::*;

use crate::column::{millis, sealed};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

fn columns() -> [(&'static str, &'static str, ColumnDef); 4] {
    let mut overrides = ColumnDef::new("overrides");
    overrides.text();
    [
        ("auth_provider", "overrides", overrides),
        ("auth_provider", "spare_client_secrets_sealed", sealed("spare_client_secrets_sealed")),
        ("token_entry", "attempted_at", millis("attempted_at")),
        ("token_entry", "reported_at", millis("reported_at")),
    ]
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, name, column) in columns() {
            // A statement each, so this can stop half way: then it goes on from there.
            if !manager.has_column(table, name).await? {
                manager.alter_table(Table::alter().table(table).add_column(column).to_owned()).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, name, _) in columns() {
            if manager.has_column(table, name).await? {
                manager.alter_table(Table::alter().table(table).drop_column(name).to_owned()).await?;
            }
        }
        Ok(())
    }
}
