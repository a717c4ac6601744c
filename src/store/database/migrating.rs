//! Migrating the tables, by one process at a time.

use std::time::Duration;

use sea_orm::sqlx::{self, ConnectOptions, Connection, Executor, MySqlConnection, PgConnection, Row};
use sea_orm::{
    DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr, RuntimeErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};
use tokenkeeper_migration::{Migrator, MigratorTrait};
use tokio::time::sleep;

use super::pending_migrations;

/// How often the lock is tried while another process has it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A lock of the transaction, because a pooler may give the session to somebody else. PostgreSQL locks for each database.
const BEGIN_ON_POSTGRES: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0";
/// The number means nothing.
const TRY_ON_POSTGRES: &str = "SELECT pg_try_advisory_xact_lock(8387229003465680)";
/// MariaDB and MySQL lock for the whole server, and names of locks are short.
const TRY_ON_MYSQL: &str =
    "SELECT CAST(GET_LOCK(CONCAT('tokenkeeper migrate ', MD5(DATABASE())), 0) AS SIGNED)";

/// `SQLITE_BUSY` (<https://sqlite.org/rescode.html>): another process writes.
const SQLITE_BUSY: i32 = 5;

/// The right to migrate. It ends with this value, or with the process.
#[derive(Debug)]
pub struct Migrating<'a> {
    db: &'a DatabaseConnection,
    lock: Option<Lock>,
}

/// A connection of its own that has the lock.
#[derive(Debug)]
enum Lock {
    Postgres(PgConnection),
    MySql(MySqlConnection),
}

impl<'a> Migrating<'a> {
    /// Waits while another process migrates this database, and calls `on_wait` before that.
    ///
    /// SQLite has no such lock. There each call of [`Migrating::up`] and [`Migrating::down`] takes the file's write lock.
    ///
    /// # Errors
    /// The database cannot be reached any more.
    pub async fn begin(db: &'a DatabaseConnection, on_wait: impl FnOnce()) -> Result<Self, DbErr> {
        let lock =
            lock(db, on_wait).await.map_err(|error| DbErr::Conn(RuntimeErr::SqlxError(error.into())))?;
        Ok(Self { db, lock })
    }

    /// Applies the next migrations that are pending: this many, or all of them.
    ///
    /// # Errors
    /// A migration failed; those before it are applied. On SQLite all migrations of this call are rolled back.
    pub async fn up(&self, steps: Option<u32>) -> Result<(), DbErr> {
        match self.transaction().await? {
            Some(transaction) => {
                Migrator::up(&transaction, steps).await?;
                transaction.commit().await
            }
            None => Migrator::up(self.db, steps).await,
        }
    }

    /// Reverts the newest migration that is applied.
    ///
    /// # Errors
    /// As [`Migrating::up`].
    pub async fn down(&self) -> Result<(), DbErr> {
        match self.transaction().await? {
            Some(transaction) => {
                Migrator::down(&transaction, Some(1)).await?;
                transaction.commit().await
            }
            None => Migrator::down(self.db, Some(1)).await,
        }
    }

    /// Drops every table, and applies every migration. On SQLite without a lock: foreign keys cannot be disabled within a
    /// transaction.
    ///
    /// # Errors
    /// A statement failed; what was dropped before it is gone.
    pub async fn fresh(&self) -> Result<(), DbErr> {
        Migrator::fresh(self.db).await
    }

    /// Gives the right back in good order: the server would log that the connection broke off.
    pub async fn end(self) {
        // Dropped, the connection breaks off, and the lock ends all the same.
        let _ = match self.lock {
            Some(Lock::Postgres(connection)) => connection.close().await,
            Some(Lock::MySql(connection)) => connection.close().await,
            None => Ok(()),
        };
    }

    /// On SQLite: a transaction that holds the file's write lock.
    async fn transaction(&self) -> Result<Option<DatabaseTransaction>, DbErr> {
        if self.db.get_database_backend() != DatabaseBackend::Sqlite {
            return Ok(None);
        }
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        loop {
            match self.db.begin_with_options(options).await {
                // The driver has waited already.
                Err(error) if is_busy(&error) => {}
                begun => return begun.map(Some),
            }
        }
    }
}

/// Applies every migration that is pending, after another process that does so.
///
/// # Errors
/// As [`Migrating::up`].
pub async fn migrate(db: &DatabaseConnection) -> Result<(), DbErr> {
    if pending_migrations(db).await?.is_empty() {
        return Ok(());
    }
    let on_wait = || tracing::info!("another process migrates this database: waiting for it to finish");
    let migrating = Migrating::begin(db, on_wait).await?;
    let done = migrating.up(None).await;
    migrating.end().await;
    done
}

async fn lock(db: &DatabaseConnection, on_wait: impl FnOnce()) -> Result<Option<Lock>, sqlx::Error> {
    let mut lock = match db.get_database_backend() {
        DatabaseBackend::Postgres => {
            let mut connection = db.get_postgres_connection_pool().connect_options().connect().await?;
            connection.execute(BEGIN_ON_POSTGRES).await?;
            Lock::Postgres(connection)
        }
        DatabaseBackend::MySql => {
            Lock::MySql(db.get_mysql_connection_pool().connect_options().connect().await?)
        }
        _ => return Ok(None),
    };
    let mut on_wait = Some(on_wait);
    while !lock.is_taken().await? {
        if let Some(on_wait) = on_wait.take() {
            on_wait();
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(Some(lock))
}

impl Lock {
    /// Tries to take it.
    async fn is_taken(&mut self) -> Result<bool, sqlx::Error> {
        match self {
            Self::Postgres(connection) => {
                sqlx::raw_sql(TRY_ON_POSTGRES).fetch_one(connection).await?.try_get(0)
            }
            Self::MySql(connection) => {
                let taken: Option<i64> =
                    sqlx::raw_sql(TRY_ON_MYSQL).fetch_one(connection).await?.try_get(0)?;
                Ok(taken == Some(1))
            }
        }
    }
}

fn is_busy(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))
    | DbErr::Conn(RuntimeErr::SqlxError(error))) = error
    else {
        return false;
    };
    // The lowest byte of an extended code.
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    code.is_some_and(|code| code & 0xff == SQLITE_BUSY)
}
