//! Condemns pairs of which an operator knows that they are dead: the database is older than what was handed out.

use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, Condition, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect};
use tokenkeeper_entity::token_entry::{Column, Entity as TokenEntry};

use super::entry::{Entry, Failure, FailureKind};
use super::idle::condemned;
use super::rules::lease_is_free;
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::secret::fingerprint;

impl Store {
    /// How many pairs of a provider [`Store::stored_before`] gives, all pages together.
    pub async fn count_stored_before(&self, provider_id: i64, before: Timestamp) -> Result<u64, StoreError> {
        TokenEntry::find()
            .filter(refreshable_before(provider_id, before))
            .count(&self.db)
            .await
            .map_err(StoreError::database("count old pairs"))
    }

    /// Pairs of a provider that were stored before a date, that can be refreshed, and whose refresh token is not known to be dead: at
    /// most `limit`, with a greater id than `after`.
    pub async fn stored_before(
        &self,
        provider_id: i64,
        before: Timestamp,
        after: i64,
        limit: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        let rows = TokenEntry::find()
            .filter(refreshable_before(provider_id, before))
            .filter(Column::Id.gt(after))
            .order_by_asc(Column::Id)
            .limit(limit)
            .all(&self.db)
            .await
            .map_err(StoreError::database("look for old pairs"))?;
        rows.into_iter().map(Entry::from_row).collect()
    }

    /// Records that a pair is dead, as if its refresh had been interrupted: the refresh token is not sent again, and where a refresh
    /// ends the old access token, that is not handed out again either.
    ///
    /// `Moved`: the row has changed, or its pair is being refreshed.
    pub async fn condemn(&self, entry: &Entry, why: &str, now: Timestamp) -> Result<Guarded, StoreError> {
        let Some(refresh_token) = self.open_refresh_token(entry)? else { return Ok(Guarded::Moved) };
        let failure = Failure {
            kind: FailureKind::Interrupted,
            message: why.to_owned(),
            fingerprint: fingerprint(&refresh_token),
            at: now,
        };
        let mac = self.mac_of(entry, &entry.record.with_failure(&failure))?;
        let updated = TokenEntry::update_many()
            .col_expr(Column::FailureCode, Expr::value(failure.kind.name()))
            .col_expr(Column::FailureMessage, Expr::value(failure.message.as_str()))
            .col_expr(Column::FailureFingerprint, Expr::value(failure.fingerprint.as_str()))
            .col_expr(Column::FailedAt, Expr::value(failure.at.as_millis()))
            .col_expr(Column::RecordMac, Expr::value(mac))
            .filter(entry.has_record_as_loaded())
            .filter(lease_is_free(now))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("condemn a pair"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }
}

fn refreshable_before(provider_id: i64, before: Timestamp) -> Condition {
    Condition::all()
        .add(Column::ProviderId.eq(provider_id))
        .add(Column::UpdatedAt.lt(before.as_millis()))
        .add(Column::RefreshTokenSealed.is_not_null())
        .add(condemned().not())
}
