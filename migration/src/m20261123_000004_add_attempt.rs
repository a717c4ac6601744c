//! `token_entry`: which refresh is under way, and when the stored pair was asked for.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const TABLE: &str = "token_entry";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        let columns = [
            ("attempt_fingerprint", exact.column("attempt_fingerprint", 64)),
            ("refreshed_at", millis("refreshed_at")),
        ];
        for (name, column) in columns {
            // SQLite adds one column a statement, so this can stop half way: then it goes on from there.
            if !manager.has_column(TABLE, name).await? {
                manager.alter_table(Table::alter().table(TABLE).add_column(column).to_owned()).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in ["refreshed_at", "attempt_fingerprint"] {
            if manager.has_column(TABLE, name).await? {
                manager.alter_table(Table::alter().table(TABLE).drop_column(name).to_owned()).await?;
            }
        }
        Ok(())
    }
}
