//! Column types that need a word of their own on one of the databases.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{DatabaseBackend, Statement};

/// Makes text columns that compare byte for byte on the database at hand.
///
/// PostgreSQL and SQLite do so anyway. MariaDB and MySQL by default hold `'a' = 'A  '` for true, and
/// their `utf8mb4_bin` still ignores trailing blanks; the collations that do not have different names.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ExactText {
    Plain,
    Collated(&'static str),
}

impl ExactText {
    /// Asks the database which one it is.
    pub(crate) async fn of(manager: &SchemaManager<'_>) -> Result<Self, DbErr> {
        if manager.get_database_backend() != DatabaseBackend::MySql {
            return Ok(Self::Plain);
        }
        let version = Statement::from_string(DatabaseBackend::MySql, "SELECT VERSION() AS version");
        let row = manager.get_connection().query_one_raw(version).await?;
        let version: String = match row {
            Some(row) => row.try_get("", "version")?,
            None => String::new(),
        };
        Ok(Self::Collated(if version.contains("MariaDB") { "utf8mb4_nopad_bin" } else { "utf8mb4_0900_bin" }))
    }

    /// A text column of at most `length` characters.
    pub(crate) fn column(self, name: &'static str, length: u32) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        match self {
            Self::Plain => column.string_len(length),
            Self::Collated(collation) => {
                column.custom(format!("varchar({length}) CHARACTER SET utf8mb4 COLLATE {collation}"))
            }
        };
        column
    }
}

/// Bytes for an encrypted token: MariaDB's and MySQL's BLOB takes 64 KiB, the others any length.
pub(crate) fn sealed(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    column.blob();
    column
}

/// A date: milliseconds since the epoch.
pub(crate) fn millis(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    column.big_integer();
    column
}
