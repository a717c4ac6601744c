//! The connections of a process to its database: which of them may still be used. All its pools share a [`Link`].
//!
//! A server may go on answering when it takes no writes any more: a primary that became a standby, a replica, a node without its
//! cluster. So each new connection is asked whether it takes writes, and so is each one that was idle. When one does not, all of
//! them have to go, because a pool would keep them for half an hour.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use sea_orm::sqlx::mysql::MySqlPoolOptions;
use sea_orm::sqlx::postgres::PgPoolOptions;
use sea_orm::sqlx::sqlite::SqlitePoolOptions;
use sea_orm::sqlx::{self, Executor, MySqlConnection, PgConnection};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Fault;

/// A connection that was idle for longer is asked before use. To ask every time would cost each statement a second round trip.
/// A recently used connection that is gone costs one failed statement, which is retried.
const ASK_AFTER_IDLE: Duration = Duration::from_secs(1);

/// Gives the column `yes` if the server takes no writes. A pooler passes it on, and it locks nothing.
/// <https://www.postgresql.org/docs/current/functions-admin.html>, <https://www.postgresql.org/docs/current/hot-standby.html>
pub(super) const POSTGRES_IS_READ_ONLY: &str =
    "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS yes";

/// Fails if the server takes no writes of this user (`read_only`, `super_read_only`, a Galera node without its cluster), and locks
/// nothing. Some users may ignore `read_only`, so that variable does not tell.
/// <https://dev.mysql.com/doc/refman/9.0/en/commit.html>, <https://mariadb.com/kb/en/start-transaction/>
const MYSQL_WRITES: &str = "START TRANSACTION READ WRITE; ROLLBACK";

/// Clones share the connections.
#[derive(Debug, Clone)]
pub struct Link(Arc<State>);

#[derive(Debug)]
struct State {
    /// A command that only reads may use a server that takes no writes.
    must_write: bool,
    /// Older connections are not used any more.
    renewed_at: Mutex<Option<Instant>>,
    /// A connection's server turned out to take no writes.
    distrusted: Notify,
}

impl Link {
    pub(super) fn new(must_write: bool) -> Self {
        Self(Arc::new(State { must_write, renewed_at: Mutex::default(), distrusted: Notify::new() }))
    }

    /// From now on only connections that are opened later are used.
    pub(super) fn renew(&self) {
        *self.0.renewed_at.lock() = Some(Instant::now());
    }

    /// A statement met a server that takes no writes.
    pub(super) fn distrust(&self) {
        self.0.distrusted.notify_one();
    }

    /// Waits until somebody met a server that takes no writes.
    pub(super) async fn distrusted(&self) {
        self.0.distrusted.notified().await;
    }

    /// Whether a connection of this age may still be used.
    fn is_current(&self, age: Duration) -> bool {
        self.0.renewed_at.lock().is_none_or(|renewed_at| age <= renewed_at.elapsed())
    }

    /// Whether a connection that was idle may be used: it answers, and its server takes writes.
    fn judge(&self, answer: Result<bool, sqlx::Error>) -> Result<bool, sqlx::Error> {
        let is_wrong = match &answer {
            Ok(takes_writes) => !takes_writes,
            Err(error) => Fault::of_driver(error).is_of_wrong_server(),
        };
        if is_wrong && self.0.must_write {
            self.distrust();
        }
        answer.map(|takes_writes| takes_writes || !self.0.must_write)
    }

    /// Whether a new connection may be used.
    fn admit(&self, answer: Result<bool, sqlx::Error>) -> Result<(), sqlx::Error> {
        if answer? || !self.0.must_write {
            return Ok(());
        }
        // Nobody reads it: the pool tries again until its time is over.
        Err(sqlx::Error::Configuration("the server takes no writes".into()))
    }

    /// `setup` prepares each new connection.
    pub(super) fn watch_postgres(&self, pool: PgPoolOptions, setup: Option<&'static str>) -> PgPoolOptions {
        let (acquired, released, opened) = (self.clone(), self.clone(), self.clone());
        pool.test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                if meta.idle_for < ASK_AFTER_IDLE || !acquired.is_current(meta.age) {
                    return ready(Ok(acquired.is_current(meta.age))).boxed();
                }
                let link = acquired.clone();
                async move { link.judge(postgres_takes_writes(connection).await) }.boxed()
            })
            .after_release(move |_, meta| ready(Ok(released.is_current(meta.age))).boxed())
            .after_connect(move |connection, _| {
                let link = opened.clone();
                async move {
                    link.admit(postgres_takes_writes(connection).await)?;
                    match setup {
                        Some(setup) => connection.execute(setup).await.map(drop),
                        None => Ok(()),
                    }
                }
                .boxed()
            })
    }

    /// `setup` prepares each new connection.
    pub(super) fn watch_mysql(&self, pool: MySqlPoolOptions, setup: &'static str) -> MySqlPoolOptions {
        let (acquired, released, opened) = (self.clone(), self.clone(), self.clone());
        pool.test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                if meta.idle_for < ASK_AFTER_IDLE || !acquired.is_current(meta.age) {
                    return ready(Ok(acquired.is_current(meta.age))).boxed();
                }
                let link = acquired.clone();
                async move { link.judge(mysql_takes_writes(connection).await) }.boxed()
            })
            .after_release(move |_, meta| ready(Ok(released.is_current(meta.age))).boxed())
            .after_connect(move |connection, _| {
                let link = opened.clone();
                async move {
                    link.admit(mysql_takes_writes(connection).await)?;
                    connection.execute(setup).await.map(drop)
                }
                .boxed()
            })
    }

    /// A connection that found its file read-only, or moved away, goes on finding it so.
    pub(super) fn watch_sqlite(&self, pool: SqlitePoolOptions) -> SqlitePoolOptions {
        let (acquired, released) = (self.clone(), self.clone());
        pool.test_before_acquire(false)
            .before_acquire(move |_, meta| ready(Ok(acquired.is_current(meta.age))).boxed())
            .after_release(move |_, meta| ready(Ok(released.is_current(meta.age))).boxed())
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new(false)
    }
}

pub(super) async fn postgres_takes_writes(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    use sqlx::Row;
    let is_read_only: bool = sqlx::raw_sql(POSTGRES_IS_READ_ONLY).fetch_one(connection).await?.try_get(0)?;
    Ok(!is_read_only)
}

pub(super) async fn mysql_takes_writes(connection: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    match sqlx::raw_sql(MYSQL_WRITES).execute(connection).await {
        Ok(_) => Ok(true),
        Err(error) if Fault::of_driver(&error) == Fault::ReadOnly => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_from_before_a_renewal_are_not_used_any_more() {
        let link = Link::new(true);
        let clone = link.clone();
        assert!(link.is_current(Duration::from_secs(1_800)));
        link.renew();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!clone.is_current(Duration::from_secs(6)));
        assert!(clone.is_current(Duration::from_secs(4)));
    }

    #[tokio::test]
    async fn a_server_that_takes_no_writes_is_distrusted_where_somebody_must_write() {
        let heard = |link: &Link| link.distrusted().now_or_never().is_some();
        let (writes, reads) = (Link::new(true), Link::new(false));
        assert!(!writes.judge(Ok(false)).unwrap());
        assert!(heard(&writes) && !heard(&writes));
        assert!(reads.judge(Ok(false)).unwrap());
        assert!(!heard(&reads));
        assert!(writes.judge(Err(sqlx::Error::PoolTimedOut)).is_err());
        assert!(!heard(&writes), "it does not answer, and so takes nothing");
        assert!(writes.admit(Ok(false)).is_err() && writes.admit(Ok(true)).is_ok());
        assert!(reads.admit(Ok(false)).is_ok());
    }
}
