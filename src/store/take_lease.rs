//! TAKE LEASE: the right to refresh an entry, taken by a compare-and-set on the state that was decided on.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{ColumnTrait, Condition, DbBackend, DbErr, EntityTrait, QueryFilter, sqlx};
use tokenkeeper_entity::token_entry::{Column, Entity as TokenEntry};

use super::entry::Entry;
use super::group_commit::Grouped;
use super::line::{Line, column, driver};
use super::rules::{
    is_ordinary_sql, is_unmoved_sql, lease_is_free, lease_is_free_sql, not_reserved_beyond,
    not_reserved_beyond_sql,
};
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::telemetry::GroupedStatement;

impl Store {
    /// Takes the lease, and records which refresh token is about to be sent and since when it counts as spent.
    ///
    /// A reservation beyond `unless_reserved_beyond` stands against it (invariant 1). So does an attempt, a failure or a report
    /// that is not in `entry`. A holder that has the lease already gets `Done`: it may not have heard of its first try.
    ///
    /// # Errors
    /// [`StoreError`], shared with those whose leases were in the same statement.
    pub async fn take_lease(
        &self,
        entry: &Entry,
        unless_reserved_beyond: Option<Timestamp>,
        holder: &str,
        attempt: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Guarded, Arc<StoreError>> {
        let (holder, attempt) = (holder.to_owned(), attempt.to_owned());
        let (entry_id, generation, until) = (entry.id, entry.generation, now.plus(ttl));
        let wanted =
            WantedLease { entry_id, generation, unless_reserved_beyond, holder, attempt, now, until };
        let postgres = self.db.get_database_backend() == DbBackend::Postgres;
        if postgres && entry.is_ordinary() {
            match self.leases.submit(&self.grouped, &self.db, wanted.clone()).await? {
                Guarded::Done => return Ok(Guarded::Done),
                // The row has changed, somebody else was writing it, or this holder has the lease already.
                Guarded::Moved => {}
            }
        }
        Ok(self.take_lease_alone(entry, &wanted).await?)
    }

    async fn take_lease_alone(&self, entry: &Entry, wanted: &WantedLease) -> Result<Guarded, StoreError> {
        let mut free = entry.is_as_decided_on().add(lease_is_free(wanted.now));
        if let Some(then) = wanted.unless_reserved_beyond {
            free = free.add(not_reserved_beyond(then));
        }
        let taken_already = Column::LeaseHolder.eq(wanted.holder.as_str());
        let updated = TokenEntry::update_many()
            .col_expr(Column::LeaseHolder, Expr::value(wanted.holder.as_str()))
            .col_expr(Column::LeaseUntil, Expr::value(wanted.until.as_millis()))
            // Before the attempt, which it depends on: MySQL and MariaDB assign one column after the other.
            .col_expr(Column::AttemptedAt, first_sent(wanted))
            .col_expr(Column::AttemptFingerprint, Expr::value(wanted.attempt.as_str()))
            .filter(entry.is_unmoved())
            .filter(Condition::any().add(free).add(taken_already))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("take a refresh lease"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }
}

/// When the refresh token was sent first. A date that is on record stays.
fn first_sent(wanted: &WantedLease) -> SimpleExpr {
    Expr::case(Column::AttemptFingerprint.eq(wanted.attempt.as_str()), Expr::col(Column::AttemptedAt))
        .finally(wanted.now.as_millis())
        .into()
}

/// A lease that a flight wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedLease {
    entry_id: i64,
    generation: i64,
    unless_reserved_beyond: Option<Timestamp>,
    /// Which flight; unique for each.
    holder: String,
    /// Fingerprint of the refresh token that it is about to send.
    attempt: String,
    now: Timestamp,
    until: Timestamp,
}

impl Grouped for WantedLease {
    /// The holder: no two flights are one.
    type Key<'a> = &'a str;
    type Answer = Guarded;
    const STATEMENT: GroupedStatement = GroupedStatement::TakeLease;

    fn key(&self) -> Self::Key<'_> {
        &self.holder
    }

    fn absorb(&mut self, other: &Self) {
        self.clone_from(other);
    }

    async fn run(line: &mut Line, group: &[Self]) -> Result<Vec<Guarded>, StoreError> {
        take(line, group).await.map_err(StoreError::database("take refresh leases"))
    }
}

/// [`Store::take_lease`] for [ordinary](Entry::is_ordinary) entries. For PostgreSQL alone, which tells which rows it changed and
/// can skip locked ones. `claim/postgres.rs` says why `LATERAL` and `SKIP LOCKED`, and `reserve.rs` why one row comes back.
const TAKE: &str = concat!(
    "WITH free AS MATERIALIZED (
  SELECT wanted.*
  FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[])
    WITH ORDINALITY AS wanted (id, generation, holder, until_ms, attempt, reserved_ms, now_ms, place)
  CROSS JOIN LATERAL (
    SELECT entry.id FROM token_entry AS entry
    WHERE ",
    is_unmoved_sql!("wanted.id", "wanted.generation"),
    " AND ",
    is_ordinary_sql!(without_index),
    " AND ",
    lease_is_free_sql!("wanted.now_ms"),
    " AND (wanted.reserved_ms IS NULL OR ",
    not_reserved_beyond_sql!("wanted.reserved_ms"),
    ")
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
  ) AS entry
), taken AS (
  UPDATE token_entry AS entry
  SET lease_holder = free.holder, lease_until = free.until_ms, attempt_fingerprint = free.attempt,
    attempted_at = free.now_ms
  FROM free WHERE entry.id = free.id
  RETURNING free.place
)
SELECT array_agg(place) FROM taken"
);

async fn take(line: &mut Line, group: &[WantedLease]) -> Result<Vec<Guarded>, DbErr> {
    let taken = sqlx::query_scalar(TAKE)
        .bind(column(group, |lease| lease.entry_id))
        .bind(column(group, |lease| lease.generation))
        .bind(column(group, |lease| lease.holder.as_str()))
        .bind(column(group, |lease| lease.until.as_millis()))
        .bind(column(group, |lease| lease.attempt.as_str()))
        .bind(column(group, |lease| lease.unless_reserved_beyond.map(Timestamp::as_millis)))
        .bind(column(group, |lease| lease.now.as_millis()))
        .fetch_one(line.postgres().await?)
        .await
        .map_err(driver)?;
    Ok(Guarded::at_places(taken, group.len()))
}
