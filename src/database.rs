//! Opening the database: what each kind needs to be opened with, and its migrations.

use std::time::Duration;

use sea_orm::{ConnectOptions, Database, DatabaseBackend, DatabaseConnection, DbErr};
use secrecy::{ExposeSecret, SecretString};
use tokenkeeper_migration::{Migrator, MigratorTrait};

/// How long a statement waits for another one's write lock on SQLite.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How the pool is opened.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// `sqlite://…`, `postgres://…` or `mysql://…`; may hold a password.
    pub url: SecretString,
    /// Most connections open at once.
    pub max_connections: u32,
    /// How long a statement waits for a connection.
    pub acquire_timeout: Duration,
}

/// Opens the pool. A missing SQLite file is created.
///
/// # Errors
/// What the driver says; it does not repeat the URL.
pub async fn connect(options: &PoolOptions) -> Result<DatabaseConnection, DbErr> {
    let mut connect = ConnectOptions::new(options.url.expose_secret());
    connect
        .max_connections(options.max_connections)
        .acquire_timeout(options.acquire_timeout)
        .connect_timeout(options.acquire_timeout)
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
    Database::connect(connect).await
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
