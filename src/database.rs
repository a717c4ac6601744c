//! Opening the database: what each kind needs to be opened with, and its migrations.

use std::time::Duration;

use anyhow::Context;
use sea_orm::{ConnectOptions, Database, DatabaseBackend, DatabaseConnection, DbErr};
use secrecy::ExposeSecret;
use tokenkeeper_migration::{Migrator, MigratorTrait};

use crate::settings;

/// How long a statement waits for another one's write lock on SQLite.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the pool. A missing SQLite file is created.
///
/// # Errors
/// Says which database could not be opened, without its password.
pub async fn open(settings: &settings::Database) -> anyhow::Result<DatabaseConnection> {
    let mut connect = ConnectOptions::new(settings.url.expose_secret());
    connect
        .max_connections(settings.max_connections)
        .acquire_timeout(settings.acquire_timeout)
        .connect_timeout(settings.acquire_timeout)
        // Statements are logged with their values otherwise, and some of those are users.
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(|sqlite| {
            // WAL: readers do not wait for the writer. Every commit is still synced to disk (`synchronous` stays
            // FULL), since a rotated pair that a power cut took back would be lost for good.
            sqlite
                .create_if_missing(true)
                .journal_mode(sea_orm::sqlx::sqlite::SqliteJournalMode::Wal)
                .busy_timeout(SQLITE_BUSY_TIMEOUT)
        });
    Database::connect(connect)
        .await
        .with_context(|| format!("cannot open the database {}", settings.display_url()))
}

/// The database's product, in words.
pub fn product(db: &DatabaseConnection) -> &'static str {
    match db.get_database_backend() {
        DatabaseBackend::Sqlite => "SQLite",
        DatabaseBackend::Postgres => "PostgreSQL",
        DatabaseBackend::MySql => "MariaDB/MySQL",
        _ => "database",
    }
}

/// Applies every migration that is pending.
pub async fn migrate(db: &DatabaseConnection) -> Result<(), DbErr> {
    Migrator::up(db, None).await
}

/// The names of the migrations that are pending.
pub async fn pending_migrations(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let pending = Migrator::get_pending_migrations(db).await?;
    Ok(pending.iter().map(|migration| migration.name().to_owned()).collect())
}
