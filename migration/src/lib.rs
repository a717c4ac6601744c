//! Migrations of tokenkeeper, for SQLite, PostgreSQL, MariaDB and MySQL.
//!
//! Each one is a single statement with its indexes inside, or can be run again after it stopped half way, because
//! only PostgreSQL rolls a half-done migration back. Nothing here locks: whoever runs them does (`store/database/migrating.rs`).

mod column;
mod dropped;
mod m20261122_000001_create_auth_provider;
mod m20261122_000002_create_identity;
mod m20261122_000003_create_token_entry;
mod m20261123_000004_add_attempt;
mod m20261123_000010_create_duty;
mod m20261123_000011_index_expires_at;
mod m20261123_000012_index_refresh_token_expires_at;
mod m20261123_000013_index_updated_at;
mod m20261123_000020_add_refusing_since;
mod m20261123_000021_index_failed_at;
mod m20261123_000030_create_replica;
mod m20261123_000031_leave_room_for_reservations;
mod m20261123_000032_index_identities_with_their_id;
mod m20261123_000033_index_dates_that_are_there;
mod m20261128_000034_find_entries_by_user;
mod m20261129_000035_add_overrides_attempts_and_reports;
mod m20261130_000036_give_entries_their_user;
mod m20261130_000037_drop_replica;
mod m20261130_000038_add_issued_at;
mod m20261130_000039_create_worker;
mod m20261130_000040_create_key_canary;
mod m20261130_000041_add_record_mac;
mod m20261130_000042_add_formats;
mod m20261130_000050_keep_where_providers_are;
mod m20261130_000060_create_journal_mark;

use sea_orm_migration::prelude::*;
pub use sea_orm_migration::{MigrationStatus, MigratorTrait, SchemaManager};

pub use self::dropped::{Dropped, dropped_by};

/// Every migration, oldest first.
#[derive(Debug, Clone, Copy)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_create_auth_provider::Migration),
            Box::new(m20261122_000002_create_identity::Migration),
            Box::new(m20261122_000003_create_token_entry::Migration),
            Box::new(m20261123_000004_add_attempt::Migration),
            Box::new(m20261123_000010_create_duty::Migration),
            Box::new(m20261123_000011_index_expires_at::Migration),
            Box::new(m20261123_000012_index_refresh_token_expires_at::Migration),
            Box::new(m20261123_000013_index_updated_at::Migration),
            Box::new(m20261123_000020_add_refusing_since::Migration),
            Box::new(m20261123_000021_index_failed_at::Migration),
            Box::new(m20261123_000030_create_replica::Migration),
            Box::new(m20261123_000031_leave_room_for_reservations::Migration),
            Box::new(m20261123_000032_index_identities_with_their_id::Migration),
            Box::new(m20261123_000033_index_dates_that_are_there::Migration),
            Box::new(m20261128_000034_find_entries_by_user::Migration),
            Box::new(m20261129_000035_add_overrides_attempts_and_reports::Migration),
            Box::new(m20261130_000036_give_entries_their_user::Migration),
            Box::new(m20261130_000037_drop_replica::Migration),
            Box::new(m20261130_000038_add_issued_at::Migration),
            Box::new(m20261130_000039_create_worker::Migration),
            Box::new(m20261130_000040_create_key_canary::Migration),
            Box::new(m20261130_000041_add_record_mac::Migration),
            Box::new(m20261130_000042_add_formats::Migration),
            Box::new(m20261130_000050_keep_where_providers_are::Migration),
            Box::new(m20261130_000060_create_journal_mark::Migration),
        ]
    }
}
