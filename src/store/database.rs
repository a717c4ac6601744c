//! Opening the database: what each kind needs to be opened with, and its migrations.

pub mod able;
mod availability;
pub mod clock_sync;
mod fault;
mod greeting;
mod link;
mod migrating;
mod place;
mod server;
mod tls;

use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::sqlx;
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::{ConnectOptions, Database, DatabaseBackend, DatabaseConnection, DbErr};
use secrecy::ExposeSecret;
use tokenkeeper_migration::{Migrator, MigratorTrait};
use tokio::time::timeout;

use self::able::{Newer, failed};
pub use self::availability::Availability;
pub use self::fault::{Fault, in_words};
pub use self::link::Link;
pub use self::migrating::{Migrating, migrate};
pub use self::place::{Place, Unable};
use self::server::{Server, Target, find, find_writable};
use crate::settings;

/// Connections only for leases and refreshed pairs.
const URGENT_CONNECTIONS: u32 = 4;

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

/// A database that is open: its first pool, and what all its pools share.
#[derive(Debug, Clone)]
pub struct Opened {
    pub db: DatabaseConnection,
    pub link: Link,
}

/// Over a pool of the caller's own, which nobody renews.
impl From<DatabaseConnection> for Opened {
    fn from(db: DatabaseConnection) -> Self {
        Self { db, link: Link::default() }
    }
}

/// Opens the pool, at the first server that takes writes, else at the first one that answers. A missing SQLite file is created.
///
/// # Errors
/// [`Unable`]: what is wrong with the database, without its password, and the next command.
pub async fn open(settings: &settings::Database) -> Result<DatabaseConnection, Unable> {
    open_linked(settings).await.map(|opened| opened.db)
}

async fn open_linked(settings: &settings::Database) -> Result<Opened, Unable> {
    open_at(settings, &find(settings, settings.acquire_timeout).await?).await
}

async fn open_at(settings: &settings::Database, server: &Server) -> Result<Opened, Unable> {
    let link = Link::new(server.takes_writes);
    let db = open_pool(settings, Pool::Requests, &server.target, &link).await?;
    Ok(Opened { db, link })
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

/// Opens a small pool that stays connected, for statements that must not wait behind requests. It connects in the background,
/// because its connections took half of a worker's start. `opened` shows that the database can be reached.
///
/// # Errors
/// As [`open`].
pub async fn open_urgent(
    settings: &settings::Database,
    opened: &Opened,
) -> Result<DatabaseConnection, Unable> {
    let Opened { db, link } = opened;
    if settings.url.is_in_memory() {
        // Another connection would be to another database.
        return Ok(db.clone());
    }
    let urgent = open_pool(settings, Pool::Urgent, &Target::of_pool(db), link).await?;
    drop(tokio::spawn(connect_all(urgent.clone())));
    Ok(urgent)
}

/// Opens the pool for grouped statements: a connection for each kind, made when the first statement needs it. Only PostgreSQL
/// has one; elsewhere they run over the first pool.
///
/// # Errors
/// As [`open`].
pub async fn open_grouped(
    settings: &settings::Database,
    opened: &Opened,
) -> Result<DatabaseConnection, Unable> {
    let Opened { db, link } = opened;
    match db.get_database_backend() {
        DatabaseBackend::Postgres => open_pool(settings, Pool::Grouped, &Target::of_pool(db), link).await,
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
    /// Statements that must not wait behind requests. The pool keeps its connections however long they are idle. It does not
    /// open new ones by itself, because it would go on trying that with longer and longer pauses while the database is away.
    Urgent,
    /// Grouped statements.
    Grouped,
}

/// Opens every connection of the urgent pool at once. The statement that needs a failed one opens it.
async fn connect_all(urgent: DatabaseConnection) {
    join_all((0..URGENT_CONNECTIONS).map(|_| urgent.ping())).await;
}

async fn open_pool(
    settings: &settings::Database,
    pool: Pool,
    target: &Target,
    link: &Link,
) -> Result<DatabaseConnection, Unable> {
    let (max_connections, connect_lazily) = match pool {
        Pool::Requests => (settings.max_connections, false),
        Pool::Urgent => (URGENT_CONNECTIONS, true),
        Pool::Grouped => (GROUPED_CONNECTIONS, true),
    };
    // Only a file is opened by it.
    let url = settings.url.servers().first().map(ExposeSecret::expose_secret).unwrap_or_default();
    let mut connect = ConnectOptions::new(url);
    connect
        .max_connections(max_connections)
        .connect_lazy(connect_lazily)
        .acquire_timeout(settings.acquire_timeout)
        .connect_timeout(settings.acquire_timeout)
        // Statements are logged with their values otherwise, and some of those are users.
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(|sqlite| {
            // WAL: readers do not wait for the writer. Every commit is still synced to disk (`synchronous` stays
            // FULL), since a rotated pair that a power cut took back would be lost for good.
            sqlite
                .create_if_missing(true)
                .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
                .busy_timeout(SQLITE_BUSY_TIMEOUT)
        });
    if pool == Pool::Urgent {
        connect.idle_timeout(None);
    }
    match target.clone() {
        Target::Postgres(options) => {
            let (link, setup) = (link.clone(), (pool == Pool::Grouped).then_some(BY_KEY));
            connect
                .map_sqlx_postgres_opts(move |_| options.clone())
                .map_sqlx_postgres_pool_opts(move |pool| link.watch_postgres(pool, setup));
        }
        Target::MySql(options) => {
            let link = link.clone();
            connect
                .map_sqlx_mysql_opts(move |_| options.clone())
                .map_sqlx_mysql_pool_opts(move |pool| link.watch_mysql(pool, BRIEF_LOCK_WAIT));
        }
        // Another connection to a database in memory would find nothing there.
        Target::File if settings.url.is_in_memory() => {}
        Target::File => {
            let link = link.clone();
            connect.map_sqlx_sqlite_pool_opts(move |pool| link.watch_sqlite(pool));
        }
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
/// As [`open`], that no server takes writes, and what [`able::prove`] finds.
pub async fn open_able(settings: &settings::Database) -> Result<Opened, Unable> {
    let server = find_writable(settings, settings.acquire_timeout).await?;
    let (opened, place) = (open_at(settings, &server).await?, Place::new(settings));
    migrate_if_wanted(settings, &opened.db).await?;
    // A migration that another process runs may lock the tables for minutes.
    let proved = timeout(settings.acquire_timeout, able::prove(&opened.db, &place, Newer::Refused)).await;
    proved.unwrap_or_else(|_| Err(place.unable(Fault::NoAnswer, "")))?;
    Ok(opened)
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
    let db = open(settings).await?;
    migrate_if_wanted(settings, &db).await?;
    able::is_migrated(&db, &Place::new(settings), Newer::Refused).await?;
    Ok(db)
}

/// As [`open_migrated`], for a command that writes.
///
/// # Errors
/// As [`open_migrated`], and that the database is read-only.
pub async fn open_to_write(settings: &settings::Database) -> Result<Opened, Unable> {
    match missing_file(settings) {
        Some(unable) => Err(unable),
        None => open_or_create(settings).await,
    }
}

/// As [`open_to_write`], and creates a missing SQLite file.
///
/// # Errors
/// As [`open`], pending migrations, and that the database is read-only.
pub async fn open_or_create(settings: &settings::Database) -> Result<Opened, Unable> {
    let (opened, place) = (open_linked(settings).await?, Place::new(settings));
    migrate_if_wanted(settings, &opened.db).await?;
    able::is_migrated(&opened.db, &place, Newer::Refused).await?;
    able::may_be_written(&opened.db, &place).await?;
    Ok(opened)
}

async fn migrate_if_wanted(settings: &settings::Database, db: &DatabaseConnection) -> Result<(), Unable> {
    if settings.migrate_at_start {
        let place = Place::new(settings);
        able::is_no_newer(db, &place).await?;
        migrate(db).await.map_err(|error| failed(&place, &error))?;
    }
    Ok(())
}

/// Only reads: a worker's database user need not be allowed to create tables.
pub async fn pending_migrations(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let pending = Migrator::get_pending_migrations_read_only(db).await?;
    Ok(pending.iter().map(|migration| migration.name().to_owned()).collect())
}
