//! The connection that grouped statements run over, one after the other.

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::{self, PgConnection, Postgres};
use sea_orm::{DatabaseConnection, DbErr, RuntimeErr};

/// A connection of PostgreSQL that is kept between statements. The pool tests each connection that is returned, and that takes
/// as long as a small statement. On other databases each statement takes a connection from the pool.
#[derive(Debug)]
pub(super) struct Line {
    /// The pool for grouped statements (`database::open_grouped`).
    db: DatabaseConnection,
    held: Option<PoolConnection<Postgres>>,
    /// Whether the next claims reserve before they look, judged by the last ones.
    reserve_first: bool,
}

impl Line {
    pub(super) const fn new(db: DatabaseConnection) -> Self {
        Self { db, held: None, reserve_first: true }
    }

    pub(super) const fn db(&self) -> &DatabaseConnection {
        &self.db
    }

    /// Whether claims reserve first and then look at the rest, or only look.
    pub(super) const fn reserves_first(&self) -> bool {
        self.reserve_first
    }

    /// Sets [`Line::reserves_first`] for the next claims.
    pub(super) const fn reserve_first(&mut self, first: bool) {
        self.reserve_first = first;
    }

    /// The connection of PostgreSQL.
    pub(super) async fn postgres(&mut self) -> Result<&mut PgConnection, DbErr> {
        let held = match self.held.take() {
            Some(held) => held,
            // Boxed: the future that opens a connection takes 14 kB, which every task would carry.
            None => Box::pin(self.db.get_postgres_connection_pool().acquire()).await.map_err(driver)?,
        };
        Ok(self.held.insert(held))
    }

    /// Returns the connection: it broke, or still runs a statement that was given up.
    pub(super) fn hang_up(&mut self) {
        self.held = None;
    }
}

/// What the driver said, as `sea-orm` says it.
pub(super) fn driver(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// One column of a group, as an array.
pub(super) fn column<'a, T, V>(group: &'a [T], value: impl FnMut(&'a T) -> V) -> Vec<V> {
    group.iter().map(value).collect()
}
