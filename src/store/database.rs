//! Opening the database: what each kind needs to be opened with, and its migrations.

mod availability;
pub mod clock_sync;

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::join_all;
use sea_orm::sqlx::Executor;
use sea_orm::{ConnectOptions, Database, DatabaseBackend, DatabaseConnection, DbErr};
use secrecy::ExposeSecret;
use tokenkeeper_migration::{Migrator, MigratorTrait};

pub use self::availability::Availability;
use crate::settings;

/// Connections that are kept for leases and refreshed pairs alone.
const URGENT_CONNECTIONS: u32 = 4;

/// A connection that was not used for that long is asked whether it is still there before it is used. Asked every time, each
/// statement would cost two round trips; one that was used just now and is gone costs one failed statement, which is
/// tried again.
const ASK_AFTER_IDLE: Duration = Duration::from_secs(1);

/// Connections for grouped statements (`store/group_commit.rs`), made when they are needed: two for each of the four kinds. One
/// statement of a kind runs at a time, beside one that took too long and was given up.
const GROUPED_CONNECTIONS: u32 = 8;

/// How PostgreSQL plans grouped statements: once, and by key. To plan one anew for each number of rows takes longer than to run
/// it. And a plan that was made while the table was small reads all of the table until the next `ANALYZE`.
///
/// The other statements do without. On a million rows none of them gets a better plan by these settings, and those that count or
/// change all rows of a provider get a worse one. If a small table grows fast, as by an import, autovacuum analyses it within a
/// minute, and until then they may read all of it.
const BY_KEY: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off";

/// How long, in seconds, a statement waits for a row that somebody else holds locked on MariaDB and MySQL. A statement for
/// many holds the rows that it has while it waits for the next one; one that its caller gave up goes on doing so, and only
/// ends with this.
const BRIEF_LOCK_WAIT: &str = "SET SESSION innodb_lock_wait_timeout = 1";

/// How long a statement waits for another one's write lock on SQLite.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the pool. A missing SQLite file is created.
///
/// # Errors
/// Says which database could not be opened, without its password.
pub async fn open(settings: &settings::Database) -> anyhow::Result<DatabaseConnection> {
    open_pool(settings, Pool::Requests).await
}

/// Opens a second pool, small and always connected, for what must not wait for a connection behind requests. It connects
/// from here on behind its opener's back: one after the other its connections took half of a worker's start, and `db`
/// was reached just now.
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
    /// Anything. Opening the pool connects, and so shows that the database is there.
    Requests,
    /// What must not wait behind requests. The pool always keeps all of them; its opener makes them.
    Urgent,
    /// Grouped statements.
    Grouped,
}

/// Makes every connection of the urgent pool, all at once. One that fails is made by the statement that needs it.
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

/// Opens the database for work on its tables: brings them up to date where the settings say so, and refuses to
/// work on old ones otherwise.
///
/// # Errors
/// As [`open`]; and where migrations are pending, which they are and how to apply them.
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

/// The names of the migrations that are pending. Only looks: a worker's database user need not be allowed to create
/// tables.
pub async fn pending_migrations(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let pending = Migrator::get_pending_migrations_read_only(db).await?;
    Ok(pending.iter().map(|migration| migration.name().to_owned()).collect())
}
