//! A key that rows may be sealed with, and a text that it sealed: what a ring must open before its process may run.

use sea_orm::entity::prelude::*;

/// A row of `key_canary`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "key_canary")]
pub struct Model {
    /// The key's id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key_id: String,
    /// A text that the key sealed; none: the migration found the key in rows, and nobody has proven it yet.
    pub sealed: Option<Vec<u8>>,
    /// Since when rows are sealed with the key, in ms since the epoch; none: it is announced, and no row has it.
    pub in_use_since: Option<i64>,
}

/// It points at nothing.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
