//! Opening the database: what each kind needs to be opened with, and its migrations.

pub mod able;
mod availability;
pub mod clock_sync;
mod fault;
mod greeting;
mod migrating;
mod place;
mod tls;

use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::sqlx::mysql::MySqlConnectOptions;
use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::sqlx::{self, Connection, Executor, MySqlConnection, PgConnection};
use sea_orm::{ConnectOptions, Database, DatabaseBackend, DatabaseConnection, DbErr};
use secrecy::ExposeSecret;
use tokenkeeper_migration::{Migrator, MigratorTrait};
use tokio::time::timeout;

use self::able::{Newer, failed};
pub use self::availability::Availability;
pub use self::fault::{Fault, in_words};
use self::greeting::kind_of_server;
pub use self::migrating::{Migrating, migrate};
pub use self::place::{Place, Unable};
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
/// [`Unable`]: what is wrong with the database, without its password, and the next command.
pub async fn open(settings: &settings::Database) -> Result<DatabaseConnection, Unable> {
    knock(settings, settings.acquire_timeout).await?;
    open_pool(settings, Pool::Requests).await
}

/// Opens the pool where there is a database already. A missing SQLite file is an error, and is not created.
///
/// # Errors
/// As [`open`].
pub async fn open_existing(settings: &settings::Database) -> Result<DatabaseConnection, Unable> {
    match missing_file(settings) {
        Some(unable) => Err(unable),
        None => open(settings).await,
    }
}

/// That there is no SQLite file, if that is so.
pub fn missing_file(settings: &settings::Database) -> Option<Unable> {
    let place = Place::new(settings);
    if !place.is_file() || settings.url.is_in_memory() {
        return None;
    }
    // The driver decodes the name of the file. Opening tells what is wrong with another URL.
    let options: SqliteConnectOptions = settings.url.expose_secret().parse().ok()?;
    let is_there = options.get_filename().try_exists().unwrap_or(true);
    (!is_there).then(|| place.unable(Fault::NoFile, ""))
}

/// Connects once, and hangs up. A pool asks a server that does not answer again and again, and then does not say why.
///
/// # Errors
/// As [`open`].
pub async fn knock(settings: &settings::Database, patience: Duration) -> Result<(), Unable> {
    let (place, url, tls) = (Place::new(settings), settings.url.expose_secret(), &settings.tls);
    // The driver tells of an unreadable file as of a server that is not there.
    tls.check().map_err(|error| Unable { fault: Fault::TlsFile, problem: error.problem() })?;
    let connected = timeout(patience, async {
        match place.backend() {
            DatabaseBackend::Postgres => {
                let options = tls::of_postgres(url.parse::<PgConnectOptions>()?, tls);
                PgConnection::connect_with(&options).await?.close().await
            }
            DatabaseBackend::MySql => {
                let options = tls::of_mysql(url.parse::<MySqlConnectOptions>()?, tls);
                MySqlConnection::connect_with(&options).await?.close().await
            }
            // Opening the pool opens the file.
            _ => Ok(()),
        }
    });
    let unable = match connected.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => refused(&place, error),
        Err(_) => place.unable(Fault::NoAnswer, ""),
    };
    // PostgreSQL waits for the first word, and so does a client of MariaDB: both would wait for ever.
    if matches!(unable.fault, Fault::NoAnswer | Fault::OtherProtocol)
        && let Some((host, port)) = place.server()
        && let Some(kind) = kind_of_server(host, port).await
        && kind != place.backend()
    {
        return Err(place.unable(Fault::OtherKind, ""));
    }
    Err(unable)
}

/// Why a connection was refused.
fn refused(place: &Place, error: sqlx::Error) -> Unable {
    let fault = match Fault::of_driver(&error) {
        // PostgreSQL has one code for a right on a table and one on the database.
        Fault::Denied => Fault::DatabaseDenied,
        fault => fault,
    };
    let error = DbErr::Conn(sea_orm::RuntimeErr::SqlxError(error.into()));
    place.unable(fault, &in_words(&error))
}

/// Opens a small pool that stays connected, for statements that must not wait behind requests. It connects in the background,
/// because its connections took half of a worker's start. `db` shows that the database can be reached.
///
/// # Errors
/// As [`open`].
pub async fn open_urgent(
    settings: &settings::Database,
    db: &DatabaseConnection,
) -> Result<DatabaseConnection, Unable> {
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
) -> Result<DatabaseConnection, Unable> {
    match db.get_database_backend() {
        DatabaseBackend::Postgres => open_pool(settings, Pool::Grouped).await,
        _ => Ok(db.clone()),
    }
}

/// The most connections that one worker opens.
pub fn connections_of_a_worker(settings: &settings::Database) -> u32 {
    let grouped = match Place::new(settings).backend() {
        DatabaseBackend::Postgres => GROUPED_CONNECTIONS,
        _ => 0,
    };
    settings.max_connections + URGENT_CONNECTIONS + grouped
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

async fn open_pool(settings: &settings::Database, pool: Pool) -> Result<DatabaseConnection, Unable> {
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
        .map_sqlx_postgres_opts({
            let tls = settings.tls.clone();
            move |postgres| tls::of_postgres(postgres, &tls)
        })
        .map_sqlx_mysql_opts({
            let tls = settings.tls.clone();
            move |mysql| tls::of_mysql(mysql, &tls)
        })
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
                .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
                .busy_timeout(SQLITE_BUSY_TIMEOUT)
        });
    if pool == Pool::Grouped {
        connect.map_sqlx_postgres_pool_opts(|pool| {
            pool.after_connect(|connection, _| Box::pin(async { connection.execute(BY_KEY).await.map(drop) }))
        });
    }
    let place = Place::new(settings);
    Database::connect(connect).await.map_err(|error| match Fault::of(&error) {
        Fault::CannotOpen if !place.folder().is_dir() => place.unable(Fault::NoFolder, ""),
        _ => failed(&place, &error),
    })
}

/// Opens a database that a worker can do its job on. Migrates its tables if the settings say so.
///
/// # Errors
/// As [`open`], and what [`able::prove`] finds.
pub async fn open_able(settings: &settings::Database) -> Result<DatabaseConnection, Unable> {
    let (db, place) = (open_and_migrate(settings).await?, Place::new(settings));
    // A migration that another process runs may lock the tables for minutes.
    let proved = timeout(settings.acquire_timeout, able::prove(&db, &place, Newer::Refused)).await;
    proved.unwrap_or_else(|_| Err(place.unable(Fault::NoAnswer, "")))?;
    Ok(db)
}

/// Opens the database for a command that needs one. Migrates its tables if the settings say so, and otherwise refuses outdated
/// tables.
///
/// # Errors
/// As [`open_existing`]. If migrations are pending, the error counts them and says how to apply them.
pub async fn open_migrated(settings: &settings::Database) -> Result<DatabaseConnection, Unable> {
    if let Some(unable) = missing_file(settings) {
        return Err(unable);
    }
    let db = open_and_migrate(settings).await?;
    able::is_migrated(&db, &Place::new(settings), Newer::Refused).await?;
    Ok(db)
}

/// As [`open_migrated`], for a command that writes.
///
/// # Errors
/// As [`open_migrated`], and that the database is read-only.
pub async fn open_to_write(settings: &settings::Database) -> Result<DatabaseConnection, Unable> {
    match missing_file(settings) {
        Some(unable) => Err(unable),
        None => open_or_create(settings).await,
    }
}

/// As [`open_to_write`], and creates a missing SQLite file.
///
/// # Errors
/// As [`open`], pending migrations, and that the database is read-only.
pub async fn open_or_create(settings: &settings::Database) -> Result<DatabaseConnection, Unable> {
    let (db, place) = (open_and_migrate(settings).await?, Place::new(settings));
    able::is_migrated(&db, &place, Newer::Refused).await?;
    able::may_be_written(&db, &place).await?;
    Ok(db)
}

async fn open_and_migrate(settings: &settings::Database) -> Result<DatabaseConnection, Unable> {
    let (db, place) = (open(settings).await?, Place::new(settings));
    if settings.migrate_at_start {
        able::is_no_newer(&db, &place).await?;
        migrate(&db).await.map_err(|error| failed(&place, &error))?;
    }
    Ok(db)
}

/// Only reads: a worker's database user need not be allowed to create tables.
pub async fn pending_migrations(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let pending = Migrator::get_pending_migrations_read_only(db).await?;
    Ok(pending.iter().map(|migration| migration.name().to_owned()).collect())
}
