//! Up to where the database is known to hold what the journal of pairs has. It goes back with the database.

use sea_orm::entity::prelude::*;

/// A row of `journal_mark`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "journal_mark")]
pub struct Model {
    /// Which journal.
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// The offset of the last record that the database holds.
    pub position: i64,
    /// SHA-256 of that record, in Base64.
    pub fingerprint: String,
    /// Counts the writes of this row. It goes back only with the database.
    pub moves: i64,
    /// When the row was written, in ms since the epoch.
    pub moved_at: i64,
    /// Reservations may be unknown until then, because the database went back; in ms since the epoch.
    pub unsure_until: Option<i64>,
}

/// It points at nothing.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
