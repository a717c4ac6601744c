//! The workers that share partitions among themselves.

use sea_orm::entity::prelude::*;

/// A row of `replica`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "replica")]
pub struct Model {
    /// The worker's name: a new one each time it starts.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// Whose partitions it shares: the first part of the names of their queues.
    pub prefix: String,
    /// How many partitions it knows of.
    pub partitions: i32,
    /// When it was last seen, in ms since the epoch.
    pub seen_at: i64,
}

/// It points at nothing.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
