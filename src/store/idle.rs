//! Entries that nobody asks for: the ones that are of no use any more, and the ones that would become so.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, Func, SimpleExpr};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use tokenkeeper_entity::token_entry::{Column, Entity as TokenEntry};

use super::entry::{Entry, FailureKind};
use super::rules::{lease_is_free, not_reserved_beyond};
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::telemetry;

/// An idle pair is refreshed when less than a quarter of its refresh token's life is left ...
const LAST_QUARTER: i64 = 4;

/// ... but not earlier than this before its end.
const AHEAD: Duration = Duration::from_hours(24 * 7);

/// Why an entry cannot be refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrefreshable {
    /// There is no refresh token.
    NoRefreshToken,
    /// It expired.
    RefreshTokenExpired,
    /// The provider refused it.
    RefreshTokenCondemned,
}

impl Store {
    /// Entries that expired by `cutoff` and cannot be refreshed. Begins behind the row `after`.
    pub async fn expired_for_good(
        &self,
        cutoff: Timestamp,
        now: Timestamp,
        after: i64,
        limit: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        let entries = TokenEntry::find()
            .filter(expired_for_good(cutoff, now))
            .filter(Column::Id.gt(after))
            .order_by_asc(Column::Id);
        self.idle_entries(entries, limit).await
    }

    /// None: the entry can be refreshed.
    ///
    /// # Errors
    /// [`StoreError::Sealed`]: the keys do not open its refresh token.
    pub fn unrefreshable(&self, entry: &Entry, now: Timestamp) -> Result<Option<Unrefreshable>, StoreError> {
        Ok(if !entry.state.refreshable {
            Some(Unrefreshable::NoRefreshToken)
        } else if entry.refresh_token_expires_at.is_some_and(|at| at <= now) {
            Some(Unrefreshable::RefreshTokenExpired)
        } else {
            self.condemnation(entry)?.map(|_| Unrefreshable::RefreshTokenCondemned)
        })
    }

    /// Removes an entry if it is unchanged and still of no use. Its identity stays.
    pub async fn remove_expired(
        &self,
        entry: &Entry,
        cutoff: Timestamp,
        now: Timestamp,
    ) -> Result<Guarded, StoreError> {
        let removed = TokenEntry::delete_many()
            .filter(entry.is_unmoved())
            .filter(expired_for_good(cutoff, now))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("remove an expired token"))?;
        Ok(Guarded::from_rows(removed.rows_affected))
    }

    /// Entries that nobody holds and whose refresh token expires soon by its own date. Entries that failed before come last, so
    /// that they do not keep the others waiting.
    pub async fn dying(&self, now: Timestamp, limit: u64) -> Result<Vec<Entry>, StoreError> {
        let dies = || Expr::col(Column::RefreshTokenExpiresAt);
        let left = dies().sub(now.as_millis());
        let entries = TokenEntry::find()
            .filter(refreshable_and_free(now))
            .filter(Column::RefreshTokenExpiresAt.gt(now.as_millis()))
            .filter(Column::RefreshTokenExpiresAt.lte(now.plus(AHEAD).as_millis()))
            .filter(left.mul(LAST_QUARTER).lte(dies().sub(Expr::col(Column::UpdatedAt))));
        self.idle_entries(failed_last(entries), limit).await
    }

    /// Entries of these providers that nobody holds, and whose refresh token has no date of its own but dies soon: nobody used
    /// it for most of `idle_lifetime`.
    pub async fn idle_for_long(
        &self,
        providers: &[i64],
        idle_lifetime: Duration,
        now: Timestamp,
        limit: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        let ahead = AHEAD.min(idle_lifetime / 4);
        let idle = i64::try_from(idle_lifetime.saturating_sub(ahead).as_millis()).unwrap_or(i64::MAX);
        let entries = TokenEntry::find()
            .filter(Column::ProviderId.is_in(providers.iter().copied()))
            .filter(refreshable_and_free(now))
            .filter(Column::RefreshTokenExpiresAt.is_null())
            .filter(Column::UpdatedAt.lte(now.as_millis().saturating_sub(idle)));
        self.idle_entries(failed_last(entries), limit).await
    }

    async fn idle_entries(&self, entries: Select<TokenEntry>, limit: u64) -> Result<Vec<Entry>, StoreError> {
        let ids: Vec<i64> = entries
            .select_only()
            .column(Column::Id)
            .limit(limit)
            .into_tuple()
            .all(&self.db)
            .await
            .map_err(StoreError::database("look for tokens that nobody asks for"))?;
        let rows = TokenEntry::find()
            .filter(Column::Id.is_in(ids.iter().copied()))
            .all(&self.db)
            .await
            .map_err(StoreError::database("load tokens that nobody asks for"))?;
        let read = rows.into_iter().map(Entry::from_row);
        let mut found: Vec<Entry> =
            read.filter_map(|read| read.inspect_err(|error| telemetry::row_unusable(error)).ok()).collect();
        found.sort_by_key(|entry| ids.iter().position(|id| *id == entry.id));
        Ok(found)
    }
}

fn failed_last(entries: Select<TokenEntry>) -> Select<TokenEntry> {
    let failed_at: SimpleExpr = Func::coalesce([Expr::col(Column::FailedAt), Expr::value(0_i64)]).into();
    entries.order_by_asc(failed_at).order_by_asc(Column::Id)
}

/// The kinds of failure that prove a refresh token dead. Storing a new pair clears them.
pub(super) fn condemned() -> Condition {
    let names = [FailureKind::Refused, FailureKind::Interrupted].map(FailureKind::name);
    Condition::all().add(Column::FailureCode.is_not_null()).add(Column::FailureCode.is_in(names))
}

/// Expired by `cutoff`, not refreshable, and neither held nor being refreshed.
fn expired_for_good(cutoff: Timestamp, now: Timestamp) -> Condition {
    Condition::all()
        .add(Column::ExpiresAt.lte(cutoff.as_millis()))
        .add(lease_is_free(now))
        .add(not_reserved_beyond(now))
        // If the outcome of a refresh is unknown, its pair may still be on its way here.
        .add(Column::AttemptFingerprint.is_null())
        .add(
            Condition::any()
                .add(Column::RefreshTokenSealed.is_null())
                .add(Column::RefreshTokenExpiresAt.lte(now.as_millis()))
                .add(condemned()),
        )
}

fn refreshable_and_free(now: Timestamp) -> Condition {
    Condition::all()
        .add(Column::RefreshTokenSealed.is_not_null())
        .add(lease_is_free(now))
        .add(not_reserved_beyond(now))
        .add(condemned().not())
}
