//! `worker`: which formats of sealed secrets a process reads and writes.

use sea_orm_migration::prelude::*;

const TABLE: &str = "worker";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

fn columns() -> [(&'static str, ColumnDef); 2] {
    let mut reads = ColumnDef::new("reads_format");
    // Versions from before this column insert rows without it.
    reads.integer().not_null().default(1);
    let mut seals = ColumnDef::new("seals_in_format");
    seals.integer();
    [("reads_format", reads), ("seals_in_format", seals)]
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, column) in columns() {
            // A statement each, so this can stop half way: then it goes on from there.
            if !manager.has_column(TABLE, name).await? {
                manager.alter_table(Table::alter().table(TABLE).add_column(column).to_owned()).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, _) in columns() {
            if manager.has_column(TABLE, name).await? {
                manager.alter_table(Table::alter().table(TABLE).drop_column(name).to_owned()).await?;
            }
        }
        Ok(())
    }
}
