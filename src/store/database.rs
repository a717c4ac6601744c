//! Opening the database: what each kind needs to be opened with, and its migrations.

mod availability;
pub mod clock_sync;
mod migrating;

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::join_all;
use sea_orm::sqlx::Executor;
use sea_orm::{ConnectOptions, Database, DatabaseBackend, DatabaseConnection, DbErr};
use secrecy::ExposeSecret;
use tokenkeeper_migration::{Migrator, MigratorTrait};

pub use self::availability::Availability;
pub use self::migrating::{Migrating, migrate};
use crate::settings;

/// Connections only for leases and refreshed pairs.
const URGENT_CONNECTIONS: u32 = 4;

/// A connection that was idle for longer is pinged before use. A ping every time would cost each statement a second round trip.
/// A recently used connection that is gone costs one failed statement, which is retried.
const ASK_AFTER_IDLE: Duration = Duration::from_secs(1);

/// Connections for grouped statements (`store/group_commit.rs`), opened on demand: two for each of the four kinds. One statement
/// of a kind runs at a time, perhaps beside one that was given up.
const GROUPED_CONNECTIONS: u32 = 8;

/// PostgreSQL plans grouped statements once, and by key. To plan for each number of rows takes longer than to run the
/// statement. And a plan from a small table reads the whole table until the next `ANALYZE`.
///
/// Other statements run without these settings. On a million rows none of them gets a better plan by them, and those that count or
/// change all rows of a provider get a worse one. If a small table grows fast, as by an import, autovacuum analyses it within a
/// minute. Until then they may read the whole table.
const BY_KEY: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off";

/// In seconds: how long a statement waits for a locked row on MariaDB and MySQL. A grouped statement keeps its own locks while it
/// waits for the next row, even if its caller gave up. Only this ends it.
const BRIEF_LOCK_WAIT: &str = "SET SESSION innodb_lock_wait_timeout = 1";

/// How long a statement waits for a write lock on SQLite.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the pool. A missing SQLite file is created.
///
/// # Errors
/// Says which database could not be opened, without its password.
pub async fn open(settings: &settings::Database) -> anyhow::Result<DatabaseConnection> {
    open_pool(settings, Pool::Requests).await
}

/// Opens a small pool that stays connected, for statements that must not wait behind requests. It connects in the background,
/// because its connections took half of a worker's start. `db` shows that the database can be reached.
///
/// # Errors
/// As [`open`].
pub async fn open_urgent(
    settings: &settings::Database,
    db: &DatabaseConnection,
) -> anyhow::Result<DatabaseConnection> {
    if settings.url.is_in_memory() {
        // Another connection would be to another database.
        return Ok(db.clone());
    }
    let urgent = open_pool(settings, Pool::Urgent).await?;
    drop(tokio::spawn(connect_all(urgent.clone())));
    Ok(urgent)
}

/// Opens the pool for grouped statements: a connection for each kind, made when the first statement needs it. Only PostgreSQL
/// has one; elsewhere they run over `db`.
///
/// # Errors
/// As [`open`].
pub async fn open_grouped(
    settings: &settings::Database,
    db: &DatabaseConnection,
) -> anyhow::Result<DatabaseConnection> {
    match db.get_database_backend() {
        DatabaseBackend::Postgres => open_pool(settings, Pool::Grouped).await,
        _ => Ok(db.clone()),
    }
}

/// What the connections of a pool are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// Any statement. Opening this pool connects, and so shows that the database is there.
    Requests,
    /// Statements that must not wait behind requests. The pool keeps all its connections open.
    Urgent,
    /// Grouped statements.
    Grouped,
}

/// Opens every connection of the urgent pool at once. The statement that needs a failed one opens it.
async fn connect_all(urgent: DatabaseConnection) {
    join_all((0..URGENT_CONNECTIONS).map(|_| urgent.ping())).await;
}

async fn open_pool(settings: &settings::Database, pool: Pool) -> anyhow::Result<DatabaseConnection> {
    let (min_connections, max_connections, connect_lazily) = match pool {
        Pool::Requests => (0, settings.max_connections, false),
        Pool::Urgent => (URGENT_CONNECTIONS, URGENT_CONNECTIONS, true),
        Pool::Grouped => (0, GROUPED_CONNECTIONS, true),
    };
    let mut connect = ConnectOptions::new(settings.url.expose_secret());
    connect
        .min_connections(min_connections)
        .max_connections(max_connections)
        .connect_lazy(connect_lazily)
        .acquire_timeout(settings.acquire_timeout)
        .connect_timeout(settings.acquire_timeout)
        .test_before_acquire_if_idle_for(ASK_AFTER_IDLE)
        // Statements are logged with their values otherwise, and some of those are users.
        .sqlx_logging(false)
        .map_sqlx_mysql_pool_opts(|pool| {
            pool.after_connect(|connection, _| {
                Box::pin(async { connection.execute(BRIEF_LOCK_WAIT).await.map(drop) })
            })
        })
        .map_sqlx_sqlite_opts(|sqlite| {
            // WAL: readers do not wait for the writer. Every commit is still synced to disk (`synchronous` stays
            // FULL), since a rotated pair that a power cut took back would be lost for good.
            sqlite
                .create_if_missing(true)
                .journal_mode(sea_orm::sqlx::sqlite::SqliteJournalMode::Wal)
                .busy_timeout(SQLITE_BUSY_TIMEOUT)
        });
    if pool == Pool::Grouped {
        connect.map_sqlx_postgres_pool_opts(|pool| {
            pool.after_connect(|connection, _| Box::pin(async { connection.execute(BY_KEY).await.map(drop) }))
        });
    }
    Database::connect(connect)
        .await
        .with_context(|| format!("cannot open the database {}", settings.display_url()))
}

/// Opens the database. Migrates its tables if the settings say so, and otherwise refuses outdated tables.
///
/// # Errors
/// As [`open`]. If migrations are pending, the error names them and says how to apply them.
pub async fn open_migrated(settings: &settings::Database) -> anyhow::Result<DatabaseConnection> {
    let db = open(settings).await?;
    if settings.migrate_at_start {
        migrate(&db).await.context("cannot migrate the database")?;
    }
    let pending = pending_migrations(&db).await.context("cannot read the state of migrations")?;
    if !pending.is_empty() {
        bail!("the database lacks migrations ({}): run `tokenkeeper migrate up`", pending.join(", "));
    }
    Ok(db)
}

pub fn product(db: &DatabaseConnection) -> &'static str {
    match db.get_database_backend() {
        DatabaseBackend::Sqlite => "SQLite",
        DatabaseBackend::Postgres => "PostgreSQL",
        DatabaseBackend::MySql => "MariaDB/MySQL",
        _ => "database",
    }
}

/// Only reads: a worker's database user need not be allowed to create tables.
pub async fn pending_migrations(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let pending = Migrator::get_pending_migrations_read_only(db).await?;
    Ok(pending.iter().map(|migration| migration.name().to_owned()).collect())
}
