//! `identity`: users' accounts at providers.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        let table = Table::create()
            .table("identity")
            .col(ColumnDef::new("id").big_integer().not_null().auto_increment().primary_key())
            .col(exact.column("user_id", 255).not_null())
            .col(ColumnDef::new("provider_id").big_integer().not_null())
            .col(exact.column("auth_id", 255).not_null())
            .col(exact.column("auth_name", 255))
            .col(millis("created_at").not_null())
            .col(millis("updated_at").not_null())
            .index(Index::create().unique().name("identity_user_provider").col("user_id").col("provider_id"))
            .foreign_key(
                ForeignKey::create()
                    .name("identity_provider")
                    .from("identity", "provider_id")
                    .to("auth_provider", "id")
                    .on_delete(ForeignKeyAction::Restrict),
            )
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("identity").to_owned()).await
    }
}
