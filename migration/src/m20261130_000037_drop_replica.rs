//! No more table `replica`: the broker decides which worker gets the messages of a partition.

use sea_orm_migration::prelude::*;

use crate::m20261123_000030_create_replica::Migration as CreateReplica;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Without `IF EXISTS` a run that was interrupted after the drop could not be run again.
        manager.drop_table(Table::drop().table("replica").if_exists().to_owned()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        CreateReplica.up(manager).await
    }
}
