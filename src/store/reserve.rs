//! RESERVE: extends the reservation of a token that was decided on.

use std::collections::HashSet;
use std::sync::Arc;

use sea_orm::sea_query::Expr;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait, QueryFilter, Statement, Value, sqlx,
};
use tokenkeeper_entity::token_entry;

use super::claim::in_few_lengths;
use super::group_commit::Grouped;
use super::line::{Line, column, driver};
use super::rules::{
    is_ordinary_sql, is_unmoved_sql, lease_is_free, lease_is_free_sql, not_reserved_beyond,
    not_reserved_beyond_sql,
};
use super::{Entry, Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::telemetry::GroupedStatement;

impl Store {
    /// Extends the reservation to `until`. A reservation only ever grows.
    ///
    /// # Errors
    /// [`StoreError`], shared with those whose reservations were in the same statement.
    pub async fn reserve(
        &self,
        entry: &Entry,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Guarded, Arc<StoreError>> {
        if !entry.is_ordinary() {
            return Ok(Box::pin(self.reserve_alone(entry, until, now)).await?);
        }
        match self.reservations.submit(&self.grouped, &self.db, Reservation::of(entry, until, now)).await? {
            Guarded::Done => Ok(Guarded::Done),
            // The row has changed, somebody else was writing it, or the database told only how many rows it changed.
            Guarded::Moved => Ok(Box::pin(self.reserve_alone(entry, until, now)).await?),
        }
    }

    async fn reserve_alone(
        &self,
        entry: &Entry,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Guarded, StoreError> {
        let updated = token_entry::Entity::update_many()
            .col_expr(token_entry::Column::ReservedUntil, Expr::value(until.as_millis()))
            .filter(entry.is_as_decided_on())
            .filter(lease_is_free(now))
            .filter(not_reserved_beyond(until))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("reserve a token"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }
}

/// A reservation of an entry that was [ordinary](Entry::is_ordinary) when it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reservation {
    entry_id: i64,
    generation: i64,
    /// When the token expires, in ms since the epoch, or [`NEVER`]. Changes with the generation, or if somebody edits the row.
    expires_ms: i64,
    until: Timestamp,
    now: Timestamp,
    /// Only if somebody holds it. Otherwise a refresh may be due.
    only_if_held: bool,
}

/// The expiry of a token that never expires. [`guard`] has the same number.
const NEVER: i64 = i64::MAX;

impl Reservation {
    /// For an entry that was loaded just now.
    pub(super) fn of(entry: &Entry, until: Timestamp, now: Timestamp) -> Self {
        let expires_ms = entry.state.expires_at.map_or(NEVER, Timestamp::as_millis);
        let (entry_id, generation) = (entry.id, entry.generation);
        Self { entry_id, generation, expires_ms, until, now, only_if_held: false }
    }

    /// For an entry that may have been loaded long ago.
    pub(super) fn while_held(entry: &Entry, until: Timestamp, now: Timestamp) -> Self {
        Self { only_if_held: true, ..Self::of(entry, until, now) }
    }
}

impl Grouped for Reservation {
    /// The row's id, generation and expiry.
    type Key<'a> = (i64, i64, i64);
    type Answer = Guarded;
    const STATEMENT: GroupedStatement = GroupedStatement::Reserve;

    fn key(&self) -> Self::Key<'_> {
        (self.entry_id, self.generation, self.expires_ms)
    }

    fn absorb(&mut self, other: &Self) {
        self.until = self.until.max(other.until);
        self.now = self.now.max(other.now);
        self.only_if_held |= other.only_if_held;
    }

    async fn run(line: &mut Line, group: &[Self]) -> Result<Vec<Guarded>, StoreError> {
        let reserved = match line.db().get_database_backend() {
            DbBackend::Postgres => reserve_on_postgres(line, group).await,
            DbBackend::MySql => reserve_on_mariadb(line.db(), group).await,
            _ => reserve_on_sqlite(line.db(), group).await,
        };
        reserved.map_err(StoreError::database("reserve tokens"))
    }
}

/// The row is as it was decided on, an ordinary one, without a live lease, and the reservation does not shrink.
macro_rules! guard {
    () => {
        concat!(
            is_unmoved_sql!("wanted.id", "wanted.generation"),
            " AND coalesce(entry.expires_at, 9223372036854775807) = wanted.expires_ms AND ",
            is_ordinary_sql!(),
            " AND ",
            lease_is_free_sql!("wanted.now_ms"),
            " AND ",
            not_reserved_beyond_sql!("wanted.until_ms"),
            " AND (entry.reserved_until > wanted.now_ms OR NOT wanted.only_if_held)"
        )
    };
}

/// `claim/postgres.rs` says why `LATERAL` and `SKIP LOCKED`. The places of the reserved rows come back in one row: a row for
/// each costs both sides more than its contents.
const RESERVE: &str = concat!(
    "WITH held AS MATERIALIZED (SELECT wanted.*, entry.reserved_until \
     FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::boolean[]) \
     WITH ORDINALITY AS wanted (id, generation, expires_ms, until_ms, now_ms, only_if_held, place) \
     CROSS JOIN LATERAL (SELECT reserved_until FROM token_entry AS entry WHERE ",
    guard!(),
    " LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) AS entry), \
     extended AS (UPDATE token_entry AS entry SET reserved_until = held.until_ms FROM held WHERE entry.id = held.id \
     AND (held.reserved_until IS NULL OR held.reserved_until < held.until_ms)) \
     SELECT array_agg(place) FROM held"
);

async fn reserve_on_postgres(line: &mut Line, group: &[Reservation]) -> Result<Vec<Guarded>, DbErr> {
    let reserved = sqlx::query_scalar(RESERVE)
        .bind(column(group, |reservation| reservation.entry_id))
        .bind(column(group, |reservation| reservation.generation))
        .bind(column(group, |reservation| reservation.expires_ms))
        .bind(column(group, |reservation| reservation.until.as_millis()))
        .bind(column(group, |reservation| reservation.now.as_millis()))
        .bind(column(group, |reservation| reservation.only_if_held))
        .fetch_one(line.postgres().await?)
        .await
        .map_err(driver)?;
    Ok(Guarded::at_places(reserved, group.len()))
}

async fn reserve_on_sqlite(db: &DatabaseConnection, group: &[Reservation]) -> Result<Vec<Guarded>, DbErr> {
    let (rows, values) = rows(group, "(?, ?, ?, ?, ?, ?)", ", ");
    let sql = format!(
        "WITH wanted (id, generation, expires_ms, until_ms, now_ms, only_if_held) AS (VALUES {rows}) \
         UPDATE token_entry AS entry SET reserved_until = wanted.until_ms FROM wanted WHERE {} \
         RETURNING id, generation, coalesce(expires_at, {NEVER}) AS expires_ms",
        guard!()
    );
    let statement = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    let mut reserved = HashSet::with_capacity(group.len());
    for row in db.query_all_raw(statement).await? {
        let column = |name| row.try_get::<i64>("", name);
        reserved.insert((column("id")?, column("generation")?, column("expires_ms")?));
    }
    let answer = |key| if reserved.contains(&key) { Guarded::Done } else { Guarded::Moved };
    Ok(group.iter().map(|reservation| answer(reservation.key())).collect())
}

/// MariaDB and MySQL tell how many rows they changed, and not which. Unless it was all of them, each is tried again alone.
async fn reserve_on_mariadb(db: &DatabaseConnection, group: &[Reservation]) -> Result<Vec<Guarded>, DbErr> {
    let row =
        "SELECT ? AS id, ? AS generation, ? AS expires_ms, ? AS until_ms, ? AS now_ms, ? AS only_if_held";
    let (rows, values) = rows(group, row, " UNION ALL ");
    let sql = format!(
        "UPDATE token_entry AS entry JOIN ({rows}) AS wanted ON {} SET entry.reserved_until = wanted.until_ms",
        guard!()
    );
    let statement = Statement::from_sql_and_values(DbBackend::MySql, sql, values);
    let all = db.execute_raw(statement).await?.rows_affected() == group.len() as u64;
    Ok(vec![if all { Guarded::Done } else { Guarded::Moved }; group.len()])
}

/// The rows as SQL, and their values.
fn rows(group: &[Reservation], row: &str, between: &str) -> (String, Vec<Value>) {
    let reservations = in_few_lengths(group);
    let values = reservations.flat_map(|reservation| {
        let &Reservation { entry_id, generation, expires_ms, until, now, only_if_held } = reservation;
        let numbers = [entry_id, generation, expires_ms, until.as_millis(), now.as_millis()];
        numbers.map(Value::from).into_iter().chain([Value::from(only_if_held)])
    });
    let rows = vec![row; group.len().next_power_of_two()];
    (rows.join(between), values.collect())
}
