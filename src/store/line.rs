//! The line to the database that grouped statements run over, one after the other.

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::{self, PgConnection, Postgres};
use sea_orm::{DatabaseConnection, DbErr, RuntimeErr};

/// A connection of PostgreSQL that is kept between statements that follow one another: the pool asks each one that comes back
/// whether it is alive, and that takes as long as a small statement. The other databases take one from the pool each time.
#[derive(Debug)]
pub(super) struct Line {
    db: DatabaseConnection,
    held: Option<PoolConnection<Postgres>>,
    /// Whether a claim reserves before it looks. What the next tokens are like is guessed from the last ones.
    reserve_first: bool,
}

impl Line {
    pub(super) const fn new(db: DatabaseConnection) -> Self {
        Self { db, held: None, reserve_first: true }
    }

    pub(super) const fn db(&self) -> &DatabaseConnection {
        &self.db
    }

    /// Whether claims are to be reserved before what is left of them is looked at, or looked at only.
    pub(super) const fn reserves_first(&self) -> bool {
        self.reserve_first
    }

    /// Which of them the next claims are.
    pub(super) const fn reserve_first(&mut self, first: bool) {
        self.reserve_first = first;
    }

    /// The connection of PostgreSQL.
    pub(super) async fn postgres(&mut self) -> Result<&mut PgConnection, DbErr> {
        let held = match self.held.take() {
            Some(held) => held,
            // In a box: it has room for making a connection, 14 kB that every group's task would carry.
            None => Box::pin(self.db.get_postgres_connection_pool().acquire()).await.map_err(driver)?,
        };
        Ok(self.held.insert(held))
    }

    /// Lets the connection go where the pool has no other one left: somebody may wait for it.
    pub(super) fn make_room(&mut self) {
        if self.held.is_none() {
            return;
        }
        let pool = self.db.get_postgres_connection_pool();
        if pool.num_idle() == 0 && pool.size() >= pool.options().get_max_connections() {
            self.held = None;
        }
    }

    /// Lets the connection go: it broke, or is still busy with a statement that was given up.
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
