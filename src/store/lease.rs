//! The refresh lease: the row-level lock of the one worker that refreshes an entry.

use std::time::Duration;

use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter};
use tokenkeeper_entity::token_entry::{Column, Entity as TokenEntry};

use super::entry::{Entry, Failure, Lease};
use super::{Guarded, Store, StoreError, deadline};
use crate::clock::Timestamp;
use crate::decide::Cause;

/// Nobody refreshes it.
pub(super) fn none_live(now: Timestamp) -> Condition {
    Condition::any().add(Column::LeaseUntil.is_null()).add(Column::LeaseUntil.lte(now.as_millis()))
}

/// Nobody holds the token.
pub(super) fn none_reserved(now: Timestamp) -> Condition {
    Condition::any().add(Column::ReservedUntil.is_null()).add(Column::ReservedUntil.lte(now.as_millis()))
}

impl Store {
    /// Takes the lease. For an opportunistic refresh a live reservation stands against it (invariant 1).
    pub async fn take_lease(
        &self,
        entry: &Entry,
        cause: Cause,
        holder: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Guarded, StoreError> {
        let mut update = TokenEntry::update_many()
            .col_expr(Column::LeaseHolder, Expr::value(holder))
            .col_expr(Column::LeaseUntil, Expr::value(deadline(now, ttl)))
            .filter(entry.is_unmoved())
            .filter(none_live(now));
        match cause {
            Cause::Opportunistic => update = update.filter(none_reserved(now)),
            Cause::Required => {}
        }
        let updated = update.exec(&self.db).await.map_err(StoreError::database("take a refresh lease"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    /// Keeps the lease alive while the provider call runs.
    pub async fn renew_lease(
        &self,
        entry: &Entry,
        holder: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Guarded, StoreError> {
        let updated = TokenEntry::update_many()
            .col_expr(Column::LeaseUntil, Expr::value(deadline(now, ttl)))
            .filter(entry.is_unmoved())
            .filter(Column::LeaseHolder.eq(holder))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("renew a refresh lease"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    /// Gives the lease back and records why nothing came of it.
    pub async fn give_up(
        &self,
        entry: &Entry,
        holder: &str,
        failure: &Failure,
    ) -> Result<Guarded, StoreError> {
        self.end_lease(entry, holder, failure, None).await
    }

    /// Lets the lease run out now instead of giving it back, and records the failure: whoever refreshes next must
    /// know that the provider may have acted ([`Entry::is_in_doubt`]).
    pub async fn give_up_in_doubt(
        &self,
        entry: &Entry,
        holder: &str,
        failure: &Failure,
    ) -> Result<Guarded, StoreError> {
        self.end_lease(entry, holder, failure, Some(Lease { holder: holder.to_owned(), until: failure.at }))
            .await
    }

    async fn end_lease(
        &self,
        entry: &Entry,
        holder: &str,
        failure: &Failure,
        left: Option<Lease>,
    ) -> Result<Guarded, StoreError> {
        let (left_holder, left_until) = left.map(|lease| (lease.holder, lease.until.as_millis())).unzip();
        let updated = TokenEntry::update_many()
            .col_expr(Column::LeaseHolder, Expr::value(left_holder))
            .col_expr(Column::LeaseUntil, Expr::value(left_until))
            .col_expr(Column::FailureCode, Expr::value(failure.kind.name()))
            .col_expr(Column::FailureMessage, Expr::value(failure.message.as_str()))
            .col_expr(Column::FailureFingerprint, Expr::value(failure.fingerprint.as_str()))
            .col_expr(Column::FailedAt, Expr::value(failure.at.as_millis()))
            .filter(entry.is_unmoved())
            .filter(Column::LeaseHolder.eq(holder))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("give a refresh lease back"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }
}
