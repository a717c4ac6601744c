//! STORE: stores the pairs that refreshes brought. On PostgreSQL one statement stores those of many flights.

use std::sync::Arc;

use sea_orm::{DbBackend, DbErr, sqlx};

use super::entry::{Entry, lifetime_ms, scopes_json};
use super::group_commit::Grouped;
use super::line::{Line, column, driver};
use super::pair::{Age, Leases, NewPair};
use super::rules::is_unmoved_sql;
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::telemetry::GroupedStatement;

impl Store {
    /// Stores the pair that a refresh of `entry` issued. `holder` had the lease of that refresh; another holder's lease stays.
    ///
    /// If the generation has changed, the newer pair stays: a login's, or one that was requested later. A provider that accepts
    /// a spent refresh token can issue two pairs for it, if a worker froze and another took its place. The later request then
    /// killed the earlier pair, so its pair is stored over the other.
    ///
    /// Returns the stored entry, or none if a newer pair is there or the entry is gone.
    ///
    /// # Errors
    /// [`StoreError`], shared with those whose pairs were in the same statement.
    pub async fn store_refreshed(
        &self,
        entry: &Entry,
        pair: &NewPair,
        holder: &str,
        now: Timestamp,
    ) -> Result<Option<Arc<Entry>>, Arc<StoreError>> {
        let successor = Arc::new(self.successor(entry, pair, now));
        match self.succeed(entry, Arc::clone(&successor), holder).await? {
            Guarded::Done => Ok(Some(successor)),
            Guarded::Moved => {
                Ok(Box::pin(self.store_over_older(entry.id, pair, holder, now)).await?.map(Arc::new))
            }
        }
    }

    async fn succeed(
        &self,
        entry: &Entry,
        successor: Arc<Entry>,
        holder: &str,
    ) -> Result<Guarded, Arc<StoreError>> {
        if self.urgent.get_database_backend() == DbBackend::Postgres {
            let succession = Succession { successor: Arc::clone(&successor), holder: holder.to_owned() };
            match self.successions.submit(&self.grouped, &self.urgent, succession).await? {
                Guarded::Done => return Ok(Guarded::Done),
                // The row has changed, or somebody else was writing it.
                Guarded::Moved => {}
            }
        }
        Ok(Box::pin(self.store_successor(entry, &successor, Leases::Of(holder))).await?)
    }

    async fn store_over_older(
        &self,
        entry_id: i64,
        pair: &NewPair,
        holder: &str,
        now: Timestamp,
    ) -> Result<Option<Entry>, StoreError> {
        loop {
            let Some(current) = self.reload(entry_id).await? else { return Ok(None) };
            match pair.source.age_beside(&current) {
                // An earlier try stored it, and its answer was lost.
                Age::Same => return Ok(Some(current)),
                Age::Older => return Ok(None),
                Age::Newer => {
                    let pair = pair.reserved_like(&current);
                    let stored = self.store_pair(&current, &pair, Leases::Of(holder), now).await?;
                    if stored.is_some() {
                        return Ok(stored);
                    }
                }
            }
        }
    }
}

/// An entry that replaces the one it was refreshed from.
#[derive(Debug, Clone)]
pub(super) struct Succession {
    successor: Arc<Entry>,
    holder: String,
}

impl Grouped for Succession {
    /// The holder: no two flights are one, and a flight stores one pair.
    type Key<'a> = &'a str;
    type Answer = Guarded;
    const STATEMENT: GroupedStatement = GroupedStatement::StorePair;

    fn key(&self) -> Self::Key<'_> {
        &self.holder
    }

    fn absorb(&mut self, other: &Self) {
        self.clone_from(other);
    }

    async fn run(line: &mut Line, group: &[Self]) -> Result<Vec<Guarded>, StoreError> {
        store(line, group).await.map_err(StoreError::database("store token pairs"))
    }
}

/// `Store::store_successor` for many entries: guarded by the generation alone, and other holders' leases stay.
/// `claim/postgres.rs` says why `LATERAL` and `SKIP LOCKED`.
const STORE: &str = concat!(
    "WITH unmoved AS MATERIALIZED (
  SELECT new.*
  FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bytea[], $5::bytea[], $6::text[], $7::text[], $8::text[],
    $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[])
    WITH ORDINALITY AS new (id, generation, holder, access_token, refresh_token, key_id, username, scopes,
      expires_at, refresh_token_expires_at, granted_lifetime_ms, reserved_until, refreshed_at, updated_at, login_fingerprint,
      place)
  CROSS JOIN LATERAL (
    SELECT entry.id FROM token_entry AS entry WHERE ",
    is_unmoved_sql!("new.id", "new.generation - 1"),
    "
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
  ) AS entry
), stored AS (
  UPDATE token_entry AS entry
  SET generation = new.generation,
    access_token_sealed = new.access_token,
    refresh_token_sealed = new.refresh_token,
    key_id = new.key_id,
    username = new.username,
    scopes = new.scopes,
    expires_at = new.expires_at,
    refresh_token_expires_at = new.refresh_token_expires_at,
    granted_lifetime_ms = new.granted_lifetime_ms,
    reserved_until = new.reserved_until,
    refreshed_at = new.refreshed_at,
    updated_at = new.updated_at,
    login_fingerprint = new.login_fingerprint,
    lease_holder = CASE WHEN entry.lease_holder = new.holder THEN NULL ELSE entry.lease_holder END,
    lease_until = CASE WHEN entry.lease_holder = new.holder THEN NULL ELSE entry.lease_until END,
    attempt_fingerprint = CASE WHEN entry.lease_holder = new.holder THEN NULL ELSE entry.attempt_fingerprint END,
    failure_code = NULL, failure_message = NULL, failure_fingerprint = NULL, failed_at = NULL,
    reported_at = NULL
  FROM unmoved AS new WHERE entry.id = new.id
  RETURNING new.place
)
SELECT array_agg(place) FROM stored"
);

async fn store(line: &mut Line, group: &[Succession]) -> Result<Vec<Guarded>, DbErr> {
    let entries: Vec<&Entry> = column(group, |new| &*new.successor);
    let millis = |time: fn(&Entry) -> Option<Timestamp>| {
        column(&entries, move |entry| time(entry).map(Timestamp::as_millis))
    };
    let stored = sqlx::query_scalar(STORE)
        .bind(column(&entries, |entry| entry.id))
        .bind(column(&entries, |entry| entry.generation))
        .bind(column(group, |new| new.holder.as_str()))
        .bind(column(&entries, |entry| entry.access_token_sealed.as_slice()))
        .bind(column(&entries, |entry| entry.refresh_token_sealed.as_deref()))
        .bind(column(&entries, |entry| entry.key_id.as_str()))
        .bind(column(&entries, |entry| entry.username.as_deref()))
        .bind(column(&entries, |entry| scopes_json(&entry.scopes)))
        .bind(millis(|entry| entry.state.expires_at))
        .bind(millis(|entry| entry.refresh_token_expires_at))
        .bind(column(&entries, |entry| lifetime_ms(entry.state.granted_lifetime)))
        .bind(millis(|entry| entry.state.reserved_until))
        .bind(millis(|entry| entry.refreshed_at))
        .bind(millis(|entry| Some(entry.updated_at)))
        .bind(column(&entries, |entry| entry.login_fingerprint.as_deref()))
        .fetch_one(line.postgres().await?)
        .await
        .map_err(driver)?;
    Ok(Guarded::at_places(stored, group.len()))
}
