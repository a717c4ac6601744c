//! `token_entry`: the current token pair of each identity.

use sea_orm_migration::prelude::*;

use crate::column::{ExactText, millis, sealed};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let exact = ExactText::of(manager).await?;
        let table = Table::create()
            .table("token_entry")
            .col(ColumnDef::new("id").big_integer().not_null().auto_increment().primary_key())
            .col(ColumnDef::new("identity_id").big_integer().not_null().unique_key())
            .col(ColumnDef::new("generation").big_integer().not_null())
            .col(sealed("access_token_sealed").not_null())
            .col(sealed("refresh_token_sealed"))
            .col(exact.column("key_id", 64).not_null())
            .col(exact.column("username", 255))
            .col(ColumnDef::new("scopes").text().not_null())
            .col(millis("expires_at"))
            .col(millis("refresh_token_expires_at"))
            .col(ColumnDef::new("granted_lifetime_ms").big_integer())
            .col(millis("reserved_until"))
            .col(exact.column("lease_holder", 64))
            .col(millis("lease_until"))
            .col(exact.column("failure_code", 64))
            .col(ColumnDef::new("failure_message").text())
            .col(exact.column("failure_fingerprint", 64))
            .col(millis("failed_at"))
            .col(exact.column("login_fingerprint", 64))
            .col(millis("created_at").not_null())
            .col(millis("updated_at").not_null())
            .foreign_key(
                ForeignKey::create()
                    .name("token_entry_identity")
                    .from("token_entry", "identity_id")
                    .to("identity", "id")
                    .on_delete(ForeignKeyAction::Cascade),
            )
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("token_entry").to_owned()).await
    }
}
