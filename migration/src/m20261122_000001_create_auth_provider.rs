//! `auth_provider`: SCM installations.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis, sealed};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        let table = Table::create()
            .table("auth_provider")
            .col(ColumnDef::new("id").big_integer().not_null().auto_increment().primary_key())
            .col(exact.column("host", 255).not_null().unique_key())
            .col(exact.column("kind", 32).not_null())
            .col(exact.column("client_id", 255).not_null())
            .col(sealed("client_secret_sealed").not_null())
            .col(exact.column("key_id", 64).not_null())
            .col(ColumnDef::new("token_url").text())
            .col(exact.column("client_auth", 16))
            .col(ColumnDef::new("redirect_uri").text())
            .col(exact.column("username", 255))
            .col(ColumnDef::new("opportunistic_refresh").boolean())
            .col(ColumnDef::new("opportunistic_refresh_window_secs").big_integer())
            .col(exact.column("required_while_reserved", 32))
            .col(ColumnDef::new("max_concurrent_refreshes").integer())
            .col(millis("created_at").not_null())
            .col(millis("updated_at").not_null())
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("auth_provider").to_owned()).await
    }
}
