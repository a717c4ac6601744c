//! What one worker at a time does for all of them, and who does it now.

use sea_orm::entity::prelude::*;

/// A row of `duty`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "duty")]
pub struct Model {
    /// Which duty.
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// Which worker has it.
    pub holder: String,
    /// Until when it has it, in ms since the epoch.
    pub lease_until: i64,
}

/// It points at nothing.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
