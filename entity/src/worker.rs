//! A process that writes ciphertexts: a worker, or a command while it runs. It says here that it lives, and which keys it has.

use sea_orm::entity::prelude::*;

/// A row of `worker`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "worker")]
pub struct Model {
    /// The process's name for itself. A process that is started again has another one.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// What it runs: `worker`, or the name of a command.
    pub command: String,
    /// The program's version.
    pub version: String,
    /// The keys that its ring holds: a JSON object of key ids and check values.
    #[sea_orm(column_type = "Text")]
    pub key_checks: String,
    /// Which key it seals with; none: it has not chosen one yet.
    pub seals_with: Option<String>,
    /// The newest format of sealed secrets that it reads. Versions that do not say so read format 1.
    pub reads_format: i32,
    /// The format that it seals in; none: it has not chosen yet, or does not say.
    pub seals_in_format: Option<i32>,
    /// When it started, in ms since the epoch.
    pub started_at: i64,
    /// When it last said that it lives, in ms since the epoch.
    pub last_seen_at: i64,
}

/// It points at nothing.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
