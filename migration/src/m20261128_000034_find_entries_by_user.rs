//! Has PostgreSQL find an entry by its user in one index: the user and the provider of its identity stand in the entry too.
//!
//! A worker finds the entry of a user that it does not know yet, and reserves it. By way of `identity` that takes two indexes,
//! whose pages are not in any cache where there are many users. The copies are the database's business: a trigger keeps
//! them, whoever writes, and an entry without them is found by way of `identity` still. The other databases reserve by a
//! statement of their own, so they would gain little.
//!
//! The table is locked while the copies are made: some fifteen seconds for a million entries.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DatabaseBackend;

/// `SET search_path FROM CURRENT`: the tables are those that the migration sees, whatever the path of who writes. `OR REPLACE`:
/// `migrate fresh` drops the tables, and leaves the functions.
const UP: &str = "
ALTER TABLE token_entry ADD COLUMN user_id varchar(255), ADD COLUMN provider_id bigint;

CREATE OR REPLACE FUNCTION token_entry_copy_user() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  SELECT user_id, provider_id INTO NEW.user_id, NEW.provider_id FROM identity WHERE id = NEW.identity_id;
  RETURN NEW;
END $$;
CREATE TRIGGER token_entry_copy_user BEFORE INSERT OR UPDATE OF identity_id, user_id, provider_id ON token_entry
  FOR EACH ROW EXECUTE FUNCTION token_entry_copy_user();

CREATE OR REPLACE FUNCTION identity_user_moved() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  UPDATE token_entry SET user_id = NEW.user_id, provider_id = NEW.provider_id WHERE identity_id = NEW.id;
  RETURN NULL;
END $$;
CREATE TRIGGER identity_user_moved AFTER UPDATE OF user_id, provider_id ON identity
  FOR EACH ROW EXECUTE FUNCTION identity_user_moved();

-- The trigger puts the right one in.
UPDATE token_entry SET user_id = NULL;

CREATE INDEX token_entry_user_provider ON token_entry (user_id, provider_id);
";

const DOWN: &str = "
DROP TRIGGER identity_user_moved ON identity;
DROP FUNCTION identity_user_moved;
DROP TRIGGER token_entry_copy_user ON token_entry;
DROP FUNCTION token_entry_copy_user;
ALTER TABLE token_entry DROP COLUMN user_id, DROP COLUMN provider_id;
";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, DOWN).await
    }
}

async fn run(manager: &SchemaManager<'_>, statements: &str) -> Result<(), DbErr> {
    if manager.get_database_backend() != DatabaseBackend::Postgres {
        return Ok(());
    }
    manager.get_connection().execute_unprepared(statements).await.map(drop)
}
