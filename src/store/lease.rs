//! The refresh lease: the row-level lock of the one worker that refreshes an entry. `take_lease.rs` takes it.

use std::time::Duration;

use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use tokenkeeper_entity::token_entry::{Column, Entity as TokenEntry};

use super::entry::{Entry, Failure};
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;

impl Store {
    /// Extends the lease while the provider call runs. A lease that ran out is lost, even if nobody took it: the token may have
    /// been handed out since.
    pub async fn renew_lease(
        &self,
        entry: &Entry,
        holder: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Guarded, StoreError> {
        let updated = TokenEntry::update_many()
            .col_expr(Column::LeaseUntil, Expr::value(now.plus(ttl).as_millis()))
            .filter(entry.is_unmoved())
            .filter(Column::LeaseHolder.eq(holder))
            .filter(Column::LeaseUntil.gt(now.as_millis()))
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("renew a refresh lease"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    /// Gives the lease back and records why the refresh failed. It is known what the provider did.
    pub async fn give_up(
        &self,
        entry: &Entry,
        holder: &str,
        failure: &Failure,
    ) -> Result<Guarded, StoreError> {
        self.end_lease(entry, holder, failure, Attempt::Settled).await
    }

    /// Gives the lease back and records the failure, but keeps the attempt: the next refresh must know that the provider may
    /// have acted ([`Entry::is_in_doubt`]).
    pub async fn give_up_in_doubt(
        &self,
        entry: &Entry,
        holder: &str,
        failure: &Failure,
    ) -> Result<Guarded, StoreError> {
        self.end_lease(entry, holder, failure, Attempt::InDoubt).await
    }

    /// Gives the lease back after the pair has changed. It is known what the provider did, so nobody needs to wait.
    pub async fn release(&self, entry_id: i64, holder: &str) -> Result<Guarded, StoreError> {
        let updated = TokenEntry::update_many()
            .col_expr(Column::AttemptFingerprint, Expr::value(None::<String>))
            .col_expr(Column::LeaseUntil, Expr::value(None::<i64>))
            .col_expr(Column::LeaseHolder, Expr::value(None::<String>))
            .filter(Column::Id.eq(entry_id))
            .filter(Column::LeaseHolder.eq(holder))
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("release a refresh lease"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    async fn end_lease(
        &self,
        entry: &Entry,
        holder: &str,
        failure: &Failure,
        attempt: Attempt,
    ) -> Result<Guarded, StoreError> {
        let mut current = entry.clone();
        loop {
            let ended = self.end_lease_of(&current, holder, failure, attempt).await?;
            if ended == Guarded::Done {
                return Ok(Guarded::Done);
            }
            // Somebody may have reported the token meanwhile.
            match self.reload_for_record(entry).await? {
                Some(again) if again.lease.as_ref().is_some_and(|lease| lease.holder == holder) => {
                    current = again;
                }
                Some(_) | None => return Ok(Guarded::Moved),
            }
        }
    }

    async fn end_lease_of(
        &self,
        entry: &Entry,
        holder: &str,
        failure: &Failure,
        attempt: Attempt,
    ) -> Result<Guarded, StoreError> {
        let nothing = || Expr::value(None::<String>);
        let mac = self.mac_of(entry, &entry.record.with_failure(failure))?;
        let mut update = TokenEntry::update_many()
            .col_expr(Column::LeaseHolder, nothing())
            .col_expr(Column::LeaseUntil, Expr::value(None::<i64>))
            .col_expr(Column::FailureCode, Expr::value(failure.kind.name()))
            .col_expr(Column::FailureMessage, Expr::value(failure.message.as_str()))
            .col_expr(Column::FailureFingerprint, Expr::value(failure.fingerprint.as_str()))
            .col_expr(Column::FailedAt, Expr::value(failure.at.as_millis()))
            .col_expr(Column::RecordMac, Expr::value(mac));
        match attempt {
            Attempt::Settled => update = update.col_expr(Column::AttemptFingerprint, nothing()),
            Attempt::InDoubt => {}
        }
        let updated = update
            .filter(entry.has_record_as_loaded())
            .filter(Column::LeaseHolder.eq(holder))
            .exec(&self.urgent)
            .await
            .map_err(StoreError::database("give a refresh lease back"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }
}

/// What is known of an attempt that brought no new pair.
#[derive(Debug, Clone, Copy)]
enum Attempt {
    /// It is certain what the provider did.
    Settled,
    /// It may have acted.
    InDoubt,
}
